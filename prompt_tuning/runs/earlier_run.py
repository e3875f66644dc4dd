"""Refuse an output folder that holds files of others or an earlier training. It imports nothing large."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prompt_tuning.errors import RecipeError
from prompt_tuning.support.run_folder import RunFolder

SAVED = (RunFolder.ADAPTER_WEIGHTS, RunFolder.ADAPTER_CONFIG, RunFolder.MODEL_WEIGHTS, RunFolder.MODEL_INDEX)
"""The files that a training writes, which a folder may also hold from somebody else."""


def check_new_run(folder: Path) -> None:
    """Raise what `train` raises of its output folder if it does not resume, unless another command writes there now.

    Raises:
        RecipeError: the folder holds files of others or an earlier training.
        DataError: a link leads a folder that would be written out of this folder.
    """
    if not RunFolder(folder).is_held():
        check_folder(folder, RunFolder.TRAINED)
        check_unused(folder)


def check_folder(folder: Path, names: Sequence[str], *, written_before: bool = False) -> None:
    """Raise a RecipeError if a folder is not a run, and has a file that a run would replace.

    Args:
        folder: an output folder.
        names: the files that will be written in it.
        written_before: the folder is one of this package.

    Raises:
        DataError: a link leads a folder that would be written out of this folder.
    """
    RunFolder(folder).check_links(*(folder / name for name in names if (folder / name).is_dir()))
    held = held_names(folder, names)
    if held and not written_before and not RunFolder(folder).is_run():
        raise RecipeError(
            f"output_dir {folder}: it holds {held[0]}, which would be replaced, and is not a run of prompt-tuning. "
            f"Name another --output_dir, or move {folder / held[0]}."
        )


def check_inner_folder(folder: Path) -> None:
    """Raise the errors of `check_folder` for a run in a study's folder, also if the run is a link out of it."""
    RunFolder(folder.parent).check_links(folder)
    check_folder(folder, RunFolder.TRAINED)


def held_names(folder: Path, names: Sequence[str]) -> list[str]:
    """Return those of the names that something in a folder has."""
    return [name for name in names if os.path.lexists(folder / name)]


def held_training(folder: Path) -> str | None:
    """Return what an earlier training left in a folder: its last checkpoint, the finished run, or else a file."""
    run = RunFolder(folder)
    names = [path.name for path in run.checkpoints()[:1]]
    names += ["a finished run"] if run.results.exists() else []
    names += [name for name in SAVED if (folder / name).exists()]
    return names[0] if names else None


def check_unused(folder: Path) -> None:
    """Raise a RecipeError if a training would overwrite what an earlier one left in a folder."""
    held = held_training(folder)
    if held:
        advice = "continue it with --resume_from_checkpoint true, " if held.startswith("checkpoint-") else ""
        raise RecipeError(f"{folder} holds {held} already; {advice}name another --output_dir, or remove the folder")
