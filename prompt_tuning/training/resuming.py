"""Resume a training with its present settings; Trainer takes many of them from the checkpoint and does not say so."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import has_length

from prompt_tuning.errors import RecipeError
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

STATE_FILES = {
    "the optimiser": Path(OPTIMIZER_NAME).stem + "*",
    "the learning rate's schedule": SCHEDULER_NAME,
    "the random numbers": "rng_state*",
}


def check_whole(checkpoint: Path) -> None:
    """Raise a RecipeError for a checkpoint without a state, which Trainer would start anew without a word."""
    missing = [name for name, pattern in STATE_FILES.items() if not any(checkpoint.glob(pattern))]
    if missing:
        raise RecipeError(
            f"{checkpoint}: no state of {', '.join(missing)} there, which save_only_model leaves out, so that no "
            "training can continue it; name another --output_dir"
        )


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
    """Log, evaluate and save as often as the settings say, and compare scores of their metric alone."""
    state.compute_steps(args, state.max_steps)
    name = f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}"
    if state.best_metric is not None and all(entry.get(name) != state.best_metric for entry in state.log_history):
        logger.warning("the best score so far, %s, is not one of %s, and does not count", state.best_metric, name)
        state.best_metric = None
        state.best_global_step = None
        state.best_model_checkpoint = None
