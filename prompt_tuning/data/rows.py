"""Read the rows of local files with their columns: the one reader of training, evaluation, prediction and preview."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_tuning.data.formats import Number, Row, numbered_rows, row_name, rows_of_line
from prompt_tuning.errors import DataError
from prompt_tuning.support.data_files import file_format, file_problem, matching_files

BATCH = 1000
"""The number of rows whose types are found together."""

MAX_COLUMNS = 2000
"""The most columns of files, of the objects of JSON files together."""

CASTS: dict[pa.DataType, type[int] | type[float]] = {pa.int64(): int, pa.float64(): float}
"""The types of csv columns that hold nothing except numbers."""

NOT_WRITTEN = ("uint64", "struct<>")
"""Arrow's types that `datasets` does not write."""

NO_ARRAY = (pa.ArrowException, TypeError, ValueError, OverflowError)
"""The errors of values that do not make an array of Arrow."""


@dataclass(frozen=True)
class LocalRows:
    """The rows of local files of one format.

    Iterating yields the origin of each row, such as `train.jsonl, line 12`, and the row with all columns. A value that
    is absent in the file is null.

    Args:
        files: the files, in the order of their rows.
        columns: Arrow's type of every column, which is null if only JSON text holds its values as they are; None if
            the columns are those of the first row, which a stream of json files has not read.
    """

    files: tuple[Path, ...]
    columns: dict[str, pa.DataType | None] | None

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        """Yield the origin of each row and the row.

        Raises:
            DataError: a row cannot be read, with file and line.
        """
        return ((row_name(file, number), row) for file, number, row in self.numbered())

    def numbered(self) -> Iterator[tuple[Path, Number, Row]]:
        """Yield each row after its file and its number there; raise as `__iter__` does."""
        casts = {}
        if file_format(self.files[0]) == "csv" and self.columns is not None:
            casts = {name: CASTS[kind] for name, kind in self.columns.items() if kind in CASTS}
        blank = None if self.columns is None else dict.fromkeys(self.columns)
        for file in self.files:
            for number, row in numbered_rows(file):
                for name, cast in casts.items():
                    if row.get(name) is not None:
                        row[name] = cast(row[name])
                blank = dict.fromkeys(row) if blank is None else blank
                yield file, number, blank | row


def open_rows(name: str | Path, *, streaming: bool = False) -> LocalRows:
    """Return the rows of a file, or of all files that match a pattern, after a first reading of them.

    In a csv file every cell is text and an empty cell is null; a column is numbers if all its cells are written as
    Python writes numbers.

    Args:
        name: a file or a pattern whose name ends as LOCAL_FORMATS lists it.
        streaming: do not read json files before their rows are needed.

    Raises:
        DataError: a file is missing, is empty or cannot be read, or there are no rows; with the line where there is
            one.
    """
    problem = file_problem(name)
    if problem:
        raise DataError(problem)
    kind, files = file_format(name), tuple(matching_files(name))
    if kind == "json" and streaming:
        return LocalRows(files, None)
    if kind == "json":
        columns = column_types((row for file in files for _, row in numbered_rows(file)), name)
    else:
        columns = _csv_columns(files) if kind == "csv" else _parquet_columns(files)
    if not columns:
        raise DataError(f"{name}: no rows. Name a file with rows.")
    if len(columns) > MAX_COLUMNS:
        raise DataError(f"{name}: more than {MAX_COLUMNS:,} columns. Leave out those that no template names.")
    return LocalRows(files, columns)


def read_row(argument: str) -> Row:
    """Return a row from JSON, or the first row of a file.

    Args:
        argument: the value of --row, a JSON object or a path.

    Raises:
        DataError: the argument is neither.
    """
    if argument.lstrip().startswith("{"):
        return next((row for _, row in rows_of_line(argument, "--row", 1)), {})
    if not matching_files(argument):
        raise DataError(
            f"--row {argument}: no such file. Name a json, jsonl, csv or parquet file, or write the row as "
            "'{\"column\": ...}'."
        )
    _, row = next(iter(open_rows(argument)))
    return row


