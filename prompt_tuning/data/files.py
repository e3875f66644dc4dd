"""Read rows from a local json, jsonl, csv or parquet file as they are written there."""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from prompt_tuning.arguments.arguments import LOCAL_FORMATS
from prompt_tuning.errors import DataError

FIRST_ROWS = 1000
"""The number of rows of a csv file that are checked before it is streamed, which reads it only once."""

ISO_TIME = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:?\d\d){0,2}(\.\d*)?(Z|[+-]\d\d(:?\d\d)?)?)?")
"""A text that Arrow may read as a time."""

WRITTEN_TIME = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
"""The start of a text that Arrow wrote for a time."""

NO_TABLE = (ValueError, TypeError, OverflowError, pa.ArrowException)
"""The errors of values that do not make a table."""

csv.field_size_limit(2**31 - 1)  # A cell may hold a book, and the default limit is 128 kB.


def load_file(file: Path, *, streaming: bool = False) -> Dataset | IterableDataset:
    """Return the rows of a local file with texts as they are written in it.

    In a csv file every cell is text and an empty cell is null; a column is numbers if all its cells are written as
    Python writes numbers. In a json file a text that is a date stays text.

    Args:
        file: a file whose name ends as LOCAL_FORMATS lists it.
        streaming: return an IterableDataset that reads the file as its rows are needed.

    Raises:
        DataError: the file is empty or cannot be read, with the line where the format has lines.
    """
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty")
    if not streaming:
        check_utf8(file)
    kind = LOCAL_FORMATS[file.suffix]
    options: dict[str, Any] = {"data_files": glob.escape(str(file)), "split": "train", "streaming": streaming}
    try:
        if kind == "csv":
            options |= _csv_options(file, FIRST_ROWS if streaming else None)
        rows = load_dataset(kind, **options)
    except (DatasetGenerationError, UnicodeDecodeError, ValueError, pa.ArrowException) as error:
        # Arrow makes times of dates and then fails at the first text of that column that is not a date.
        if kind == "json" and not streaming and _holds_date(file):
            with suppress(*NO_TABLE):
                return _json_dataset(file)
        raise unreadable(file, error) from error
    if streaming:
        return rows
    if kind == "json":
        return _without_times(file, rows)
    return _with_numbers(rows) if kind == "csv" else rows


def check_utf8(file: Path) -> None:
    """Raise a DataError if a text file is not UTF-8, which `datasets` would read without a word."""
    if file.suffix != ".parquet":
        with file.open("rb") as lines:
            for _ in utf8_lines(lines, str(file)):
                pass


def utf8_lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of every line, without a byte-order mark.

    Args:
        stream: the lines as bytes.
        name: what an error calls the stream.

    Raises:
        DataError: a line is not UTF-8.
    """
    for number, line in enumerate(stream, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, line {number}: not UTF-8 text (byte {error.start} of the line); save it as UTF-8"
            ) from None


def line_of_row(file: Path, index: int) -> int | None:
    """Return the line, from 1, on which row `index`, from 0, ends; None in a format without lines."""
    with file.open(encoding="utf-8", newline="") as lines:
        if file.suffix == ".csv":
            reader = csv.reader(lines)
            # pandas leaves empty lines out, and the first other line has the names of the columns.
            for row, _ in enumerate(filter(None, reader), -1):
                if row == index:
                    return reader.line_num
        if file.suffix == ".jsonl":
            row = -1
            for number, line in enumerate(lines, 1):
                row += bool(line.strip())
                if row == index:
                    return number
    return None


def unreadable(file: Path, error: Exception) -> DataError:
    """Return the error for a file that `datasets` cannot read, with the first bad line, which it does not name."""
    try:
        check_utf8(file)
    except DataError as bad:
        return bad
    if _has_no_rows(file):
        return DataError(f"{file}: no rows")
    if file.suffix == ".jsonl":
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    json.loads(line if line.strip() else "{}")
                except json.JSONDecodeError as bad:
                    return DataError(f"{file}, line {number}: not JSON: {bad.msg} (column {bad.colno})")
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split())[:300]
    return DataError(f"{file}: {reason}; every row needs the same columns with the same types")


def _has_no_rows(file: Path) -> bool:
    try:
        if file.suffix == ".parquet":
            return pq.read_metadata(file).num_rows == 0
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                return len(list(islice(filter(None, csv.reader(lines)), 2))) < 2
            return not any(line.replace("{}", "").strip("[], \t\r\n") for line in lines)
    except (pa.ArrowException, csv.Error):
        return False


def _json_rows(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a json or jsonl file by Python's reader.

    Raises:
        ValueError: the file is not JSON, or has a value that is not an object.
    """
    text = file.read_text(encoding="utf-8-sig")
    try:
        values = json.loads(text)
        rows = values if isinstance(values, list) else [values]
    except json.JSONDecodeError:
        rows = list(map(json.loads, filter(str.strip, text.split("\n"))))
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected objects")
    return rows


