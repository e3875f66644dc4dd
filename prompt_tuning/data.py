"""Rows: a hub data set or local json, jsonl, csv and parquet files -> a DatasetDict with the usual columns."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from httpx2 import HTTPError

from prompt_tuning.arguments import DataArguments
from prompt_tuning.config import LOCAL_FORMATS
from prompt_tuning.errors import DataError

LIMITS = dict(train="max_train_samples", validation="max_eval_samples", test="max_predict_samples")
SPLITS = tuple(LIMITS)


def load_splits(args: DataArguments, splits: tuple[str, ...] = SPLITS) -> DatasetDict:
    """Those of `splits` that the recipe names, with columns renamed to the usual ones and max_*_samples applied.

    Usual columns: question, context, answers {text, answer_start}; document, summary; translation {code: text}.

    Raises:
        DataError: all that is wrong with any of the splits, with file and line where there is one.
    """
    loaded, problems = DatasetDict(), []
    for split in splits:
        try:
            dataset = _load_split(args, split)
        except DataError as error:
            problems.append(str(error))
            continue
        if dataset is not None:
            loaded[split] = dataset
    if problems:
        raise DataError("\n".join(problems))
    return loaded


def split_origin(args: DataArguments, split: str) -> str:
    """What a split is called in messages: its file, or `dataset_name[split]`."""
    return getattr(args, f"{split}_file") or f"{args.dataset_name}[{getattr(args, f'{split}_split')}]"


def row_origin(args: DataArguments, split: str, index: int) -> str:
    """Where row `index` of a split stands: `train.jsonl, line 12`, or `squad[train], row 12`."""
    file = getattr(args, f"{split}_file")
    line = _line_of_row(Path(file), index) if file else None
    return f"{file}, line {line}" if line else f"{split_origin(args, split)}, row {index}"


def utf8_lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """`(number, text)` of each line, from 1.

    Raises:
        DataError: a line is not UTF-8.
    """
    for number, line in enumerate(stream, 1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{name}, line {number}: not UTF-8 text (byte {error.start} of the line)"
            raise DataError(f"{where}; save it as UTF-8") from None


def _load_split(args: DataArguments, split: str) -> Dataset | None:
    file = getattr(args, f"{split}_file")
    if file:
        dataset = _load_file(Path(file))
    elif args.dataset_name:
        dataset = _load_from_hub(args, split)
    else:
        return None
    origin = split_origin(args, split)
    dataset = _usual_columns(dataset, args, origin)
    limit = getattr(args, LIMITS[split])
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    if len(dataset) == 0:
        raise DataError(f"{origin}: no rows; the {split} split needs at least one")
    return dataset


def _load_file(file: Path) -> Dataset:
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty")
    if file.suffix != ".parquet":
        with file.open("rb") as lines:  # `datasets` would read other encodings as if nothing were wrong
            deque(utf8_lines(lines, str(file)), maxlen=0)
    try:
        return load_dataset(LOCAL_FORMATS[file.suffix], data_files=str(file), split="train")
    except (DatasetGenerationError, UnicodeDecodeError, ValueError) as error:
        raise DataError(_why_unreadable(file, error)) from error


def _load_from_hub(args: DataArguments, split: str) -> Dataset:
    name = getattr(args, f"{split}_split")
    try:
        return load_dataset(args.dataset_name, args.dataset_config_name, split=name, revision=args.dataset_revision)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, HTTPError, ValueError) as error:
        raise DataError(
            f"dataset {args.dataset_name}, split {name}: {str(error).splitlines()[0]}; check the id, "
            f"dataset_config_name, {split}_split and the connection, or name a local {split}_file"
        ) from error


def _usual_columns(dataset: Dataset, args: DataArguments, origin: str) -> Dataset:
    renames = dict(
        document=args.text_column,
        summary=args.summary_column,
        context=args.context_column,
        question=args.question_column,
        answers=args.answer_column,
    )
    for usual, theirs in renames.items():
        if theirs and theirs != usual:
            if theirs not in dataset.column_names:
                raise DataError(
                    f"{origin} has no column {theirs!r}; it has {', '.join(map(repr, dataset.column_names))}"
                )
            dataset = dataset.remove_columns([usual] if usual in dataset.column_names else []).rename_column(
                theirs, usual
            )
    codes = [args.source_lang, args.target_lang]
    if (
        args.task == "translation"
        and "translation" not in dataset.column_names
        and set(codes) <= set(dataset.column_names)
    ):
        dataset = dataset.map(lambda row: {"translation": {code: row[code] for code in codes}})
    return dataset


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
            for row, _ in enumerate(reader, -1):
                if row == index:
                    return reader.line_num
        elif file.suffix == ".jsonl":
            numbers = (number for number, line in enumerate(lines, 1) if line.strip())
            return next((number for row, number in enumerate(numbers) if row == index), None)
    return None
