"""One training: what it goes on from, what stops it, and what it leaves in its folder."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.facts import training_facts
from prompt_tuning.support.files import atomic_folder, atomic_write
from prompt_tuning.support.yaml_files import to_yaml
from prompt_tuning.templates.template import Template
from prompt_tuning.training.callbacks import EarlyStopping, stopping_on_signals
from prompt_tuning.training.checkpoints import remove_partial
from prompt_tuning.training.memory import IN_TRAINING, explain_out_of_memory
from prompt_tuning.training.trainer import PromptTuningTrainer

logger = logging.getLogger(__name__)

# What a training writes, and a folder may hold of somebody else's.
SAVED = ("adapter_model.safetensors", "adapter_config.json", "model.safetensors", "model.safetensors.index.json")

# Of other values of these a checkpoint's weights do not fit, or mean something else.
MODEL_SETTINGS = (
    "method", "num_virtual_tokens", "num_ranks", "tasks", "residual", "encoder_hidden_size", "prefix_projection",
    "encoder_reparameterization_type", "prefix_encoder", "prefix_decoder", "prefix_cross", "lora_r", "lora_alpha",
    "lora_target_modules",
)  # fmt: skip


def fit(trainer: PromptTuningTrainer, recipe: Recipe, checkpoint: str | None) -> dict[str, Any]:
    """Train; returns the facts for results.json.

    Raises:
        Stopped: by SIGINT or SIGTERM, once a checkpoint is saved.
    """
    counts = training_facts(trainer)
    trainable, total = counts["trainable_parameters"], counts["total_parameters"]
    logger.info("training %s of %s parameters (%.3f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)
    started = time.perf_counter()
    if trainer.is_world_process_zero():
        folder = Path(recipe.training.output_dir)
        remove_partial(folder)
        (folder / "results.json").unlink(missing_ok=True)  # of what this training goes on from
        save_recipe(recipe, folder)  # by which a run that stops is known
    with explain_out_of_memory(IN_TRAINING), stopping_on_signals(trainer.accelerator) as callback:
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=checkpoint)
    seconds = round(time.perf_counter() - started, 1)
    facts = {"method": recipe.prompt.method, "train_seconds": seconds}
    if checkpoint:
        facts["resumed_from"] = Path(checkpoint).name  # the seconds are those since then
    return facts | training_facts(trainer)


def checkpoint_to_resume(recipe: Recipe, folder: Path) -> str | None:
    """What to resume from; nothing that an earlier run left is written over unasked."""
    wanted = recipe.training.resume_from_checkpoint
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if wanted and wanted.lower() not in ("true", "auto"):
        if not Path(wanted).is_dir():
            raise RecipeError(f"resume_from_checkpoint {wanted}: no such folder; true and auto take the last one")
        _check_resumable(recipe, wanted)
        if Path(wanted).resolve().parent != folder.resolve():
            _check_nothing_lost(recipe, folder, last)
        return wanted
    if wanted and last:
        _check_resumable(recipe, last)
        return last
    if wanted and wanted.lower() == "true":
        raise RecipeError(f"resume_from_checkpoint: no checkpoint in {folder}; `auto` starts from the beginning then")
    _check_nothing_lost(recipe, folder, last)
    return None


def _check_nothing_lost(recipe: Recipe, folder: Path, last: str | None) -> None:
    """Raise a RecipeError if something in the folder would be written over; a stopped run may be made again."""
    found = [name for name in ("results.json", *SAVED) if (folder / name).exists()]
    same = recipe.training.resume_from_checkpoint and (folder / "recipe.yaml").is_file()
    if same and found and "results.json" not in found and not last and not recipe.changed_since(folder):
        return  # stopped after its training, which left no checkpoint
    if last or found:
        held = Path(last).name if last else "a finished run" if "results.json" in found else found[0]
        raise RecipeError(
            f"{folder} holds {held} already; "
            f"{'continue it with --resume_from_checkpoint true, ' if last else ''}name another --output_dir, "
            "or remove the folder"
        )


def _check_resumable(recipe: Recipe, checkpoint: str) -> None:
    """Warn of settings that differ from those of the run that saved a checkpoint.

    Raises:
        RecipeError: with them the checkpoint is of another model, or it holds no optimiser's state.
    """
    if not Path(checkpoint, TRAINER_STATE_NAME).is_file():
        last = get_last_checkpoint(checkpoint)
        raise RecipeError(
            f"resume_from_checkpoint {checkpoint}: no checkpoint; "
            f"{f'name {last}, which is in it' if last else 'name a folder checkpoint-N, or true for the last one'}"
        )
    if not any(Path(checkpoint).glob("optimizer*")):
        raise RecipeError(
            f"{checkpoint}: no state of the optimiser there, which save_only_model leaves out, so that no training "
            "can go on from it; name another --output_dir"
        )
    run = Path(checkpoint).parent
    changed = recipe.changed_since(run) if (run / "recipe.yaml").is_file() else []
    if of_model := [name for name in changed if name in MODEL_SETTINGS]:
        raise RecipeError(f"{checkpoint} is of a run with another {' and '.join(of_model)}; name another --output_dir")
    if changed:
        names = ", ".join(changed)
        logger.warning("%s goes on with other settings than the run in its folder had: %s", checkpoint, names)


def callbacks(recipe: Recipe) -> list[EarlyStopping]:
    if recipe.prompt.early_stopping_patience is None:
        return []
    return [EarlyStopping(recipe.prompt.early_stopping_patience, recipe.prompt.early_stopping_threshold)]


def save_adapter(
    model: PeftModel | PreTrainedModel,
    folder: Path,
    initial: torch.Tensor | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """The adapter, and what `inspect` compares it with; a whole model with its tokenizer.

    Args:
        state_dict: as `full_state_dict` gives it.
    """
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=state_dict)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's placeholder card; ours follows the evaluation
        if initial is not None:
            save_file({"initial_prompt": initial}, partial / "initial_prompt.safetensors")
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def save_recipe(recipe: Recipe, folder: Path, template: Template | None = None, comment: str = "") -> None:
    """What `predict` needs to build the same prompt again."""
    with atomic_write(folder / "recipe.yaml") as file:
        file.write(comment)
        file.write(to_yaml(recipe.resolved()))
    if template:
        with atomic_write(folder / "template.yaml") as file:
            file.write(template.to_yaml())
