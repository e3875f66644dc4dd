"""Rows: a hub data set or local json, jsonl, csv and parquet files -> a DatasetDict with the usual columns."""

from __future__ import annotations

import csv
import glob
import json
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from httpx2 import HTTPError

from prompt_tuning.arguments.arguments import LOCAL_FORMATS, DataArguments
from prompt_tuning.errors import DataError, ErrorList, first_line
from prompt_tuning.templates.template import COLUMN_SETTINGS

LIMITS = dict(train="max_train_samples", validation="max_eval_samples", test="max_predict_samples")
SPLITS = tuple(LIMITS)
TIME = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"  # as Arrow writes one
FIRST_ROWS = 1000  # of a stream's file, which is not read twice
csv.field_size_limit(2**31 - 1)  # a row may be a book


def load_splits(args: DataArguments, splits: tuple[str, ...] = SPLITS) -> DatasetDict:
    """Those of `splits` that the recipe names, with columns renamed to the usual ones and max_*_samples applied.

    With `streaming` the training split is an `IterableDataset`, of which the first rows alone were looked at.

    Usual columns: question, context, answers {text, answer_start}; document, summary; translation {code: text}.

    Raises:
        DataError: all that is wrong with any of the splits, with file and line where there is one.
    """
    loaded, problems = DatasetDict(), ErrorList()
    for split in splits:
        if (dataset := problems.attempt(_load_split, args, split)) is not None:
            loaded[split] = dataset
    problems.raise_all()
    return loaded


def split_origin(args: DataArguments, split: str) -> str:
    """What a split is called in messages: its file, or `dataset_name[split]`."""
    return getattr(args, f"{split}_file") or f"{args.dataset_name}[{getattr(args, f'{split}_split')}]"


def column_names(rows: Dataset | IterableDataset) -> list[str]:
    """Of a stream that does not know them those of its first row."""
    return rows.column_names or list(next(iter(rows)))


def row_origin(args: DataArguments, split: str, index: int) -> str:
    """Where row `index` of a split stands: `train.jsonl, line 12`, or `squad[train], row 12`."""
    file = getattr(args, f"{split}_file")
    line = _line_of_row(Path(file), index) if file else None
    return f"{file}, line {line}" if line else f"{split_origin(args, split)}, row {index}"


