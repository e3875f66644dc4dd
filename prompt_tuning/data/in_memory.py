"""Take rows that are in memory: a Dataset, a data frame of pandas, or a list of dicts, and keep them as a file.

Training and evaluation read that file like any other, so that the recipe of a run names its rows and repeats it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from prompt_tuning.data.files import content_digest, features_of
from prompt_tuning.data.formats import Row, checked_row
from prompt_tuning.data.rows import column_types
from prompt_tuning.errors import DataError, first_line
from prompt_tuning.support.files import explain_full_disk, partial_path

Rows: TypeAlias = "Dataset | pd.DataFrame | Iterable[Mapping[str, Any]]"
"""Rows in memory. A missing value of a data frame is null."""

NOT_ROWS = (str, bytes, Path, Mapping, IterableDataset)
"""Types that can be iterated, but are no rows."""

PLAIN = ("string", "empty")
"""What pandas infers of a column of objects that holds only texts and missing values."""


def save_rows(rows: Rows, folder: Path, name: str, argument: str) -> Path:
    """Write rows to a parquet file named by its content, unless it is there, and return it.

    Args:
        rows: the rows.
        folder: for the file.
        name: what the file's name begins with.
        argument: what messages call the rows.

    Raises:
        DataError: these are no rows, there are none, or one cannot be kept, with its number from 0.
        OSError: the disk is full.
    """
    dataset = _dataset(rows, argument)
    if len(dataset) == 0:
        raise DataError(f"{argument}: no rows. Give at least one.")
    folder.mkdir(parents=True, exist_ok=True)
    partial = partial_path(folder)
    try:
        with explain_full_disk(folder, partial):
            dataset.to_parquet(partial)
            path = folder / f"{name}-{content_digest([partial])[:8]}.parquet"
            if not path.is_file():
                partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def plain_rows(rows: Rows, argument: str = "rows") -> Iterator[dict[str, Any]]:
    """Yield rows as dicts, in their order, as soon as each is needed.

    Args:
        rows: the rows; an iterator is read as its rows are needed.
        argument: what messages call the rows.

    Raises:
        DataError: these are no rows, or one is no mapping, with its number from 0.
    """
    if isinstance(rows, pd.DataFrame):
        rows = _of_frame(rows, argument)
    _check_kind(rows, argument)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"{argument}, row {number}: expected a dict, found {type(row).__name__}.")
        yield dict(row)


def _dataset(rows: Rows, argument: str) -> Dataset:
    if isinstance(rows, Dataset):
        return rows
    if isinstance(rows, pd.DataFrame):
        return _of_frame(rows, argument)
    return _of_rows(plain_rows(rows, argument), argument)


def _of_rows(rows: Iterable[dict[str, Any]], argument: str) -> Dataset:
    """Return dicts as rows, with every value as it is."""
    checked = []
    for number, row in enumerate(rows):
        checked.append(_checked(row, f"{argument}, row {number}"))
    columns = column_types(checked, argument)
    return Dataset.from_list([dict.fromkeys(columns) | row for row in checked], features_of(columns))


def _checked(row: dict[str, Any], origin: str) -> Row:
    """Return a row as a line of a jsonl file would hold it; raise a DataError if none can."""
    wrong = [name for name in row if not isinstance(name, str)]
    if wrong:
        raise DataError(f"{origin}: the column {wrong[0]!r} has no text as its name. Rename it.")
    try:
        text = json.dumps(row, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{origin}: {first_line(error)}. Give texts, numbers, truth values, lists and dicts."
        ) from None
    return checked_row(json.loads(text), text, origin)


def _of_frame(frame: pd.DataFrame, argument: str) -> Dataset:
    """Return the rows of a data frame without its index, as pandas writes them to a file without it."""
    wrong = [name for name in frame.columns if not isinstance(name, str)]
    if wrong:
        raise DataError(f"{argument}: the column {wrong[0]!r} has no text as its name. Rename it.")
    twice = frame.columns[frame.columns.duplicated()].tolist()
    if twice:
        raise DataError(f"{argument}: columns named twice: {twice[0]!r}. Rename one.")
    objects = [frame[name] for name in frame.columns if frame[name].dtype == object]
    if all(pd.api.types.infer_dtype(column) in PLAIN for column in objects):
        return Dataset.from_pandas(frame, preserve_index=False)
    # Arrow would add the keys of other rows' dicts to a dict.
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return _of_rows(records, argument)


def _check_kind(rows: Any, argument: str) -> None:
    """Raise a DataError unless rows are of a kind that `Rows` names."""
    if isinstance(rows, DatasetDict | IterableDatasetDict):
        raise DataError(f"{argument}: it has the splits {', '.join(rows)}. Give one of them.")
    if isinstance(rows, NOT_ROWS) or not isinstance(rows, Iterable):
        kind = type(rows).__name__
        raise DataError(f"{argument}: expected a Dataset, a data frame or a list of dicts, found {kind}.")
