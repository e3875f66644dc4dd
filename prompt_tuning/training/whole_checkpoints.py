"""Find out whether a checkpoint is whole: all its files are there, and each has the form that its kind has."""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import zipfile
import zlib
from dataclasses import fields
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any, TypedDict

from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from prompt_tuning.errors import DataError, RecipeError, first_line
from prompt_tuning.models.weight_files import ShardIndex, shard_names
from prompt_tuning.support.json_types import Place, check_value
from prompt_tuning.support.json_values import MAX_BYTES, parse_json, read_bounded
from prompt_tuning.support.run_folder import RunFolder

logger = logging.getLogger(__name__)

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
    whole = [path for path in RunFolder(checkpoint.parent).checkpoints() if not checkpoint_problem(path, **needs)]
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
    for checkpoint in RunFolder(run).checkpoints():
        problem = checkpoint_problem(checkpoint, needs_best=needs_best, needs_scaler=needs_scaler)
        if problem is None:
            for broken in problems:
                logger.warning("%s. The training resumes from %s, which is whole.", broken, checkpoint.name)
            return checkpoint
        problems.append(f"{checkpoint}: {problem}")
    if problems:
        raise RecipeError("\n".join(f"{broken}. {NO_WHOLE}" for broken in problems))
    return None


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
    # Files of N processes are numbered from 0. A stranger may number one by billions.
    names += [f"rng_state_{process}.pth" for process, _ in enumerate(checkpoint.glob("rng_state_*.pth"))]
    for folder in {path.parent for path in chain(checkpoint.glob("*/*.distcp"), checkpoint.glob("*/.metadata"))}:
        metadata = folder / ".metadata"  # A pickle of torch.distributed.checkpoint, in which only the names are read.
        names.append(f"{folder.name}/{metadata.name}")
        shards = set(re.findall(rb"__\d+_\d+\.distcp", metadata.read_bytes() if metadata.is_file() else b""))
        names += sorted(f"{folder.name}/{shard.decode()}" for shard in shards)
    return names


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
        elif file.name == ".metadata" and file.stat().st_size > MAX_BYTES:
            return f"larger than {MAX_BYTES:,} bytes"
        elif file.suffix == ".distcp" and not _last_bytes(file, 22).startswith(ZIP_END):
            return "its end is missing"
    except NOT_WHOLE as error:
        return first_line(error)
    return None


def _last_bytes(file: Path, number: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(-min(number, file.stat().st_size), os.SEEK_END)
        return opened.read()
