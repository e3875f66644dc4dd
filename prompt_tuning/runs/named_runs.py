"""Find the folders of several named runs, here or on the hub."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.runs.run_names import run_name, run_names
from prompt_tuning.support.run_folder import RunFolder


def named_runs(runs: Iterable[str]) -> dict[str, RunFolder]:
    """Return the folders of runs by the names of their tasks.

    Args:
        runs: of each its folder or hub id, or NAME=RUN.

    Raises:
        RecipeError: two runs have one name, or a name cannot be that of a task.
        AdapterError: the hub has no such run.
    """
    return {name: RunFolder(adapter_folder(run)) for name, run in run_names(runs).items()}


def named_run(word: str) -> tuple[str, RunFolder]:
    """Return the name of a task and the run's folder, of RUN or NAME=RUN.

    Raises:
        RecipeError: the name cannot be that of a task.
        AdapterError: the hub has no such run.
    """
    name, run = run_name(word)
    return name, RunFolder(adapter_folder(run))
