"""Resume a training with its present settings; Trainer takes many of them from the checkpoint and does not say so."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import struct
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from prompt_tuning.errors import DataError, PromptTuningError, RecipeError, first_line
from prompt_tuning.models.weight_files import ShardIndex, shard_names
from prompt_tuning.support.json_types import Place, check_value
from prompt_tuning.support.json_values import MAX_BYTES, parse_json, read_bounded
from prompt_tuning.support.run_folder import RunFolder
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

NO_WHOLE = "No checkpoint of this run is whole. Name another --output_dir, or remove the folder."
NOT_WHOLE = (
    OSError, ValueError, SafetensorError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError,
    RuntimeError, OverflowError, DataError,
)  # fmt: skip
"""The errors of reading a damaged file as JSON, safetensors or a zip archive."""

WEIGHTS = (
    RunFolder.ADAPTER_WEIGHTS, f"*/{RunFolder.ADAPTER_WEIGHTS}", "model*.safetensors", "pytorch_model*",
)  # fmt: skip
"""The weights of a checkpoint: of an adapter with the default name or another one, a model, and FSDP."""


class PatienceLeft(TypedDict):
    """What `EarlyStopping` saves of itself."""

    early_stopping_patience_counter: int


class SavedEarlyStopping(TypedDict):
    """What Trainer saves of `EarlyStopping`."""

    attributes: PatienceLeft


class SavedControl(TypedDict):
    """What Trainer saves of every training's callbacks, and replaces in the next checkpoint."""

    TrainerControl: Any


class SavedCallbacks(SavedControl, total=False):
    """What Trainer saves of callbacks."""

    EarlyStopping: SavedEarlyStopping


class SavedState(TypedDict):
    """The fields of Trainer's state that a resumed training reads."""

    global_step: int
    epoch: float | None
    max_steps: int
    log_history: list[dict[str, Any]]
    best_metric: float | None
    total_flos: float
    num_input_tokens_seen: int
    stateful_callbacks: SavedCallbacks


JSON_TYPES: dict[str, Any] = {TRAINER_STATE_NAME: SavedState, "*.safetensors.index.json": ShardIndex}
"""The types of a checkpoint's JSON files, by patterns of their names; the others may hold anything."""

STATE_READERS = {
    "_init_training_state", "_load_optimizer_and_scheduler", "_load_rng_state", "_load_scaler",
    "check_optimizer_state", "interrupted_order", "restore_hyperparameters", "restore_intervals",
}  # fmt: skip
"""The functions that read a checkpoint's state or compute with it first. The others are those of the optimisers."""

OPTIMIZERS = str(Path(torch.optim.__file__).parent)

ZIP_END = b"PK\x05\x06"
"""The mark of the last 22 bytes of a zip archive, which each tensor in a .distcp file is."""

STATE_FILES = {
    "Trainer": TRAINER_STATE_NAME,
    "the optimiser": Path(OPTIMIZER_NAME).stem + "*",
    "the learning rate's schedule": SCHEDULER_NAME,
    "the random numbers": "rng_state*",
}


def check_whole(checkpoint: Path, *, needs_best: bool, needs_scaler: bool = False) -> None:
    """Raise a RecipeError for a checkpoint from which the training would continue as another one, or fail.

    Args:
        checkpoint: the folder to resume from.
        needs_best: the best checkpoint is loaded at the end.
        needs_scaler: the training scales its loss, as it does in float16.
    """
    needs = {"needs_best": needs_best, "needs_scaler": needs_scaler}
    problem = checkpoint_problem(checkpoint, **needs)
    if problem is None:
        return
    whole = [path for path in _checkpoints(checkpoint.parent) if not checkpoint_problem(path, **needs)]
    advice = f"Name {whole[0]}, the newest whole checkpoint." if whole else NO_WHOLE
    raise RecipeError(f"{checkpoint}: {problem}. {advice}")


def newest_whole_checkpoint(run: Path, *, needs_best: bool, needs_scaler: bool = False) -> Path | None:
    """Return the newest checkpoint of a run whose files are whole, and report the newer ones that are not.

    Args:
        run: a run's folder.
        needs_best: the best checkpoint is loaded at the end.
        needs_scaler: the training scales its loss, as it does in float16.

    Returns:
        None if the run has no checkpoint.

    Raises:
        RecipeError: it has some, and all are broken.
    """
    problems: list[str] = []
    for checkpoint in _checkpoints(run):
        problem = checkpoint_problem(checkpoint, needs_best=needs_best, needs_scaler=needs_scaler)
        if problem is None:
            for broken in problems:
                logger.warning("%s. The training resumes from %s, which is whole.", broken, checkpoint.name)
            return checkpoint
        problems.append(f"{checkpoint}: {problem}")
    if problems:
        raise RecipeError("\n".join(f"{broken}. {NO_WHOLE}" for broken in problems))
    return None


