"""Read prompts.json of an export. It imports nothing large, so that a wrong folder or task is refused at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from prompt_tuning.errors import DataError
from prompt_tuning.support.files import is_plain_name, read_json
from prompt_tuning.support.json_types import Limits
from prompt_tuning.support.run_folder import RunFolder


class AlwaysSaved(TypedDict):
    """What prompts.json holds of every task."""

    ids: list[int]
    text_ids: list[int]
    template: str
    stop: list[str]
    max_tokens: int
    score: dict[str, Any] | None
    source_checksum: Annotated[str, Limits(pattern="[0-9a-f]{64}")]


class SavedTask(AlwaysSaved, total=False):
    """A task in prompts.json."""

    logit_bias: dict[str, Annotated[int, Limits(least=-100)]]


class SavedPrompts(TypedDict):
    """The content of prompts.json."""

    num_embeddings: int
    tasks: dict[str, SavedTask]


@dataclass(frozen=True)
class SavedPrompt:
    """A task of an export, as its file has it.

    Args:
        file: prompts.json.
        num_embeddings: V, the number of embeddings of the base model.
        task: the entry of the task.
    """

    file: Path
    num_embeddings: int
    task: SavedTask


def read_saved_task(folder: str | Path, name: str) -> SavedPrompt:
    """Return a task of the folder that `export` wrote.

    Raises:
        DataError: there is no prompts.json, it is damaged, or it has no such task.
    """
    file = RunFolder(Path(folder)).prompts
    if not file.is_file():
        raise DataError(f"{folder}: no {file.name} there. Name a folder that `prompt-tuning export` wrote.")
    prompts = read_json(file, SavedPrompts)
    if name not in prompts["tasks"] or not is_plain_name(name):
        raise DataError(f"{file}: no task {name!r}. It has {', '.join(prompts['tasks'])}.")
    return SavedPrompt(file, prompts["num_embeddings"], prompts["tasks"][name])
