"""The rows of one evaluation: their order, what they open with, and what is summed while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Cache

from prompt_tuning.encoding.batching import common_prefix
from prompt_tuning.engine.kv_cache import length_order
from prompt_tuning.errors import DataError


@dataclass
class EvaluatedRows:
    """Rows by length, for one pass over them.

    Args:
        rows: in the order that they are read.
        order: `[rows]`, the number that each has in its data set.
        opening: ids that open the source of every row of a causal model.
        references: texts that count as right, if the rows have them.
        choices: of closed questions by the row's number the texts of its choices, and their ids.
        with_loss: whether the loss is wanted too.
        left: rows on all processes that have not been read yet.
    """

    rows: Dataset
    order: np.ndarray
    opening: list[int]
    references: list[list[str]] | None
    choices: dict[int, tuple[list[str], list[list[int]]]] | None
    with_loss: bool
    left: int
    summed_loss: float = 0.0
    loss_items: int = 0
    common_prefix_cache: Cache | None = None  # its keys and values, where no prompt's cache holds them

    @classmethod
    def of(cls, rows: Any, causal: bool, with_loss: bool = True) -> EvaluatedRows:
        """Of a `Dataset`, or anything else with a length and items.

        Raises:
            DataError: a stream, or rows with choices that share a number.
        """
        if not isinstance(rows, Dataset):
            if not hasattr(rows, "__len__"):
                raise DataError(f"evaluation needs to know all rows, and a {type(rows).__name__} has no length")
            rows = Dataset.from_list([dict(rows[number]) for number in range(len(rows))])
        rows = rows.with_format(None)
        opening = common_prefix(rows) if causal else []
        order = np.array(length_order(list(rows["input_ids"]), share=causal), dtype=int)
        rows = rows.select(order)
        references = rows["references"] if "references" in rows.column_names else None
        choices = None
        if "choice_ids" in rows.column_names:
            pairs = zip(rows["choices"], rows["choice_ids"], strict=True)
            choices = dict(zip(rows["row"], pairs, strict=True))
            if len(choices) < len(rows):
                raise DataError("rows with choices need a number each in the column row, and some have the same")
        return cls(rows, order, opening, references, choices, with_loss, left=len(rows))

    def add_loss(self, mean: float, items: int) -> None:
        """Of a batch, over so many target tokens."""
        self.summed_loss, self.loss_items = self.summed_loss + mean * items, self.loss_items + items
