"""Find the checkpoint that a training resumes from, and never overwrite what an earlier run left."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.engine.adapter_weights import check_weights
from prompt_tuning.errors import RecipeError
from prompt_tuning.models.adapter_config import read_adapter_config
from prompt_tuning.models.base_model import is_same_model, read_base_model
from prompt_tuning.recipe.loading import SCORED_SCHEDULES
from prompt_tuning.recipe.recipe import Recipe, changed_settings
from prompt_tuning.runs.earlier_run import SAVED, check_unused, held_training
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.yaml_files import read_yaml
from prompt_tuning.training.whole_checkpoints import check_whole, newest_whole_checkpoint

logger = logging.getLogger(__name__)

MODEL_SETTINGS = (
    "method", "num_virtual_tokens", "num_ranks", "tasks", "residual", "encoder_hidden_size", "prefix_projection",
    "encoder_reparameterization_type", "prefix_encoder", "prefix_decoder", "prefix_cross", "lora_r", "lora_alpha",
    "lora_target_modules", "lora_use_rslora", "lora_use_dora", "layer_vectors", "trained_text",
)  # fmt: skip
"""The settings that a checkpoint's weights depend on: with other values they do not fit, or mean something else."""

STATE_SETTINGS = (
    "optim", "optim_args", "seed", "data_seed", "train_sampling_strategy", "length_column_name",
    "dataloader_drop_last", "buffer_size", "group_shared",
)  # fmt: skip
"""The settings that a checkpoint's state depends on: the optimiser's, and the order of the rows."""

SCORE_SETTINGS = ("metric_for_best_model", "greater_is_better")
"""The settings that chose the best checkpoint, if one was chosen."""

STREAM_SETTINGS = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""The settings by which Trainer counts the rows of a stream that were trained on."""


BASE_MODEL = "base model"
"""What `changed_since` calls a base model with other weights than in the run."""


def changed_since(recipe: Recipe, run: Path) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from those of a run, except the checkpoint to resume from, with both values.

    A base model that moved is no change. A base model with other weights is one, whatever its name.

    Args:
        recipe: the recipe.
        run: the run's folder. Nothing differs from a folder without a recipe.

    Raises:
        PromptTuningError: the recipe of the run cannot be read.
    """
    file = RunFolder(run).recipe
    if not file.is_file():
        return {}
    saved, settings = read_yaml(file, RecipeError, dict[str, Any]), recipe.resolved()
    names = [name for name in changed_settings(saved, settings) if name != "resume_from_checkpoint"]
    base, _ = read_base_model(run)
    same = is_same_model(base, str(recipe.model.model_name_or_path), recipe.model.model_revision)
    if same is not None:
        names = [name for name in names if name != "model_name_or_path"] + ([] if same else [BASE_MODEL])
    return {name: (saved.get(name), settings.get(name)) for name in names}


def checkpoint_to_resume(recipe: Recipe, folder: Path) -> str | None:
    """Return the checkpoint to resume from; None to start from the beginning.

    Raises:
        RecipeError: the checkpoint cannot be resumed with these settings or is broken, or training would overwrite
            another run.
    """
    setting = recipe.training.resume_from_checkpoint
    needs = {"needs_best": recipe.training.load_best_model_at_end, "needs_scaler": recipe.training.fp16}
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if setting and setting.lower() not in ("true", "auto"):
        if not Path(setting).is_dir():
            raise RecipeError(f"resume_from_checkpoint {setting}: no such folder; true and auto take the last one")
        _check_is_checkpoint(Path(setting))
        check_whole(Path(setting), **needs)
        _check_resumable(recipe, setting)
        if Path(setting).resolve().parent != folder.resolve():
            _check_nothing_lost(recipe, folder)
        return setting
    if setting and last:
        # `last` may be broken, and then it is reported and an earlier one is taken.
        whole = newest_whole_checkpoint(folder, **needs)
        _check_resumable(recipe, str(whole))
        return str(whole)
    if setting and setting.lower() == "true":
        raise RecipeError(f"resume_from_checkpoint: no checkpoint in {folder}; `auto` starts from the beginning then")
    _check_nothing_lost(recipe, folder)
    return None


def _check_nothing_lost(recipe: Recipe, folder: Path) -> None:
    """Raise a RecipeError if training would overwrite something; a run that stopped early may be repeated."""
    resumes = recipe.training.resume_from_checkpoint and RunFolder(folder).recipe.is_file()
    if resumes and held_training(folder) in SAVED and not changed_since(recipe, folder):
        return  # The run stopped between its training and its evaluation, and saved no checkpoint.
    check_unused(folder)


def _check_is_checkpoint(folder: Path) -> None:
    """Raise a RecipeError for a folder that is not a checkpoint, even a broken one."""
    if (folder / TRAINER_STATE_NAME).is_file() or folder.name.startswith(PREFIX_CHECKPOINT_DIR):
        return
    last = get_last_checkpoint(str(folder))
    advice = f"name {last}, which is in it" if last else "name a folder checkpoint-N, or true for the last one"
    raise RecipeError(f"resume_from_checkpoint {folder}: no checkpoint; {advice}")


def _check_resumable(recipe: Recipe, checkpoint: str) -> None:
    """Warn of settings that differ from those of the run that saved a checkpoint, which is whole.

    Raises:
        RecipeError: the settings do not fit the checkpoint's weights or state.
        AdapterError: the checkpoint's weights are damaged.
    """
    run = RunFolder(Path(checkpoint))
    if run.adapter_config.is_file():
        check_weights(read_adapter_config(run), run.path)
    changed = changed_since(recipe, Path(checkpoint).parent)
    unfit = [name for name in changed if name in (*MODEL_SETTINGS, BASE_MODEL)] + _changed_state(recipe, changed)
    if unfit:
        raise RecipeError(f"{checkpoint} is of a run with another {' and '.join(unfit)}; name another --output_dir")
    if changed:
        logger.warning(
            "%s is continued with other settings than the run in its folder had: %s", checkpoint, ", ".join(changed)
        )


def _changed_state(recipe: Recipe, changed: dict[str, tuple[Any, Any]]) -> list[str]:
    """Return those of the changed settings that a checkpoint's state depends on."""
    defaults = {field.name: field.default for field in fields(PromptTuningArguments)}
    values = recipe.training.to_dict()
    names = []
    for name in changed:
        # A recipe leaves a setting out that has its default.
        before = defaults.get(name) if changed[name][0] is None else changed[name][0]
        after = values.get(name, changed[name][1])
        if name == "lr_scheduler_type":
            depends = before in SCORED_SCHEDULES or after in SCORED_SCHEDULES
        elif name == "learning_rate":
            depends = values["lr_scheduler_type"] in SCORED_SCHEDULES
        elif name in SCORE_SETTINGS:
            depends = before is not None and after is not None
        else:
            depends = name in STATE_SETTINGS or (recipe.data.streaming and name in STREAM_SETTINGS)
        if depends and before != after:
            names.append(name)
    return names
