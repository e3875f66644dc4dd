"""Few-shot demonstrations: training rows that a recipe shows before each source, as its template writes them.

`random` and `balanced` choose once, for all rows; they become the last of the template's own demonstrations. `bm25`
chooses for each row. A row is never shown itself, nor a training row of the same source.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset

from prompt_tuning.data.leakage import Source
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import DataError, RecipeError, TemplateError
from prompt_tuning.support.text import words


@dataclass(frozen=True)
class Nearest:
    """For each row of a split the training rows that are its demonstrations, the nearest first."""

    train: Dataset
    numbers: list[list[int]]

    def of(self, row: int) -> list[dict[str, Any]]:
        return [self.train[number] for number in self.numbers[row]]


@dataclass(frozen=True)
class Demonstrations:
    """The training rows of a recipe that may be shown.

    Args:
        encoder: of the recipe; with the demonstrations that are the same for every row, if they are.
        numbers: the first training row of each source.
        fixed: the training rows that are in the encoder's template.
    """

    encoder: Encoder
    train: Dataset
    count: int
    numbers: dict[Source, int]
    fixed: tuple[int, ...] = ()

    @classmethod
    def choose(cls, encoder: Encoder, train: Dataset, count: int, selection: str, seed: int) -> Demonstrations:
        """As a recipe asks for them.

        Raises:
            DataError: too few training rows. RecipeError: bm25's library is not there.
            TemplateError: one holds what template.yaml cannot.
        """
        numbers, targets = _sources(encoder, train)
        if len(numbers) < count + (selection == "bm25"):  # of which one may be the row itself
            raise DataError(
                f"num_demonstrations is {count} and the training split has {len(numbers)} rows of different sources; "
                "lower it, or give more training rows"
            )
        if selection == "bm25":
            _bm25s()
            return cls(encoder, train, count, numbers)
        fixed = (
            random.Random(seed).sample(list(targets), count)
            if selection == "random"
            else _balanced(targets, count, seed)
        )
        columns = sorted(encoder.template.columns & set(train.column_names))  # no others: they are saved with the run
        shown = tuple(train.select(fixed).select_columns(columns))
        template = replace(encoder.template, demonstrations=encoder.template.demonstrations + shown)
        template.to_yaml()  # as it is saved in the end
        return cls(replace(encoder, template=template, chosen=count), train, count, numbers, tuple(fixed))

    def held_out(self) -> frozenset[int]:
        """Training rows that have the source of a fixed one: they would be shown themselves."""
        keys = {source for source, number in self.numbers.items() if number in self.fixed}
        return frozenset(number for number, source in enumerate(_keys(self.encoder, self.train)) if source in keys)

    def nearest(self, rows: Dataset) -> Nearest | None:
        """For each row the training rows that are shown to it, the nearest first; None where these are fixed."""
        if self.fixed:
            return None
        retriever, corpus = _bm25s().BM25(), [_tokens(source) for source in self.numbers]
        if not any(corpus):
            raise DataError("no training row's source has a word, by which bm25 finds rows; choose at random")
        retriever.index(corpus, show_progress=False)
        places, chosen = list(self.numbers.values()), []
        for source in _keys(self.encoder, rows):
            tokens = [token for token in _tokens(source or ()) if token in retriever.vocab_dict]
            scores = retriever.get_scores(tokens) if tokens else np.zeros(len(places))
            ranked = np.argsort(-scores, kind="stable")[: self.count + 1].tolist()  # of equals the earlier row
            numbers = [places[place] for place in ranked]
            chosen.append([number for number in numbers if number != self.numbers.get(source)][: self.count])
        return Nearest(self.train, chosen)


def _sources(encoder: Encoder, train: Dataset) -> tuple[dict[Source, int], dict[int, str]]:
    """The first training row of each source, and the targets of these; rows that cannot be written are no choice."""
    numbers: dict[Source, int] = {}
    targets: dict[int, str] = {}
    for number, source in enumerate(_keys(encoder, train)):
        if source is None or source in numbers:
            continue
        try:
            target = encoder.template.render_target(train[number], encoder.languages)[0]
        except TemplateError:
            continue
        numbers[source], targets[number] = number, target
    return numbers, targets


def _keys(encoder: Encoder, rows: Dataset) -> list[Source | None]:
    """Each row's source as rows are compared; None for a row that cannot be written, which `encode` reports."""
    keys: list[Source | None] = []
    for row in rows:
        try:
            keys.append(encoder.template.source_key(row, encoder.languages))
        except TemplateError:
            keys.append(None)
    return keys


def _balanced(targets: dict[int, str], count: int, seed: int) -> list[int]:
    """One row of each target in turn, until there are enough; the order of targets and of rows is drawn."""
    draw = random.Random(seed)
    classes: dict[str, list[int]] = defaultdict(list)
    for number in draw.sample(list(targets), len(targets)):
        classes[targets[number].strip()].append(number)
    turns = [number for turn in range(count) for rows in classes.values() for number in rows[turn : turn + 1]]
    return turns[:count]


def _tokens(source: Sequence[str]) -> list[str]:
    return [word for text in source for word in words(text)]


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise RecipeError(
            "demonstration_selection bm25 needs the package bm25s, which is not installed; "
            "`pip install bm25s`, or set demonstration_selection: random or balanced"
        ) from None
    return bm25s
