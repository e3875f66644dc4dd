"""Decide which text of a template has trained ids: that of a saved adapter, or what the training rows have of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from datasets import DatasetDict
from peft import PeftConfig

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.encoding.demonstrations import Demonstrations
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.text_search import find_trained_text
from prompt_tuning.encoding.trained_text import TrainedText, check_fast
from prompt_tuning.engine.trained_config import TrainedTokensConfig
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.adapter_config import read_adapter_config
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.support.run_folder import RunFolder


def saved_text(config: PeftConfig, name: str | Path, encoder: Encoder) -> TrainedText | None:
    """Return the trained text of a saved adapter, or None if it has none.

    Args:
        config: the adapter's configuration.
        name: its folder, for messages.
        encoder: writes rows with the template to use.

    Raises:
        AdapterError: the configuration is damaged, or the template has other fixed text than that in training.
        ModelError: the tokenizer is slow.
    """
    if not isinstance(config, TrainedTokensConfig) or not (config.text_token_ids or config.trained_text):
        return None
    first_id = encoder.num_embeddings or len(encoder.tokenizer)
    text = TrainedText.from_json(config.trained_text, config.text_token_ids, first_id, str(name))
    text.check_template(encoder.template, encoder.languages, str(name))
    check_fast(encoder.tokenizer)
    return text


def needs_training_rows(recipe: Recipe) -> bool:
    """Return whether the training rows decide which tokens of the template are trained."""
    prompt = recipe.prompt
    return METHODS[prompt.method].takes("trained_text") and prompt.trained_text != "none" and not prompt.adapter


def text_of_run(
    recipe: Recipe,
    encoder: Encoder,
    rows: DatasetDict,
    demonstrations: Demonstrations | None,
    adapter: str | None,
) -> TrainedText | None:
    """Return the trained text of a run, or None if it has none.

    Args:
        recipe: the recipe.
        encoder: writes its rows as ordinary hard prompts.
        rows: the rows that were read, with the training rows.
        demonstrations: the training rows that are shown before others.
        adapter: the saved adapter that is evaluated; None in training, which may continue that of the recipe.

    Raises:
        PromptTuningError: the template, the rows, the tokenizer or the adapter do not fit the setting.
    """
    prompt = recipe.prompt
    continued = prompt.adapter if METHODS[prompt.method].takes("trained_text") and not adapter else None
    folder = adapter or continued
    if folder:
        text = saved_text(read_adapter_config(RunFolder(adapter_folder(folder))), folder, encoder)
        part = text.part if text else "none"
        if continued and part != prompt.trained_text:
            raise RecipeError(f"adapter {folder} has trained_text: {part}. Set trained_text: {part}.")
        return text
    if prompt.trained_text == "none" or not needs_training_rows(recipe):
        return None
    if "train" not in rows:
        raise DataError(f"{recipe.path}: trained_text {prompt.trained_text} needs training rows. Set train_file.")
    return find_trained_text(recipe, prompt.trained_text, encoder, rows["train"], demonstrations)


def check_checkpoint_text(checkpoint: Path, text: TrainedText | None) -> None:
    """Raise a RecipeError if a checkpoint has other trained text than the rows of the run that resumes from it."""
    run = RunFolder(checkpoint)
    if not run.adapter_config.is_file():
        return
    fields = vars(read_adapter_config(run))
    saved = fields.get("trained_text"), list(fields.get("text_token_ids") or ())
    if saved != ((text.to_json(), text.start_ids) if text else (None, [])):
        raise RecipeError(
            f"{checkpoint}: it trains other tokens of the template than the training rows and the template now have. "
            "Resume with those of the run, or name another --output_dir."
        )


def without_trained_text(recipe: Recipe) -> Recipe:
    """Return a recipe whose rows are those of the ordinary hard prompt."""
    return replace(recipe, prompt=replace(recipe.prompt, trained_text="none"))
