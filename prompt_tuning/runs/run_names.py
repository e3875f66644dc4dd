"""Read the names of runs on a command line: each a folder or hub id, or NAME=RUN. It imports nothing large."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from prompt_tuning.errors import RecipeError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def run_names(words: Iterable[str]) -> dict[str, str]:
    """Return the folder or hub id of each run by the name of its task.

    Args:
        words: of each run its folder or hub id, or NAME=RUN.

    Raises:
        RecipeError: two runs have one name, or a name cannot be that of a task.
    """
    names: dict[str, str] = {}
    for word in words:
        name, run = run_name(word)
        if name in names:
            raise RecipeError(f"{word}: another run has the name {name}. Name the task otherwise, as NAME=RUN.")
        names[name] = run
    return names


def run_name(word: str) -> tuple[str, str]:
    """Return the name of a task and the folder or hub id of its run.

    Raises:
        RecipeError: the name cannot be that of a task.
    """
    name, equals, run = word.rpartition("=")
    if Path(word).is_dir() or not equals:
        name, run = "", word
    name = name or Path(run.partition("@")[0]).resolve().name
    if not NAME.fullmatch(name):
        raise RecipeError(
            f"{run}: {name!r} cannot be a task's name. Give one of letters, digits, '.', '_' and '-', as NAME=RUN."
        )
    return name, run
