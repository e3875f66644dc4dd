"""Runs as `train` writes them, with a prompt drawn at random instead of a training."""

import pytest
import torch
from helpers.models import tiny_llama
from helpers.rows import question_rows, write_jsonl

from prompt_tuning import Template, add_soft_prompt, prompt_config
from prompt_tuning.models.base_model import write_base_model
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.fitting import save_adapter, save_recipe


@pytest.fixture
def make_run(recipe_file, tmp_path, tokenizer):
    """Return a function that writes a run as `train` does, with a prompt drawn at random; no evaluation."""
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, question_rows(9, 5))

    def make(name="qa", model=None, method="prompt_tuning", tokens=tokenizer, seed=0, base="base", **settings):
        model = model or tiny_llama(len(tokens), tie_word_embeddings=True, bos_token_id=None)
        base = tmp_path / base
        model.save_pretrained(base)
        tokens.save_pretrained(base)
        folder = tmp_path / "runs" / name
        recipe = load_recipe(
            recipe_file(model_name_or_path=base, method=method, output_dir=folder, max_steps=None, **settings)
        )
        torch.manual_seed(seed)
        ids = list(range(20, 26))
        prompted = add_soft_prompt(model, prompt_config(model, 6, recipe.prompt, ids))
        for parameter in prompted.prompt_encoder.parameters():
            parameter.data += 0.5 * torch.randn_like(parameter)
        folder.mkdir(parents=True)
        save_adapter(prompted, folder, None)
        save_recipe(recipe, folder, Template.load(recipe.prompt.template))
        write_base_model(folder, recipe.model, tokens)
        return str(folder)

    make.rows = str(rows)
    return make
