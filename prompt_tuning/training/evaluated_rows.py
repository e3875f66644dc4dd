"""The rows of one evaluation: their order, their common prefix, and what is summed while they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Cache
from transformers.trainer_utils import has_length

from prompt_tuning.encoding.batching import common_prefix
from prompt_tuning.engine.row_tree import length_order
from prompt_tuning.errors import DataError


def check_length(rows: Any) -> None:
    """Raise a DataError for a stream, since an evaluation needs to know all rows."""
    if not has_length(rows):
        raise DataError(
            f"evaluation needs to know all rows, and a {type(rows).__name__} has no length. Pass a Dataset."
        )


@dataclass
class EvaluatedRows:
    """Rows by length, for one pass over them.

    Args:
        rows: in the order in which they are read.
        order: `[rows]`, the place of each row in its data set.
        common_prefix: ids that open the source of every row of a causal model.
        references: the texts that count as right, if the rows have them.
        choices: for closed questions, the texts and the ids of the choices, by the row's number.
        labelled: the rows have labels.
        with_loss: the evaluation also computes a loss.
        num_unread: rows that all processes together have not read yet.
        summed_loss: the loss of all target tokens that were read.
        loss_items: the number of these tokens.
        choice_scores: the scores of the choices of the rows that this process read, by the row's number.
        common_prefix_cache: keys and values of the common prefix, unless the cache of a prompt holds them.
    """

    rows: Dataset
    order: np.ndarray
    common_prefix: list[int]
    references: list[list[str]] | None
    choices: dict[int, tuple[list[str], list[list[int]]]] | None
    labelled: bool
    with_loss: bool
    num_unread: int
    summed_loss: float = 0.0
    loss_items: int = 0
    choice_scores: dict[int, list[float]] = field(default_factory=dict)
    common_prefix_cache: Cache | None = None

    @classmethod
    def of(cls, rows: Any, *, causal: bool, with_loss: bool = True) -> EvaluatedRows:
        """Sort the rows of a `Dataset`, or of anything else with a length and items.

        Raises:
            DataError: a stream, or rows with choices that share a number.
        """
        if not isinstance(rows, Dataset):
            check_length(rows)
            rows = Dataset.from_list([dict(rows[number]) for number in range(len(rows))])
        rows = rows.with_format(None)
        labelled = "labels" in rows.column_names
        if not labelled:  # All of a causal row is then its source.
            rows = rows.add_column("labels", [[-100] * len(ids) for ids in rows["input_ids"]])
        prefix = common_prefix(rows) if causal else []
        order = np.array(length_order(list(rows["input_ids"]), share=causal), dtype=int)
        rows = rows.select(order)
        references = rows["references"] if "references" in rows.column_names else None
        choices = None
        if "choice_ids" in rows.column_names:
            pairs = zip(rows["choices"], rows["choice_ids"], strict=True)
            choices = dict(zip(rows["row"], pairs, strict=True))
            if len(choices) < len(rows):
                raise DataError("rows with choices: some have the same number in the column row. Give each its own.")
        return cls(rows, order, prefix, references, choices, labelled, with_loss and labelled, num_unread=len(rows))

    def in_order(self, values: np.ndarray) -> np.ndarray:
        """Return values of the rows as they were read in the order of the data set.

        Those after the rows are of repeated ones, which filled the last batch of several processes.
        """
        return values[: len(self.rows)][np.argsort(self.order)]

    def add_loss(self, mean: float, items: int) -> None:
        """Add the mean loss of a batch over so many target tokens."""
        self.summed_loss += mean * items
        self.loss_items += items
