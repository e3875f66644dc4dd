"""Read a folder that `save_to_disk` wrote: of its files only those that its state.json names."""

from __future__ import annotations

import glob
import re
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from prompt_tuning.data.files import closed_features, content_digest
from prompt_tuning.data.parquet import MAX_RATIO
from prompt_tuning.data.rows import MAX_COLUMNS
from prompt_tuning.errors import DataError, first_line
from prompt_tuning.support.json_values import MAX_BYTES, parse_json, read_bounded

STATE = "state.json"
SPLITS_OF_FOLDER = "dataset_dict.json"
UNREADABLE = (OSError, KeyError, TypeError, ValueError, pa.ArrowException, DatasetGenerationError)
"""The errors of a folder whose files are damaged."""


def is_saved(folder: str) -> bool:
    """Return True if `save_to_disk` of a Dataset or a DatasetDict wrote this folder."""
    return (Path(folder) / STATE).is_file() or (Path(folder) / SPLITS_OF_FOLDER).is_file()


def load_saved(folder: str, name: str, *, streaming: bool) -> Dataset | IterableDataset:
    """Return the rows of one split of a folder that `save_to_disk` wrote.

    The folder may come from a stranger, so that no file outside of it is read. Files that `map` left there, and those
    of an earlier save, are not read either.

    Args:
        folder: the folder of a DatasetDict, or of one Dataset, which is its split `saved_splits` names.
        name: the name of the split.
        streaming: return an IterableDataset.

    Raises:
        DataError: there is no such split, or a file is missing, damaged or outside of the folder.
    """
    splits = saved_splits(folder)
    if name not in splits:
        raise DataError(
            f"dataset {folder}, split {name}: the folder has {', '.join(splits)}. Name one of them, or name a file."
        )
    where = splits[name]
    try:
        state = parse_json(read_bounded(where / STATE, MAX_BYTES))
        paths = [_inside(where, file["filename"]) for file in state["_data_files"]]
        schemas = [_checked_schema(path) for path in paths]
        features = closed_features(schemas[0]) if schemas else None
        files = {"train": [glob.escape(str(path)) for path in paths]}
        # The name decides the place in the cache, where `datasets` by itself looks only at the time of a file.
        name_in_cache = "streamed" if streaming else content_digest(paths)
        return load_dataset(
            "arrow", name_in_cache, data_files=files, split="train", streaming=streaming, features=features
        )
    except UNREADABLE as error:
        raise DataError(
            f"dataset {folder}, split {name}: {first_line(error.__cause__ or error)}. Save it again by save_to_disk."
        ) from error


def saved_splits(folder: str) -> dict[str, Path]:
    """Return the folder of every split; one Dataset is its `_split`, or train if it has none.

    Raises:
        DataError: dataset_dict.json or state.json is damaged, or names a split outside of the folder.
    """
    path = Path(folder)
    try:
        if (path / STATE).is_file():
            state = parse_json(read_bounded(path / STATE, MAX_BYTES))
            return {state.get("_split") or "train": path}
        names = parse_json(read_bounded(path / SPLITS_OF_FOLDER, MAX_BYTES))["splits"]
        return {name: _inside(path, name) for name in names}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"dataset {folder}: {first_line(error)}. Save it again by save_to_disk.") from error


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file or folder; raise a DataError if it leads out of its folder."""
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise DataError(f"{folder}: it names {name}, which is outside of it. Save it again by save_to_disk.")
    return path


def _checked_schema(file: Path) -> pa.Schema:
    """Return the schema of a file of Arrow; raise a ValueError if it is not valid, or its rows are far larger than it.

    `save_to_disk` compresses nothing, and writes each value where it occurs.
    """
    with pa.memory_map(str(file)) as source:
        for message in pa.ipc.MessageReader.open_stream(source):
            if message.type == "schema":
                schema = pa.ipc.read_schema(message)
                if len(schema) > MAX_COLUMNS:
                    raise ValueError(f"{file.name}: more than {MAX_COLUMNS:,} columns")
                if re.search(r"_view\b(?!:)", " ".join(map(str, schema.types))):
                    raise ValueError(f"{file.name}: its rows may repeat values (view)")
            elif message.type == "record batch":
                _check_sizes(message, file.name)
                pa.ipc.read_record_batch(message, schema).validate(full=True)
            else:
                raise ValueError(f"{file.name}: its rows may repeat values ({message.type})")
    return schema


def _check_sizes(message: pa.ipc.Message, name: str) -> None:
    """Raise a ValueError for rows that take more memory than their message.

    Arrow decompresses a message as it reads it. What it has is read here from the flatbuffer of its metadata, a
    RecordBatch with the fields length, nodes, buffers and compression.
    """
    data = message.metadata.to_pybytes()

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], "little")

    def target(place: int) -> int:
        return place + number(place, 4)

    def field(table: int, index: int) -> int:
        """Return the place of a field, or 0 if the table has none."""
        layout = table - int.from_bytes(data[table : table + 4], "little", signed=True)
        entry = 4 + 2 * index
        offset = number(layout + entry, 2) if entry < number(layout, 2) else 0
        return table + offset if offset else 0

    batch = target(field(target(0), 2))
    sums = []
    for index, part in ((1, 0), (2, 8)):  # The lengths of the arrays, then those of the buffers.
        vector = target(field(batch, index))
        sums.append(sum(number(vector + 4 + 16 * item + part, 8) for item in range(number(vector, 4))))
    values, size = sums
    body = message.body.size if message.body else 0
    if field(batch, 3):
        raise ValueError(f"{name}: it is compressed")
    if size > body or values > MAX_RATIO * body:
        raise ValueError(f"{name}: its rows take far more memory than the file")
