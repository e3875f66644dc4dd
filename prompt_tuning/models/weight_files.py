"""Find the safetensors of a model and read their headers, which say whether the files are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

from prompt_tuning.errors import ModelError
from prompt_tuning.support.files import read_json
from prompt_tuning.support.run_folder import RunFolder

MAX_HEADER = 100_000_000  # bytes, as safetensors has it
ADVICE = "Download or copy the model again."
LENGTH_SIZE = 8
"""The bytes at the start of a file that hold the length of the header."""


class ShardIndex(TypedDict):
    """An index of shards, as transformers writes it."""

    weight_map: dict[str, str]


def check_weight_files(folder: Path) -> None:
    """Raise an error if a model's safetensors are cut or missing; no tensor is read.

    Args:
        folder: the model's folder. One without safetensors is not checked.

    Raises:
        ModelError: a file is cut, missing or not safetensors.
        DataError: the index is not what transformers writes.
    """
    run = RunFolder(folder)
    index = folder / run.MODEL_INDEX
    files = [folder / run.MODEL_WEIGHTS]
    if index.is_file() and not files[0].is_file():
        files = [folder / name for name in shard_names(index)]
        for file in files:
            if file.parent != folder or file.name == "..":
                raise ModelError(f"{index}: it names {file}, which is not in its folder. {ADVICE}")
            if not file.is_file():
                raise ModelError(f"{index}: it names {file.name}, which is not there. {ADVICE}")
    for file in filter(Path.is_file, files):
        read_header(file)


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that an index of shards names, each once.

    Raises:
        DataError: the index is not what transformers writes.
    """
    return sorted(set(weight_map(index).values()))


def weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor by an index of shards.

    Raises:
        DataError: the index is not what transformers writes.
    """
    return read_json(index, ShardIndex)["weight_map"]


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the entries of a safetensors file by the names of its tensors, and where the data begin.

    Raises:
        ModelError: the file is not safetensors, or has another length than its header says.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH_SIZE), "little")
        start = LENGTH_SIZE + length
        if start > min(size, MAX_HEADER):
            raise ModelError(f"{file}: {size:,} bytes, and its header alone would have {length:,}. {ADVICE}")
        try:
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            end = start + max(map(_end_of, header.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise ModelError(f"{file}: its header is not that of safetensors ({error}). {ADVICE}") from error
    if end != size:
        raise ModelError(f"{file}: {size:,} bytes, and its header says {end:,}. {ADVICE}")
    return header, start


def _end_of(entry: dict[str, Any]) -> int:
    """Return where the data of a tensor end; raise a ValueError or KeyError for an entry that no tensor can have."""
    first, last = entry["data_offsets"]
    if not 0 <= first <= last or not entry["dtype"] or not isinstance(entry["shape"], list):
        raise ValueError(f"the data from {first} to {last}")
    return last