def column_types(rows: Iterable[Row], origin: object = "rows") -> dict[str, pa.DataType | None]:
    """Return Arrow's type of every column of rows, as LocalRows has them; a column of nulls has the type null.

    Raises:
        DataError: there are more than MAX_COLUMNS; the message has the origin. Every row has a value in each of them.
    """
    columns: dict[str, pa.DataType | None] = {}
    for batch in batches_of_rows(iter(rows)):
        for name in chain.from_iterable(batch):
            columns.setdefault(name, pa.null())
        if len(columns) > MAX_COLUMNS:
            raise DataError(f"{origin}: more than {MAX_COLUMNS:,} columns. Give all rows the same keys.")
        for name in columns:
            columns[name] = _common_type(columns[name], [row.get(name) for row in batch])
    return columns


def batches_of_rows(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield `BATCH` rows at a time."""
    batch = list(islice(rows, BATCH))
    while batch:
        yield batch
        batch = list(islice(rows, BATCH))


def _common_type(kind: pa.DataType | None, values: list[Any]) -> pa.DataType | None:
    """Return the type of Arrow that gives values back as they are, and that `kind` is too; None if there is none."""
    if kind is None or (kind == pa.string() and {*map(type, values)} <= {str, type(None)}):
        return kind
    if not _have_equal_keys(values):
        return None  # Arrow would make each key a field of every row.
    try:
        array = pa.array(values)
    except NO_ARRAY:
        return None
    # Equal values may differ in type or order, such as 1 and 1.0, and their JSON does too.
    if any(name in str(array.type) for name in NOT_WRITTEN) or json.dumps(array.to_pylist()) != json.dumps(values):
        return None
    if kind == pa.null():
        return array.type
    return kind if array.type in (kind, pa.null()) else None


def _have_equal_keys(values: list[Any]) -> bool:
    """Return True if all objects at the same place within values, at any depth, have the same keys in one order."""
    places = [values]
    for part in places:
        items: list[Any] = []
        fields: dict[str, list[Any]] | None = None
        for value in part:
            if isinstance(value, list):
                items += value
            elif isinstance(value, dict):
                fields = {key: [] for key in value} if fields is None else fields
                if [*value] != [*fields]:
                    return False
                for key, field in value.items():
                    fields[key].append(field)
        places += [items] if items else []
        places += (fields or {}).values()
    return True


def _csv_columns(files: Iterable[Path]) -> dict[str, pa.DataType | None]:
    """Return the columns of csv files, with numbers in those that hold nothing else, such as the labels 0 and 1.

    A column stays text unless a template would print every number as the file writes it.
    """
    possible: dict[str, list[pa.DataType]] = {}
    filled: set[str] = set()
    has_rows = False
    for file in files:
        for _, row in numbered_rows(file):
            has_rows = True
            for name, cell in row.items():
                kinds = possible.setdefault(name, [*CASTS])
                if cell is not None and (kinds or name not in filled):
                    filled.add(name)
                    possible[name] = [kind for kind in kinds if _is_number(cell, kind)]
    columns: dict[str, pa.DataType | None] = {}
    for name, kinds in possible.items():
        columns[name] = kinds[0] if kinds and name in filled else pa.string()
    return columns if has_rows else {}


def _is_number(cell: str, kind: pa.DataType) -> bool:
    """Return True if Python writes the number of a cell as the cell does, and Arrow can hold it."""
    try:
        number = CASTS[kind](cell)
    except ValueError:
        return False
    fits = math.isfinite(number) if isinstance(number, float) else -(2**63) <= number < 2**63
    return fits and str(number) == cell


def _parquet_columns(files: Iterable[Path]) -> dict[str, pa.DataType | None]:
    """Return the columns of parquet files, which must be the same in all of them."""
    columns: dict[str, pa.DataType | None] = {}
    rows = 0
    for file in files:
        try:
            rows += pq.read_metadata(file).num_rows
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a parquet file: {error}. Write it again.") from error
        types = dict(zip(schema.names, schema.types, strict=True))
        if columns and columns != types:
            raise DataError(f"{file}: its columns or their types are not those of the file before. Write both alike.")
        columns |= types
    return columns if rows else {}
