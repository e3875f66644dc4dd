"""Name several runs: each by its folder, or as NAME=RUN."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from prompt_tuning.errors import RecipeError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.support.run_folder import RunFolder

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def named_runs(runs: Iterable[str]) -> dict[str, RunFolder]:
    """Return the folders of runs by the names of their tasks.

    Args:
        runs: of each its folder or hub id, or NAME=RUN.

    Raises:
        RecipeError: two runs have one name, or a name cannot be that of a task.
        AdapterError: the hub has no such run.
    """
    named: dict[str, RunFolder] = {}
    for word in runs:
        name, run = named_run(word)
        if name in named:
            raise RecipeError(f"{word}: another run has the name {name}. Name the task otherwise, as NAME=RUN.")
        named[name] = run
    return named


def named_run(word: str) -> tuple[str, RunFolder]:
    """Return the name of a task and the run's folder, of RUN or NAME=RUN.

    Raises:
        RecipeError: the name cannot be that of a task.
        AdapterError: the hub has no such run.
    """
    name, equals, run = word.rpartition("=")
    if Path(word).is_dir() or not equals:
        name, run = "", word
    folder = RunFolder(adapter_folder(run))
    name = name or Path(run.partition("@")[0]).resolve().name
    if not NAME.fullmatch(name):
        raise RecipeError(
            f"{run}: {name!r} cannot be a task's name. Give one of letters, digits, '.', '_' and '-', as NAME=RUN."
        )
    return name, folder
