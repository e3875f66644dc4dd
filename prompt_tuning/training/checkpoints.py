"""Make and remove a checkpoint by one rename, so that it is whole or absent whenever the process is killed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import sort_checkpoints

from prompt_tuning.support.files import apply_umask

PARTIAL = ".partial-"
MARK = ".of-first-process"


@contextmanager
def atomic_checkpoint(checkpoint: Path) -> Iterator[Path]:
    """Yield a folder in which to make a checkpoint; it gets its name only if the block ends without an error.

    Every process has to enter the block. A checkpoint of this name is replaced: the run went back to an earlier one.
    """
    state = PartialState()
    partial = checkpoint.with_name(PARTIAL + checkpoint.name)
    try:
        yield partial
        if state.is_main_process:
            partial.mkdir(parents=True, exist_ok=True)
            (partial / MARK).touch()
        state.wait_for_everyone()
        # A machine that finds the mark of the first process shares its disk, and would move the same folder again.
        moves = state.is_main_process or (state.is_local_main_process and not (partial / MARK).exists())
        state.wait_for_everyone()  # All machines have looked.
        if moves and (partial / checkpoint.name).is_dir():
            if checkpoint.is_dir():
                remove_folder(checkpoint)
            apply_umask(partial / checkpoint.name)
            os.replace(partial / checkpoint.name, checkpoint)
        state.wait_for_everyone()  # No machine removes what another one has not moved.
    finally:
        if state.is_local_main_process:
            shutil.rmtree(partial, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no half of it is ever under its name; of a link only the link."""
    partial = folder.with_name(f"{PARTIAL}{folder.name}-{secrets.token_hex(4)}")
    os.replace(folder, partial)
    if partial.is_symlink():
        partial.unlink()
    else:
        shutil.rmtree(partial, ignore_errors=True)


def rotate_checkpoints(run: Path, limit: int | None, best: str | None) -> None:
    """Keep `limit` checkpoints, always with the last and the best; Trainer's rotation, by `remove_folder`."""
    if not limit or limit < 0:
        return
    checkpoints = sort_checkpoints(str(run), use_mtime=True, best_model_checkpoint=best)
    num_kept = max(limit, len({best or checkpoints[-1], checkpoints[-1]}))
    for old in checkpoints[:-num_kept]:
        remove_folder(Path(old))


def load_named_adapter(model: PeftModel, checkpoint: Path) -> None:
    """Load an adapter that is not called default from its own folder in a checkpoint, where Trainer does not look."""
    folder = checkpoint / model.active_adapter
    if folder.is_dir():
        model.load_adapter(str(folder), model.active_adapter, is_trainable=True)


class KeepOnlyBest(TrainerCallback):
    """With a `save_total_limit` of 1, remove all checkpoints except the best by a rename.

    Trainer removes the last checkpoint file by file after it has logged the training's time.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Remove the checkpoints when the training's time is logged."""
        best = state.best_model_checkpoint
        if "train_runtime" not in logs or args.save_total_limit != 1 or not args.should_save or not best:
            return
        for checkpoint in map(Path, sort_checkpoints(args.output_dir)):
            if not checkpoint.samefile(best):
                remove_folder(checkpoint)