def _json_dataset(file: Path, features: Features | None = None) -> Dataset:
    """Return the rows of a json or jsonl file by Python's reader, which makes no times of texts.

    Raises:
        NO_TABLE: the rows do not make a table.
    """
    rows = _json_rows(file)
    columns = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):
        columns[name] = [row.get(name) for row in rows]
    return Dataset.from_dict(columns, features)


def _without_times(file: Path, rows: Dataset) -> Dataset:
    """Return the rows of a json file with the texts of which Arrow made times as they are written in it.

    Raises:
        DataError: Arrow made times and Python's reader cannot make a table of the file.
    """
    if not any(map(_may_hold_times, rows.data.columns)):
        return rows
    features = Features(_as_text(rows.features))
    try:
        return _json_dataset(file, features)
    except NO_TABLE as error:
        if features == rows.features:
            return rows  # The texts only look as if Arrow had written them.
        raise DataError(
            f"{file}: its dates cannot be read as the texts they are ({error}); quote each alike"
        ) from error


def _may_hold_times(values: pa.ChunkedArray) -> bool:
    """Return True if Arrow made times of texts, or may have.

    A file is read by 10 MB. If a column holds times in one part and texts in another, Arrow writes the times as texts.
    """
    if pa.types.is_timestamp(values.type):
        return True
    if pa.types.is_struct(values.type):
        return any(map(_may_hold_times, values.flatten()))
    if pa.types.is_list(values.type):
        return _may_hold_times(pc.list_flatten(values))
    matches = pa.types.is_string(values.type) and pc.any(pc.match_substring_regex(values, WRITTEN_TIME)).as_py()
    return bool(matches)


def _as_text(feature: Any) -> Any:
    """Return a feature with texts instead of times, at any depth."""
    if isinstance(feature, dict):
        return {name: _as_text(inner) for name, inner in feature.items()}
    if isinstance(feature, List):
        return List(_as_text(feature.feature), length=feature.length)
    return Value("string") if isinstance(feature, Value) and feature.dtype.startswith("timestamp") else feature


def _holds_date(file: Path) -> bool:
    """Return True if a json file holds a text that Arrow may read as a time."""
    try:
        return any(map(_is_date, _json_rows(file)))
    except ValueError:
        return False


def _is_date(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_date, value.values()))
    if isinstance(value, list):
        return any(map(_is_date, value))
    return isinstance(value, str) and ISO_TIME.fullmatch(value) is not None


def _csv_options(file: Path, first_rows: int | None) -> dict[str, Any]:
    """Return the options by which pandas reads every cell as text.

    By itself it guesses: "007" becomes 7, and "NA" and "None" become null.

    Args:
        file: the csv file.
        first_rows: the number of rows to check; None for all.

    Raises:
        DataError: pandas would shift or leave out cells without a word: a row has more cells than there are columns,
            or a file of one column has an empty line. Or two columns have the same name.
    """
    empty_line: int | None = None
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        names = next(filter(None, reader), [])
        for row in islice(reader, first_rows):
            if len(row) > len(names):
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(row)} cells, and the first line names {len(names)} "
                    'columns; quote a text that has a comma, as "a, b"'
                )
            if empty_line and row and len(names) == 1:
                raise DataError(
                    f'{file}, line {empty_line}: empty; of one column each line is a row: write "" or leave it out'
                )
            if not row and not empty_line:
                empty_line = reader.line_num
    twice = sorted({repr(name) for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file}: columns named twice: {', '.join(twice)}; rename one")
    return {
        "features": Features(dict.fromkeys(names, Value("string"))),
        "keep_default_na": False,
        "na_values": [""],
    }


def _with_numbers(rows: Dataset) -> Dataset:
    """Return the rows with numbers in the columns that hold nothing else, such as the labels 0 and 1.

    A column stays text unless a template would print every number as the file writes it.
    """
    for name, column in zip(rows.column_names, rows.data.columns, strict=True):
        for kind in ("int64", "float64"):
            with suppress(pa.ArrowInvalid):
                numbers = column.cast(kind).to_pylist()
                if [None if number is None else str(number) for number in numbers] == column.to_pylist():
                    rows = rows.cast_column(name, Value(kind))
                    break
    return rows
