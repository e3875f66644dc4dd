"""Load the splits of a recipe, from the hub or from local files, with the columns that templates expect."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    config,
    get_dataset_split_names,
    load_dataset,
)
from datasets.exceptions import DatasetNotFoundError
from httpx2 import HTTPError
from huggingface_hub import constants

from prompt_tuning.arguments.data_args import LIMITS, SPLITS, DataArguments
from prompt_tuning.data.files import WrittenJson, load_file
from prompt_tuning.data.formats import name_of_row
from prompt_tuning.data.saved import is_saved, load_saved, saved_splits
from prompt_tuning.data.splitting import description, is_cut, split_numbers, split_size
from prompt_tuning.errors import DataError, ErrorList, first_line
from prompt_tuning.hub.download import hub_answers
from prompt_tuning.support.data_files import matching_files
from prompt_tuning.support.files import looks_like_path
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import listed
from prompt_tuning.templates.shapes import language_pair, standard_columns, with_translation

logger = logging.getLogger(__name__)

NOT_FROM_HUB = (DatasetNotFoundError, FileNotFoundError, ConnectionError, HTTPError, ValueError, RuntimeError)
"""The errors of a data set that cannot be loaded; one with a script is refused by a RuntimeError."""


def check_split(split: str) -> None:
    """Raise a DataError unless there is a split of this name."""
    if split not in SPLITS:
        raise DataError(f"split {split}: there is no such split. Name one of {', '.join(SPLITS)}.")


def load_splits(args: DataArguments, splits: tuple[str, ...] = SPLITS) -> DatasetDict:
    """Load the splits that the recipe has, with its columns renamed to the standard ones and max_*_samples applied.

    Standard columns are question, context, answers {text, answer_start} of a question; document, summary; and
    translation {language code: text}.

    Args:
        args: names files, a data set of the hub, or a folder that `save_to_disk` wrote.
        splits: the splits to load; one that `args` does not name is left out.

    Returns:
        The rows of every split. With `streaming` the training split is an IterableDataset, of which only the first
        rows were read.

    Raises:
        DataError: everything that is wrong with any of the splits, with file and line where there is one.
    """
    loaded = DatasetDict()
    errors = ErrorList()
    cut: dict[str, Dataset] = {}
    with errors.collect():
        if is_cut(args):
            cut = _cut_training_rows(args)
    for split in splits:
        with errors.collect():
            dataset = cut[split] if split in cut else _read_split(args, split)
            if dataset is not None:
                loaded[split] = _limited(dataset, args, split)
    errors.raise_all()
    return loaded


def split_names(args: DataArguments) -> list[str]:
    """Return the names of the splits of `dataset_name`, a data set of the hub or a folder that `save_to_disk` wrote.

    Raises:
        DataError: the folder is damaged, or the hub has no such data set or cannot be reached.
    """
    name = str(args.dataset_name)
    if is_saved(name):
        return [*saved_splits(name)]
    _check_reachable(args, "train")
    try:
        return get_dataset_split_names(name, args.dataset_config_name, revision=args.dataset_revision)
    except NOT_FROM_HUB as error:
        raise _not_from_hub(args, "train", error) from error


def split_origin(args: DataArguments, split: str) -> str:
    """Return what messages call a split: its file, or `dataset_name[split]`, and the size of one that is cut."""
    size = split_size(args, split)
    if size:
        return f"{split_origin(args, 'train')}, {split}_size {size}"
    return getattr(args, f"{split}_file") or f"{args.dataset_name}[{getattr(args, f'{split}_split')}]"


def row_origin(args: DataArguments, split: str, index: int) -> str:
    """Return what messages call row `index`, from 0, of a split: `train.jsonl, line 12`, or `squad[train], row 12`."""
    if is_cut(args) and (split == "train" or split_size(args, split)):
        changed = tuple(file.stat().st_mtime_ns for file in matching_files(args.train_file or ""))
        index = _numbers_for_messages(json.dumps(asdict(args)), changed)[split][index]
        split = "train"
    file = getattr(args, f"{split}_file")
    name = name_of_row(matching_files(file), index) if file else None
    return name or f"{split_origin(args, split)}, row {index}"


def column_names(rows: Dataset | IterableDataset) -> list[str]:
    """Return the names of the columns; those of the first row, if a stream does not know them."""
    return rows.column_names or list(next(iter(rows)))


def streamed_rows(rows: IterableDataset, args: DataArguments) -> Iterator[dict[str, Any]]:
    """Yield the training rows of a stream in their order.

    Raises:
        DataError: there are no rows, or one cannot be read, with file and line where there is one.
    """
    number = -1
    try:
        for number, row in enumerate(rows):
            if not args.train_file and _holds_time(row):
                raise DataError(
                    f"{row_origin(args, 'train', number)}: a text that is a date was read as a time; name a local "
                    "train_file, whose texts are read as they are written"
                )
            yield row
    except (ValueError, ConnectionError, HTTPError) as error:
        # pyarrow's errors are ValueErrors. The reader of local files raises only DataErrors.
        raise _not_from_hub(args, "train", error) from error
    if number < 0:
        raise DataError(f"{split_origin(args, 'train')}: no rows; the train split needs at least one")


def with_standard_columns(row: dict[str, Any], args: DataArguments) -> dict[str, Any]:
    """Return a row as `load_splits` would, also with the standard columns that a recipe takes from other ones.

    Columns that the row lacks are ignored.
    """
    renamed = {standard: row[name] for standard, name in standard_columns(vars(args)).items() if name in row}
    row = row | renamed
    if args.task == "translation":
        row = dict(with_translation(row, args.source_lang, args.target_lang))
    return row


@functools.cache
def _log_once(line: str) -> None:
    """Log a line, unless this process has logged it: `init` and comparisons load the same rows several times."""
    logger.info("%s", line)


def _cut_training_rows(args: DataArguments) -> dict[str, Dataset]:
    """Return the splits that are cut from the training rows, with the rest as train, and log their sizes."""
    rows = _read_split(args, "train")
    if rows is None:
        raise DataError("validation_size, test_size: no training rows to cut them from. Set train_file.")
    origin = split_origin(args, "train")
    numbers = split_numbers(rows, args, origin)
    _log_once(f"{origin}: {description(numbers, rows, args)}")
    return {split: rows.select(numbers[split]) for split in numbers}


@functools.lru_cache(maxsize=4)
def _numbers_for_messages(settings: str, changed: tuple[int, ...]) -> dict[str, list[int]]:
    """Return the numbers of the rows of splits that are cut, for the messages about single rows.

    Args:
        settings: DataArguments as JSON.
        changed: the times at which the files were changed, so that another content is read again.
    """
    args = DataArguments(**json.loads(settings))
    rows = _read_split(args, "train")
    return {} if rows is None else split_numbers(rows, args, split_origin(args, "train"))


def _read_split(args: DataArguments, split: str) -> Dataset | IterableDataset | None:
    """Return all rows of a split with the standard columns; None if the recipe has no such split."""
    file = getattr(args, f"{split}_file")
    streaming = args.streaming and split == "train"
    if file:
        dataset = load_file(file, streaming=streaming)
    elif args.dataset_name and is_saved(args.dataset_name):
        dataset = _load_saved(args, split, streaming=streaming)
        if dataset is None:
            return None
    elif args.dataset_name:
        dataset = _load_from_hub(args, split, streaming=streaming)
    else:
        return None
    if streaming and not dataset.column_names:
        # A stream does not know its columns if it has no rows, or cannot read the first; reading raises the reason.
        next(streamed_rows(dataset, args))
    return _standard_columns(dataset, args, split_origin(args, split))


def _limited(dataset: Dataset | IterableDataset, args: DataArguments, split: str) -> Dataset | IterableDataset:
    """Return the first rows of a split, as many as its limit allows."""
    limit = getattr(args, LIMITS[split])
    if isinstance(dataset, IterableDataset):
        return dataset if limit is None else dataset.take(limit)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    if len(dataset) == 0:
        raise DataError(f"{split_origin(args, split)}: no rows; the {split} split needs at least one")
    return dataset


def _holds_time(value: Any) -> bool:
    """Return True if a value of a row is a time or holds one, at any depth."""
    if isinstance(value, dict):
        return any(map(_holds_time, value.values()))
    if isinstance(value, list):
        return any(map(_holds_time, value))
    return isinstance(value, datetime)


def _load_saved(args: DataArguments, split: str, *, streaming: bool) -> Dataset | IterableDataset | None:
    """Return a split of a folder that `save_to_disk` wrote; None if it lacks the split and the recipe names none."""
    folder = str(args.dataset_name)
    for setting in ("dataset_config_name", "dataset_revision"):
        if getattr(args, setting):
            raise DataError(f"{setting} has no effect: {folder} is a folder of save_to_disk. Leave it out.")
    name = getattr(args, f"{split}_split")
    splits = saved_splits(folder)
    if name == split and name not in splits:
        logger.info("%s: no split %s; it has %s", folder, name, ", ".join(splits))
        return None
    return load_saved(folder, name, streaming=streaming)


def _load_from_hub(args: DataArguments, split: str, *, streaming: bool) -> Dataset | IterableDataset:
    name = getattr(args, f"{split}_split")
    _check_reachable(args, split)
    try:
        return load_dataset(
            args.dataset_name,
            args.dataset_config_name,
            split=name,
            revision=args.dataset_revision,
            streaming=streaming,
        )
    except NOT_FROM_HUB as error:
        raise _not_from_hub(args, split, error) from error


def _check_reachable(args: DataArguments, split: str) -> None:
    """Raise a DataError for a path that does not exist, and for a hub that does not answer."""
    name = str(args.dataset_name)
    if Path(name).exists():
        return
    if looks_like_path(name):
        raise DataError(f"dataset {name}: no such folder (looked in {Path.cwd()}). Name another folder or a hub id.")
    # datasets names a folder in its cache after the owner of a data set.
    is_cached = any(Path(config.HF_DATASETS_CACHE).glob(f"{name.split('/')[0]}*"))
    if not is_cached and not hub_answers(name, "dataset", RunFolder.CARD, args.dataset_revision):
        raise _not_from_hub(args, split, ConnectionError(f"Couldn't reach {constants.ENDPOINT}"))


def _not_from_hub(args: DataArguments, split: str, error: Exception) -> DataError:
    name = getattr(args, f"{split}_split")
    return DataError(
        f"dataset {args.dataset_name}, split {name}: {first_line(error)}; check the id, "
        f"dataset_config_name, {split}_split and the connection, or name a local {split}_file"
    )


def _standard_columns(
    dataset: Dataset | IterableDataset, args: DataArguments, origin: str
) -> Dataset | IterableDataset:
    """Rename columns to the standard ones, and make a translation of two columns, one for each language."""
    present = column_names(dataset)
    names = list(present)
    for standard, name in standard_columns(vars(args)).items():
        if not name or name == standard:
            continue
        if name not in names:
            setting = next(key for key, value in vars(args).items() if value == name and key.endswith("_column"))
            raise DataError(f"{setting} {name}: {origin} has no such column. Name one of {listed(present, 30)}.")
        if standard in names:
            dataset = dataset.remove_columns([standard])
            names.remove(standard)
        dataset = dataset.rename_column(name, standard)
        names[names.index(name)] = standard
    codes = (args.source_lang, args.target_lang)
    makes_pair = args.task == "translation" and "translation" not in names
    if makes_pair and set(codes) <= set(language_pair(next(iter(dataset), {}), *codes)):
        return _with_translation(dataset, codes)
    return dataset


def _with_translation(
    dataset: Dataset | IterableDataset, codes: tuple[str | None, str | None]
) -> Dataset | IterableDataset:
    """Add a column `translation` of every row's `language_pair`."""
    if isinstance(dataset, IterableDataset):
        return dataset.map(lambda row: {"translation": language_pair(row, *codes)})
    names = dataset.column_names

    def pair(*values: Any) -> dict[str, str]:
        row = dict(zip(names, values, strict=True))
        return {"translation": WrittenJson().encode_example(language_pair(row, *codes))}

    # map does not encode its result, and with input_columns it leaves the columns that it reads as they are.
    features = Features(dataset.features | {"translation": WrittenJson()})
    return dataset.map(pair, input_columns=names, features=features)