def utf8_lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """`(number, text)` of each line, from 1, without a byte-order mark.

    Raises:
        DataError: a line is not UTF-8.
    """
    for number, line in enumerate(stream, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            where = f"{name}, line {number}: not UTF-8 text (byte {error.start} of the line)"
            raise DataError(f"{where}; save it as UTF-8") from None


def streamed_rows(rows: IterableDataset, args: DataArguments) -> Iterator[dict[str, Any]]:
    """The training rows of a stream in their order.

    Raises:
        DataError: what cannot be read, with file and line where there is one; or no rows.
    """
    row = None
    try:
        for number, row in enumerate(rows):
            if _holds_time(row):
                raise DataError(
                    f"{row_origin(args, 'train', number)}: a text that is a date was read as a time; set streaming: "
                    "false, which reads it as it stands"
                )
            yield row
    except (ValueError, ConnectionError, HTTPError) as error:  # of json, csv, parquet and the hub
        if not args.train_file:
            raise _not_from_hub(args, "train", error) from error
        file = Path(args.train_file)
        _check_utf8(file)
        raise DataError(_why_unreadable(file, error)) from error
    if row is None:
        raise DataError(f"{split_origin(args, 'train')}: no rows; the train split needs at least one")


def _load_split(args: DataArguments, split: str) -> Dataset | IterableDataset | None:
    file, streaming = getattr(args, f"{split}_file"), args.streaming and split == "train"
    if file:
        dataset = load_file(Path(file), streaming)
    elif args.dataset_name:
        dataset = _load_from_hub(args, split, streaming)
    else:
        return None
    origin = split_origin(args, split)
    if streaming and dataset.column_names is None:  # the first rows cannot be read
        next(streamed_rows(dataset, args))
    dataset = _usual_columns(dataset, args, origin)
    limit = getattr(args, LIMITS[split])
    if streaming:
        return dataset if limit is None else dataset.take(limit)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    if len(dataset) == 0:
        raise DataError(f"{origin}: no rows; the {split} split needs at least one")
    return dataset


def with_standard_columns(row: dict[str, Any], args: DataArguments) -> dict[str, Any]:
    """A row as `load_splits` would give it, if it has the columns that a recipe names in place of the usual ones."""
    named = {usual: theirs for usual, theirs in _renames(args).items() if theirs in row}
    row = row | {usual: row[theirs] for usual, theirs in named.items()}
    if args.task == "translation" and "translation" not in row and args.source_lang in row:
        row = row | {"translation": {code: row[code] for code in (args.source_lang, args.target_lang) if code in row}}
    return row


def load_file(file: Path, streaming: bool = False) -> Dataset | IterableDataset:
    """The rows of a local file as they are. Of csv a cell is the text that stands there, and null where none does.

    Raises:
        DataError: it is empty, or cannot be read; with the line where there is one.
    """
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty")
    if not streaming:
        _check_utf8(file)  # `datasets` would read other encodings as if nothing were wrong
    kind = LOCAL_FORMATS[file.suffix]
    options = dict(data_files=glob.escape(str(file)), split="train", streaming=streaming)
    try:
        if kind == "csv":
            options |= _csv_options(file, FIRST_ROWS if streaming else None)
        rows = load_dataset(kind, **options)
    except (DatasetGenerationError, UnicodeDecodeError, ValueError) as error:
        if kind == "json" and not streaming and "timestamp" in str(error.__cause__ or error):
            return _without_times(file)
        raise DataError(_why_unreadable(file, error)) from error
    if streaming:
        return rows
    if kind == "json" and any(_has_times(chunk) for column in rows.data.columns for chunk in column.chunks):
        return _without_times(file, rows)
    return _with_numbers(rows) if kind == "csv" else rows


def _has_times(values: pa.Array) -> bool:
    """Whether Arrow made times of texts; where a file's first 10 MB are other texts, it writes them back as text."""
    if pa.types.is_timestamp(values.type):
        return True
    if pa.types.is_struct(values.type):
        return any(map(_has_times, values.flatten()))
    if pa.types.is_list(values.type):
        return _has_times(values.flatten())
    return pa.types.is_string(values.type) and bool(pc.any(pc.match_substring_regex(values, TIME)).as_py())


def _without_times(file: Path, rows: Dataset | None = None) -> Dataset:
    """The rows of a json file with texts as they stand there: Arrow makes times of those that are dates.

    Args:
        rows: as Arrow read them, if it could.

    Raises:
        DataError: Python's reader cannot make a table of the file.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        try:
            read = json.loads(text)
            read = read if isinstance(read, list) else [read]
        except json.JSONDecodeError:
            read = [json.loads(line) for line in text.split("\n") if line.strip()]
        names = dict.fromkeys(name for row in read for name in row)
        features = None if rows is None else Features({name: _as_text(each) for name, each in rows.features.items()})
        return Dataset.from_dict({name: [row.get(name) for row in read] for name in names}, features)
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        if rows is not None and "timestamp[" not in str(rows.data.schema.remove_metadata()):
            return rows  # which only look like times
        raise DataError(
            f"{file}: its dates cannot be read as the texts they are ({error}); quote each alike"
        ) from error


def _as_text(feature: Any) -> Any:
    """A feature with texts in place of times, at any depth."""
    if isinstance(feature, dict):
        return {name: _as_text(each) for name, each in feature.items()}
    if isinstance(feature, List):
        return List(_as_text(feature.feature), length=feature.length)
    return Value("string") if isinstance(feature, Value) and feature.dtype.startswith("timestamp") else feature


def _holds_time(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_time, value.values() if isinstance(value, dict) else value))
    return isinstance(value, datetime)


def _csv_options(file: Path, first_rows: int | None) -> dict[str, Any]:
    """Without them pandas guesses: "007" becomes 7, and "NA" and "None" become null.

    Raises:
        DataError: what pandas would shift or leave out unsaid: a row has more cells than there are columns, or the one
            column's cell is on an empty line.
    """
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        names, empty = next(filter(None, reader), []), None
        for row in islice(reader, first_rows):
            if len(row) > len(names):
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(row)} cells, and the first line names {len(names)} "
                    'columns; quote a text that has a comma, as "a, b"'
                )
            if empty and row and len(names) == 1:
                raise DataError(
                    f'{file}, line {empty}: empty; of one column each line is a row: write "" or leave it out'
                )
            empty = empty or (None if row else reader.line_num)
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{file}: columns named twice: {', '.join(sorted(map(repr, twice)))}; rename one")
    return dict(features=Features({name: Value("string") for name in names}), keep_default_na=False, na_values=[""])


def _with_numbers(rows: Dataset) -> Dataset:
    """Make numbers of the columns that hold nothing else, written as a template prints them, as the labels 0 and 1."""
    for name, column in zip(rows.column_names, rows.data.columns, strict=True):
        for kind in ("int64", "float64"):
            with suppress(pa.ArrowInvalid):
                numbers = column.cast(kind).to_pylist()
                if [None if number is None else str(number) for number in numbers] == column.to_pylist():
                    rows = rows.cast_column(name, Value(kind))
                    break
    return rows


def _check_utf8(file: Path) -> None:
    if file.suffix != ".parquet":
        with file.open("rb") as lines:
            deque(utf8_lines(lines, str(file)), maxlen=0)


def _load_from_hub(args: DataArguments, split: str, streaming: bool) -> Dataset | IterableDataset:
    options = dict(split=getattr(args, f"{split}_split"), revision=args.dataset_revision, streaming=streaming)
    try:
        return load_dataset(args.dataset_name, args.dataset_config_name, **options)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, HTTPError, ValueError) as error:
        raise _not_from_hub(args, split, error) from error


def _not_from_hub(args: DataArguments, split: str, error: Exception) -> DataError:
    name = getattr(args, f"{split}_split")
    return DataError(
        f"dataset {args.dataset_name}, split {name}: {first_line(error)}; check the id, "
        f"dataset_config_name, {split}_split and the connection, or name a local {split}_file"
    )


def _usual_columns(dataset: Dataset | IterableDataset, args: DataArguments, origin: str) -> Dataset | IterableDataset:
    names = column_names(dataset)
    for usual, theirs in _renames(args).items():
        if theirs and theirs != usual:
            if theirs not in names:
                raise DataError(f"{origin} has no column {theirs!r}; it has {', '.join(map(repr, names))}")
            dataset = dataset.remove_columns([usual] if usual in names else []).rename_column(theirs, usual)
            names = [usual if name == theirs else name for name in names if name != usual]
    codes = [args.source_lang, args.target_lang]
    if args.task == "translation" and "translation" not in names and set(codes) <= set(names):
        dataset = dataset.map(lambda row: {"translation": {code: row[code] for code in codes}})
    return dataset


def _renames(args: DataArguments) -> dict[str, str | None]:
    return {usual: getattr(args, setting) for usual, setting in COLUMN_SETTINGS.items()}


def _why_unreadable(file: Path, error: Exception) -> str:
    """Look for the first bad line, which the loaders of `datasets` do not name."""
    if "corresponds to no data" in str(error):
        return f"{file}: no rows"
    if file.suffix == ".jsonl":
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    json.loads(line if line.strip() else "{}")
                except json.JSONDecodeError as bad:
                    return f"{file}, line {number}: not JSON: {bad.msg} (column {bad.colno})"
    cause = error.__cause__ or error
    return f"{file}: {' '.join(str(cause).split())[:300]}; every row needs the same columns with the same types"


def _line_of_row(file: Path, index: int) -> int | None:
    """Line of row `index` (from 0), or None in a format without lines."""
    with file.open(encoding="utf-8", newline="") as lines:
        if file.suffix == ".csv":
            reader = csv.reader(lines)
            for row, _ in enumerate(filter(None, reader), -1):  # pandas leaves empty lines out
                if row == index:
                    return reader.line_num
        elif file.suffix == ".jsonl":
            numbers = (number for number, line in enumerate(lines, 1) if line.strip())
            return next((number for row, number in enumerate(numbers) if row == index), None)
    return None
