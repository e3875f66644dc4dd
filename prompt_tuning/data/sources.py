"""Find the splits that a file, a folder or a data set of the hub has, by their names."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from itertools import takewhile
from pathlib import Path
from typing import Any

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.loading import split_names
from prompt_tuning.data.saved import is_saved
from prompt_tuning.errors import DataError
from prompt_tuning.support.data_files import file_format, matching_files
from prompt_tuning.support.text import listed

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval"),
}
"""The words by which names of files and of splits say which split they are."""


def find_source(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe that name the rows of every split.

    Args:
        name: a file, a pattern of files, a folder of files, a folder that `save_to_disk` wrote, or a hub id.
        settings: what the user has set of dataset_config_name, dataset_revision and the names of splits.

    Raises:
        DataError: there is no such data, or the names of several files do not say which split each is.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir() and not is_saved(name):
        return _files_of_folder(path)
    if file_format(name) is not None or (path.exists() and not path.is_dir()) or matching_files(name):
        return {"train_file": name}
    of_user = {key: value for key, value in settings.items() if key.startswith("dataset_") or key.endswith("_split")}
    args = DataArguments(**{"dataset_name": name, **of_user})
    named = {} if "train_split" in settings else _named_splits(split_names(args), name)
    return {"dataset_name": name, **named}


def split_of_name(name: str) -> str | None:
    """Return the split that a name says, or None.

    >>> split_of_name("qa-dev.v2"), split_of_name("train-00000-of-00002"), split_of_name("latest")
    ('validation', 'train', None)
    """
    parts = re.split(r"[^a-z]+", name.casefold())
    for split, names in SPLIT_WORDS.items():
        if not set(names).isdisjoint(parts):
            return split
    return None


def _files_of_folder(folder: Path) -> dict[str, Any]:
    """Return the files of a folder by split; several files of one split become a pattern."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file_format(file) is not None)
    by_split: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        split = split_of_name(file.stem)
        if split:
            by_split[split].append(file)
    if len(files) == 1:
        by_split = defaultdict(list, train=files)
    if not by_split["train"]:
        names = [file.name for file in files]
        reason = f"the names of its files ({listed(names)}) do not say which is train" if files else "no file of rows"
        raise DataError(f"{folder}: {reason}. Name one file, or rename them to train, validation and test.")
    return {f"{split}_file": _pattern(by_split[split]) for split in SPLIT_WORDS if by_split[split]}


def _pattern(files: list[Path]) -> str:
    """Return the name of one file, or a pattern that matches several and no other."""
    if len(files) == 1:
        return str(files[0])
    folder, suffix = files[0].parent, files[0].suffix
    # The common prefix of two sorted names is that of all.
    same = takewhile(bool, map(str.__eq__, files[0].name, files[-1].name))
    prefix = files[0].name[: sum(same)]
    pattern = f"{glob.escape(str(folder / prefix))}*{suffix}"
    if matching_files(pattern) != files:
        names = [file.name for file in files]
        raise DataError(f"{folder}: several files are of one split ({listed(names)}). Name one file or a pattern.")
    return pattern


def _named_splits(names: list[str], origin: str) -> dict[str, str]:
    """Return the settings of the splits whose names are not the usual ones; one alone is for training."""
    if len(names) == 1:
        return {} if names[0] == "train" else {"train_split": names[0]}
    settings = {}
    splits = {split_of_name(name) or name: name for name in reversed(names)}
    if "train" not in splits:
        raise DataError(f"dataset {origin}: it has the splits {listed(names)}, and none is train. Set train_split.")
    for split in SPLIT_WORDS:
        if splits.get(split, split) != split:
            settings[f"{split}_split"] = splits[split]
    return settings
