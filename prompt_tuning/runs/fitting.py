"""Train a model, and save what was trained and the recipe in the run's folder."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from prompt_tuning.models.base_model import write_base_model
from prompt_tuning.recipe.recipe import Recipe, unmistakable_settings
from prompt_tuning.reports.facts import training_facts
from prompt_tuning.runs.resume import changed_since
from prompt_tuning.support.files import atomic_folder, write_text
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.yaml_files import to_yaml
from prompt_tuning.templates.template import Template
from prompt_tuning.training.callbacks import EarlyStopping, stopping_on_signals
from prompt_tuning.training.costs import TrainingCosts
from prompt_tuning.training.memory import IN_TRAINING, explain_out_of_memory
from prompt_tuning.training.resuming import CHANGED_SETTINGS
from prompt_tuning.training.trainer import PromptTuningTrainer

logger = logging.getLogger(__name__)


def fit(trainer: PromptTuningTrainer, recipe: Recipe, checkpoint: str | None) -> dict[str, Any]:
    """Train, and return the facts for results.json.

    Args:
        trainer: the trainer, with its model and rows.
        recipe: the recipe, which is saved first, so that a run that stops can be recognised.
        checkpoint: the checkpoint to resume from.

    Raises:
        Stopped: SIGINT or SIGTERM stopped the training, which saved a checkpoint.
    """
    counts = training_facts(trainer)
    trainable, total = counts["trainable_parameters"], counts["total_parameters"]
    logger.info("training %s of %s parameters (%.3f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)
    _report_max_steps(recipe)
    started = time.perf_counter()
    if trainer.is_world_process_zero():
        folder = Path(recipe.training.output_dir)
        if checkpoint:
            trainer.training_start.changed_settings = changed_since(recipe, Path(checkpoint).parent)
        # A resumed run is no longer finished.
        RunFolder(folder).results.unlink(missing_ok=True)
        save_recipe(recipe, folder)
        write_base_model(folder, recipe.model, trainer.processing_class)
    with explain_out_of_memory(IN_TRAINING), stopping_on_signals(trainer.accelerator) as callback:
        costs = TrainingCosts()
        trainer.add_callback(callback)
        trainer.add_callback(costs)
        trainer.train(resume_from_checkpoint=checkpoint)
    facts: dict[str, Any] = {
        "method": recipe.prompt.method,
        "train_seconds": round(time.perf_counter() - started, 1),
    }
    if checkpoint:
        # The seconds are those since the checkpoint, as the card says.
        facts["resumed_from"] = Path(checkpoint).name
    changed = [entry for entry in trainer.state.log_history if CHANGED_SETTINGS in entry]
    if changed:
        facts[CHANGED_SETTINGS] = {str(entry["step"]): entry[CHANGED_SETTINGS] for entry in changed}
    return facts | costs.facts() | training_facts(trainer)


def _report_max_steps(recipe: Recipe) -> None:
    """Report the settings that max_steps leaves without their effect."""
    max_steps, warmup_steps = recipe.training.max_steps, recipe.training.warmup_steps
    if max_steps > 0 and "num_train_epochs" in recipe.explicitly_set:
        logger.warning("num_train_epochs has no effect: max_steps %s ends the training", max_steps)
    if 1 <= max_steps <= warmup_steps:
        logger.warning(
            "warmup_steps %g: the learning rate does not reach its peak in max_steps %s", warmup_steps, max_steps
        )


def early_stopping(recipe: Recipe) -> list[TrainerCallback]:
    """Return the callback that stops a training early, if the recipe asks for it."""
    prompt = recipe.prompt
    if prompt.early_stopping_patience is None:
        return []
    return [EarlyStopping(prompt.early_stopping_patience, prompt.early_stopping_threshold)]


def save_adapter(
    model: PeftModel | PreTrainedModel,
    folder: Path,
    initial: torch.Tensor | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save the adapter, or a whole model with its tokenizer.

    Args:
        model: the trained model.
        folder: the run's folder.
        initial: `[P, H]`, the embeddings that a soft prompt started from, which `inspect` compares it with.
        tokenizer: the tokenizer of a whole model.
        state_dict: the weights as `full_state_dict` gives them; None for those in this process.
    """
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=state_dict)
        # PEFT writes a placeholder card. The real one is written after the evaluation.
        RunFolder(partial).card.unlink(missing_ok=True)
        if initial is not None:
            save_file({"initial_prompt": initial}, RunFolder(partial).initial_prompt)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def save_recipe(recipe: Recipe, folder: Path, template: Template | None = None, comment: str = "") -> None:
    """Save the resolved recipe and the template, from which `predict` builds the same prompt again.

    Args:
        recipe: the recipe.
        folder: the run's folder.
        template: the template with the demonstrations that were chosen; None before the training.
        comment: lines that recipe.yaml starts with.
    """
    write_text(RunFolder(folder).recipe, comment + to_yaml(unmistakable_settings(recipe.resolved())))
    if template:
        write_text(RunFolder(folder).template, template.to_yaml())
