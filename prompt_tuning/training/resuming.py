"""Resume a training with its present settings; Trainer takes many of them from the checkpoint and does not say so."""

from __future__ import annotations

import contextlib
import logging
import math
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainerState, TrainingArguments
from transformers.trainer import SCALER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import has_length

from prompt_tuning.errors import PromptTuningError, RecipeError, first_line
from prompt_tuning.support.text import counted

logger = logging.getLogger(__name__)

FLAGS = {
    "initial_lr": "learning_rate",
    "weight_decay": "weight_decay",
    "betas": "adam_beta1 and adam_beta2",
    "eps": "adam_epsilon",
}
"""The flags of Trainer that an optimiser keeps in its groups, by their names there."""

CHANGED_SETTINGS = "changed_settings"
"""The entry of log_history, with the step from which settings differ, and of results.json."""

STATE_READERS = {
    "_init_training_state", "_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_rng_state",
    "_load_scaler", "check_optimizer_state", "interrupted_order", "load_split_states", "restore_hyperparameters",
    "restore_intervals",
}  # fmt: skip
"""The functions that read a checkpoint's state or compute with it first. The others are those of the optimisers."""

OPTIMIZERS = str(Path(torch.optim.__file__).parent)


def report_missing_states(checkpoint: Path, args: TrainingArguments) -> None:
    """Log which states a checkpoint does not have, because it is of a training with other settings.

    Args:
        checkpoint: the folder to resume from, which is whole.
        args: the settings of the resumed training.
    """
    several = [f"rng_state_{process}.pth" for process in range(args.world_size)]
    files = several if len(several) > 1 else ["rng_state.pth"]
    states = dict.fromkeys(files, "its process draws other random numbers")
    if args.fp16:
        states[SCALER_NAME] = "the scale of the loss starts anew"
    for file, consequence in states.items():
        if not (checkpoint / file).is_file():
            logger.warning("%s: it has no %s, so that %s", checkpoint, file, consequence)


@contextlib.contextmanager
def resumed(checkpoint: Path | None, rows: Any, args: TrainingArguments) -> Iterator[None]:
    """Check where a training resumes, and raise a RecipeError for an error of the code that reads the saved state.

    A file that is whole may hold anything, and Trainer and torch check little of what they read.

    Args:
        checkpoint: the folder to resume from, if any.
        rows: the training split.
        args: the settings of the training.
    """
    if checkpoint:
        check_position(checkpoint, rows, args)
        report_missing_states(checkpoint, args)
    try:
        yield
    except (PromptTuningError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        reads = any(frame.name in STATE_READERS or frame.filename.startswith(OPTIMIZERS) for frame in frames)
        if not checkpoint or not reads:
            raise
        raise RecipeError(
            f"{checkpoint}: its state does not fit this training ({type(error).__name__}: {first_line(error)}). Name "
            "another checkpoint, or start another training from its adapter."
        ) from error


def check_position(checkpoint: Path, rows: Any, args: TrainingArguments) -> None:
    """Raise a RecipeError if an epoch had another number of steps, so that rows would be repeated or left out.

    Args:
        checkpoint: the folder to resume from.
        rows: the training split; nobody knows the length of a stream, so that a stream is not checked.
        args: the settings of the resumed training.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if args.ignore_data_skip or not state.epoch or not has_length(rows):
        return
    batches = len(rows) / (args.per_device_train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    steps = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    saved_steps = math.ceil(state.global_step / state.epoch - 1e-6)
    if steps != saved_steps:
        raise RecipeError(
            f"{checkpoint}: an epoch had {counted(saved_steps, 'step')}, and these rows and batches make {steps}, so "
            "that rows would be repeated or left out. Keep the rows and the product of per_device_train_batch_size, "
            "gradient_accumulation_steps and processes; or set ignore_data_skip: true, which starts a new pass over "
            "all rows"
        )


def hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each group of a new optimiser, with its peak learning rate as `initial_lr`."""
    groups = []
    for group in optimizer.param_groups:
        settings = {name: value for name, value in group.items() if name != "params"}
        groups.append({"initial_lr": settings.get("lr")} | settings)
    return groups


def check_optimizer_state(optimizer: Optimizer) -> None:
    """Raise a ValueError unless the loaded state of one of torch's optimisers has the shapes of the parameters.

    torch's fused step checks no shape, and would read and write outside of a smaller tensor.
    """
    if not type(optimizer).__module__.startswith("torch.optim"):
        return  # Others keep sums of rows and of blocks.
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                raise ValueError(f"{name} of a parameter is no tensor of numbers")
            shape = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed keeps the shape of what it splits.
            if value.shape != (torch.Size() if name == "step" else shape):
                raise ValueError(f"{name} has the shape {tuple(value.shape)}, its parameter {tuple(shape)}")


def restore_hyperparameters(
    optimizer: Optimizer, scheduler: LRScheduler, groups: list[dict[str, Any]], args: TrainingArguments
) -> None:
    """Train on with the settings that the optimiser and the schedule had before a checkpoint replaced them.

    Args:
        optimizer: after its state was loaded.
        scheduler: after its state was loaded. Any other than a LambdaLR keeps its learning rate.
        groups: `hyperparameters` of the optimiser before its state was loaded.
        args: the settings of the resumed training.

    Raises:
        RecipeError: the checkpoint is of an optimiser of another kind.
    """
    names = set(FLAGS) | {pair.partition("=")[0].strip() for pair in (args.optim_args or "").split(",")}
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        unknown = group.keys() - settings.keys() - {"params"}
        if unknown:
            raise RecipeError(
                f"optim {args.optim.value}: the checkpoint is of an optimiser of another kind, with "
                f"{', '.join(sorted(unknown))}. Set the optimiser that it was trained with, or start another training "
                "from its adapter"
            )
        for name in sorted(names & group.keys() & settings.keys()):
            if group[name] != settings[name]:
                logger.info("%s: %s from here on, %s before", FLAGS.get(name, name), settings[name], group[name])
                group[name] = settings[name]
    if isinstance(scheduler, LambdaLR):
        peaks = [group["initial_lr"] for group in optimizer.param_groups]
        rates = [peak * shape(scheduler.last_epoch) for peak, shape in zip(peaks, scheduler.lr_lambdas, strict=True)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler.load_state_dict(scheduler.state_dict() | {"base_lrs": peaks, "_last_lr": rates})


def restore_intervals(state: TrainerState, args: TrainingArguments) -> None:
    """Log, evaluate and save as often as the settings say, and compare only scores of their metric."""
    state.compute_steps(args, state.max_steps)
    name = f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}"
    if state.best_metric is not None and all(entry.get(name) != state.best_metric for entry in state.log_history):
        logger.warning("the best score so far, %s, is not one of %s, and does not count", state.best_metric, name)
        state.best_metric = None
        state.best_global_step = None
        state.best_model_checkpoint = None
