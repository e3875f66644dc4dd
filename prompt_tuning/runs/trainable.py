"""Add to a base model what a recipe trains."""

from __future__ import annotations

from itertools import islice

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from prompt_tuning.arguments.methods import METHODS, find_method
from prompt_tuning.models.initialization import frequent_ids, initial_prefix, initial_prompt, layer_scales
from prompt_tuning.models.prompts import add_adapter, add_soft_prompt, load_adapter, network_width, prompt_config
from prompt_tuning.runs.prepare import Prepared

ROWS_FOR_SCALES = 4


def add_trainable(base: PreTrainedModel, prepared: Prepared) -> PeftModel | PreTrainedModel:
    """Return the base model with what the recipe trains: a prompt, layers, or all of its own weights.

    Args:
        base: the frozen model, which is changed.
        prepared: its recipe names the method and what a prompt starts from.
    """
    prompt = prepared.recipe.prompt
    method = METHODS[prompt.method]
    if prompt.adapter:
        return load_adapter(base, prompt.adapter, is_trainable=True)
    if method.trains_whole_model:
        return base.requires_grad_()
    text = prepared.trained_text
    config = prompt_config(
        base,
        prepared.num_virtual_tokens,
        prompt,
        prepared.init_ids or (),
        text_ids=text.start_ids if text else (),
        trained_text=text.to_json() if text else None,
    )
    if method.trains_layers:
        return add_adapter(base, config)
    residual = network_width(base, prompt) if prompt.residual else None
    scales = layer_scales(base, *_hard_prompts(prepared)) if prompt.layer_vectors else None
    return add_soft_prompt(base, config, _initial_values(base, prepared), residual, scales)


def _hard_prompts(prepared: Prepared) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ordinary ids and the labels of the first training rows, from which layer vectors take their units."""
    text = prepared.trained_text
    rows = list(islice(prepared.encoded["train"], ROWS_FOR_SCALES))
    ids = [row["input_ids"] for row in rows]
    return [text.ordinary_ids(row) for row in ids] if text else ids, [row["labels"] for row in rows]


def _initial_values(base: PreTrainedModel, prepared: Prepared) -> torch.Tensor | None:
    """Return the embeddings `[P, H]`, or keys and values, that a prompt starts from; None if PEFT draws them."""
    prompt, length, seed = prepared.recipe.prompt, prepared.num_virtual_tokens, prepared.recipe.training.seed
    method = METHODS[prompt.method]
    ids = prepared.init_ids
    if not length:
        return None
    if prompt.init == "frequent":
        ids = frequent_ids(prepared.encoded["train"]["labels"], prepared.tokenizer, length)
    if method.takes_init and method.trains_embeddings:
        return initial_prompt(base, prepared.tokenizer, prompt, length, seed=seed, ids=ids)
    if method.trains_keys_and_values and not (prompt.prefix_projection or base.config.is_encoder_decoder):
        return initial_prefix(base, prepared.tokenizer, prompt, length, seed=seed, ids=ids)
    return None


def soft_prompt_of(model: PeftModel | PreTrainedModel) -> torch.Tensor | None:
    """Return the embeddings `[P, H]` of a soft prompt; None for a method that trains something else."""
    if not isinstance(model, PeftModel) or not find_method(model.active_peft_config.peft_type).trains_embeddings:
        return None
    initial = model.get_prompt_embedding_to_save("default")
    return initial if len(initial) else None