def _checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first."""
    steps = {}
    for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rpartition("-")[2]
        if number.isdecimal() and path.is_dir():
            steps[int(number)] = path
    return [steps[step] for step in sorted(steps, reverse=True)]


def checkpoint_problem(checkpoint: Path, *, needs_best: bool = False, needs_scaler: bool = False) -> str | None:
    """Return what is missing in a checkpoint or damaged, or None.

    Only what a file's own form shows is found: JSON, the header and length of safetensors, the sums of torch's files.

    Args:
        checkpoint: the folder.
        needs_best: also look at the best checkpoint, which is loaded at the end.
        needs_scaler: also look for the state by which the loss is scaled, if the run has saved any.
    """
    if checkpoint.is_symlink():
        return f"it is a link to {os.path.realpath(checkpoint)}"
    for file in sorted(checkpoint.rglob("*")):
        problem = _damage(file)
        if problem:
            return f"{file.relative_to(checkpoint)} is damaged ({problem})"
    problem = _missing_part(checkpoint, needs_scaler=needs_scaler)
    if problem:
        return problem
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    unknown = state.keys() - {field.name for field in fields(TrainerState)}
    if unknown:
        return f"{TRAINER_STATE_NAME} has {min(unknown)}, which this version of transformers does not know"
    if type(state.get("best_global_step")) not in (int, NoneType):
        return f"{TRAINER_STATE_NAME}: best_global_step is no step"
    best = checkpoint.with_name(f"{PREFIX_CHECKPOINT_DIR}-{state.get('best_global_step')}")
    if needs_best and state.get("best_global_step") and best != checkpoint:
        problem = checkpoint_problem(best) if best.is_dir() else "missing"
        return problem and f"its best checkpoint {best.name}: {problem}"
    return None


def _missing_part(checkpoint: Path, *, needs_scaler: bool) -> str | None:
    """Return which state or weights a checkpoint lacks, or that DeepSpeed would have to read them; else None."""
    if any(checkpoint.glob("global_step*")):
        return "it is of DeepSpeed, which would run code that such a file holds; it is not resumed"
    missing = [name for name, pattern in STATE_FILES.items() if not any(checkpoint.glob(pattern))]
    if missing:
        reason = ", which save_only_model leaves out" if "the optimiser" in missing else ""
        return f"no state of {', '.join(missing)} there{reason}"
    if not any(chain.from_iterable(checkpoint.glob(pattern) for pattern in WEIGHTS)):
        return "no weights there"
    absent = [
        name for name in _expected_files(checkpoint, needs_scaler=needs_scaler) if not (checkpoint / name).is_file()
    ]
    if absent:
        return f"no {absent[0]} there"
    return None


def _expected_files(checkpoint: Path, *, needs_scaler: bool) -> list[str]:
    """Return the names of the files that other files of a checkpoint, or of the run, ask for."""
    has_scaler = any(checkpoint.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{SCALER_NAME}"))
    names = [SCALER_NAME] if needs_scaler and has_scaler else []
    for index in checkpoint.glob("*.safetensors.index.json"):
        names += shard_names(index)
    processes = [int(path.stem.rpartition("_")[2]) for path in checkpoint.glob("rng_state_*.pth")]
    names += [f"rng_state_{process}.pth" for process in range(max(processes, default=-1))]
    for folder in {path.parent for path in chain(checkpoint.glob("*/*.distcp"), checkpoint.glob("*/.metadata"))}:
        metadata = folder / ".metadata"  # A pickle of torch.distributed.checkpoint, in which only the names are read.
        names.append(f"{folder.name}/{metadata.name}")
        shards = set(re.findall(rb"__\d+_\d+\.distcp", metadata.read_bytes() if metadata.is_file() else b""))
        names += sorted(f"{folder.name}/{shard.decode()}" for shard in shards)
    return names


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


def _damage(file: Path) -> str | None:
    """Return what is wrong with the form of a file, or None; torch's files are zip archives and are not unpickled."""
    try:
        if not (file.is_file() or file.is_dir()):
            return "it is not a file"  # A pipe would never end.
        if file.suffix == ".json":
            kind = next((kind for pattern, kind in JSON_TYPES.items() if file.match(pattern)), Any)
            value = parse_json(read_bounded(file, MAX_BYTES))
            check_value(value, kind, Place(file.name, advice="Copy it again."))
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                pass
        elif file.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(file) as archive:
                # torch compresses nothing. To unpack what somebody else has compressed could take hours.
                if sum(entry.file_size for entry in archive.infolist()) > file.stat().st_size:
                    return "it is compressed"
                broken = archive.testzip()
            return broken and f"the sum of {broken} is wrong"
        elif file.suffix == ".distcp" and not _last_bytes(file, 22).startswith(ZIP_END):
            return "its end is missing"
    except NOT_WHOLE as error:
        return first_line(error)
    return None


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


def _last_bytes(file: Path, number: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(-min(number, file.stat().st_size), os.SEEK_END)
        return opened.read()


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
            if value.shape != (torch.Size() if name == "step" else parameter.shape):
                raise ValueError(f"{name} has the shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}")


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
