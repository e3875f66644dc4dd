"""Cut a test and a validation split from the training rows, with rows of one passage on one side."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain

from datasets import Dataset

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.errors import DataError
from prompt_tuning.support.text import counted, normalised

SEED = 42
"""The default of split_seed. `seed` does not count, so that trainings with several seeds have the same rows."""

GROUP_COLUMNS = {
    "question_answering": ("context", "document", "question"),
    "summarization": ("document",),
    "translation": ("translation",),
}
"""The columns of each task that may keep rows together; the first one that the rows have does."""

CUT = ("test", "validation")
"""The splits that may be cut, the first one first, so that validation_size does not change the test rows."""


def split_size(args: DataArguments, split: str) -> float | None:
    """Return the share or the number of the training rows that a split takes; None if it is not cut from them."""
    return getattr(args, f"{split}_size") if split in CUT else None


def is_cut(args: DataArguments) -> bool:
    """Return True if the training rows are cut into several splits."""
    return args.validation_size is not None or args.test_size is not None


def split_numbers(rows: Dataset, args: DataArguments, origin: str) -> dict[str, list[int]]:
    """Return the numbers of the rows of every split, in their order.

    The groups are ordered by a digest of their text and the seed. So the same rows give the same splits on any
    machine, in any order and by any command.

    Args:
        rows: all training rows, with the standard columns.
        args: test_size, validation_size and split_seed. A size from 1 is a number of rows, as in `train_test_split`.
            A split never has more rows, and has fewer if no other passage fits.
        origin: what messages call the rows.

    Raises:
        DataError: a split or the rest would have no rows.
    """
    groups = passages(rows, args)
    seed = SEED if args.split_seed is None else args.split_seed
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    numbers: dict[str, list[int]] = {}
    for split in CUT:
        size = split_size(args, split)
        if size is None:
            continue
        num_rows = math.ceil(size * len(rows)) if size < 1 else int(size)
        taken = _fill(order, groups, num_rows)
        numbers[split] = _rows_of(taken, groups)
        order = [key for key in order if key not in taken]
    numbers["train"] = _rows_of(order, groups)
    for split, rows_of_split in numbers.items():
        if not rows_of_split:
            raise DataError(
                f"{origin}: {counted(len(rows), 'row')} with {counted(len(groups), 'passage')} cannot be cut, since "
                f"no passage is left that fits {split}. Change {' and '.join(_settings(args))}, or add rows."
            )
    return numbers


def description(numbers: dict[str, list[int]], rows: Dataset, args: DataArguments) -> str:
    """Return one line for the log with the number of rows of every split, and what keeps rows together."""
    counts = ", ".join(f"{len(numbers[split])} {split}" for split in sorted(numbers))
    column = group_column(rows, args)
    passage = "text to translate" if column == "translation" else column
    together = f"; rows with the same {passage} stay together" if column else ""
    return f"cut by {', '.join(_settings(args))} into {counts} rows{together}"


def _settings(args: DataArguments) -> list[str]:
    return [f"{split}_size {split_size(args, split)}" for split in CUT if split_size(args, split)]


def group_column(rows: Dataset, args: DataArguments) -> str | None:
    """Return the column that keeps rows together in one split, if the rows have one."""
    columns = GROUP_COLUMNS[args.task] if args.task else ()
    return next(filter(rows.column_names.__contains__, columns), None)


def passages(rows: Dataset, args: DataArguments) -> dict[str, list[int]]:
    """Return the numbers of the rows of every passage, compared without case and white space.

    A row without a passage is a group of its own.
    """
    column = group_column(rows, args)
    groups: dict[str, list[int]] = defaultdict(list)
    values = rows[column] if column else [None] * len(rows)
    for number, value in enumerate(values):
        if column == "translation" and isinstance(value, dict):
            value = value.get(args.source_lang, value)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
        groups[f"row {number}" if value is None else f"text {normalised(text)}"].append(number)
    return groups


def _rows_of(keys: Iterable[str], groups: dict[str, list[int]]) -> list[int]:
    return sorted(chain.from_iterable(map(groups.__getitem__, keys)))


def _fill(order: list[str], groups: dict[str, list[int]], num_rows: int) -> set[str]:
    """Return the first groups that fit into `num_rows` rows; one that does not fit is passed over."""
    taken: set[str] = set()
    room = num_rows
    for key in order:
        if len(groups[key]) <= room:
            taken.add(key)
            room -= len(groups[key])
    return taken
