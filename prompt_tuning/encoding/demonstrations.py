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
from prompt_tuning.support.text import counted, words


@dataclass(frozen=True)
class Demonstrations:
    """The training rows that a recipe may show.

    Args:
        encoder: the recipe's encoder, with the fixed demonstrations in its template.
        train: the training rows.
        count: the number of demonstrations a row is shown.
        numbers: the number of the first training row of every source.
        fixed: the numbers of the training rows that every row is shown; empty if every row has its own.
    """

    encoder: Encoder
    train: Dataset
    count: int
    numbers: dict[Source, int]
    fixed: tuple[int, ...] = ()

    @classmethod
    def choose(cls, encoder: Encoder, train: Dataset, count: int, selection: str, seed: int) -> Demonstrations:
        """Choose the demonstrations as a recipe asks for them.

        Args:
            encoder: the recipe's encoder.
            train: the training rows.
            count: the number of demonstrations.
            selection: "random", "balanced" or "bm25".
            seed: draws the rows, and for `balanced` the order of the targets.

        Raises:
            DataError: there are too few training rows.
            RecipeError: the package that bm25 needs is not installed.
            TemplateError: a demonstration has a value that template.yaml cannot hold.
        """
        numbers, targets = _first_rows(encoder, train)
        # bm25 needs one more, because one of them may be the row itself.
        if len(numbers) < count + (selection == "bm25"):
            raise DataError(
                f"num_demonstrations is {count} and the training split has {counted(len(numbers), 'row')} of "
                "different sources; lower it, or give more training rows"
            )
        if selection == "bm25":
            _bm25s()
            return cls(encoder, train, count, numbers)
        if selection == "random":
            fixed = random.Random(seed).sample(list(targets), count)
        else:
            fixed = _balanced(targets, count, seed)
        # Other columns are left out, because demonstrations are saved with the run.
        columns = sorted(encoder.template.columns & set(train.column_names))
        shown = tuple(train.select(fixed).select_columns(columns))
        template = replace(encoder.template, demonstrations=encoder.template.demonstrations + shown)
        template.to_yaml()  # This raises the TemplateError that saving the run would raise.
        return cls(replace(encoder, template=template, num_chosen=count), train, count, numbers, tuple(fixed))

    def held_out(self) -> frozenset[int]:
        """Return the numbers of the training rows with the source of a fixed demonstration.

        Training on such a row would show it to itself.
        """
        sources = {source for source, number in self.numbers.items() if number in self.fixed}
        rows = enumerate(_sources(self.encoder, self.train))
        return frozenset(number for number, source in rows if source in sources)

    def nearest(self, rows: Dataset) -> list[list[int]] | None:
        """Return for every row the numbers of the training rows that it is shown, the nearest first.

        The distance is BM25 (Robertson and Zaragoza 2009) over the words of the source. Of rows that are equally near
        the earlier one comes first.

        Returns:
            `[rows][count]` numbers of training rows, or None if every row is shown the same ones.

        Raises:
            DataError: no training row has a word in its source.
        """
        if self.fixed:
            return None
        retriever = _bm25s().BM25()
        corpus = [_source_words(source) for source in self.numbers]
        if not any(corpus):
            raise DataError("no training row's source has a word, by which bm25 finds rows; choose at random")
        retriever.index(corpus, show_progress=False)
        places = list(self.numbers.values())
        nearest = []
        for source in _sources(self.encoder, rows):
            tokens = [word for word in _source_words(source or ()) if word in retriever.vocab_dict]
            scores = retriever.get_scores(tokens) if tokens else np.zeros(len(places))
            ranked = np.argsort(-scores, kind="stable")[: self.count + 1]
            itself = None if source is None else self.numbers.get(source)
            others = [places[place] for place in ranked.tolist() if places[place] != itself]
            nearest.append(others[: self.count])
        return nearest


def _first_rows(encoder: Encoder, train: Dataset) -> tuple[dict[Source, int], dict[int, str]]:
    """Return the first training row of every source, and the target of every such row.

    A row that the template cannot write is not among them.
    """
    numbers: dict[Source, int] = {}
    targets: dict[int, str] = {}
    for number, source in enumerate(_sources(encoder, train)):
        if source is None or source in numbers:
            continue
        try:
            targets[number] = encoder.template.render_target(train[number], encoder.languages)[0]
        except TemplateError:
            continue
        numbers[source] = number
    return numbers, targets


def _sources(encoder: Encoder, rows: Dataset) -> list[Source | None]:
    """Return the source of every row as rows are compared; None for a row that `encode` will report."""
    sources: list[Source | None] = []
    for row in rows:
        try:
            sources.append(encoder.template.source_key(row, encoder.languages))
        except TemplateError:
            sources.append(None)
    return sources


def _balanced(targets: dict[int, str], count: int, seed: int) -> list[int]:
    """Return one row of every target in turn, until there are enough; the seed draws the order of targets and rows."""
    draw = random.Random(seed)
    classes: dict[str, list[int]] = defaultdict(list)
    for number in draw.sample(list(targets), len(targets)):
        classes[targets[number].strip()].append(number)
    chosen: list[int] = []
    for turn in range(count):
        for rows in classes.values():
            chosen += rows[turn : turn + 1]
    return chosen[:count]


def _source_words(source: Sequence[str]) -> list[str]:
    return words(" ".join(source))


def _bm25s() -> Any:
    """Return the package bm25s, which is an optional dependency."""
    try:
        import bm25s
    except ImportError:
        raise RecipeError(
            "demonstration_selection bm25 needs the package bm25s, which is not installed; "
            "`pip install bm25s`, or set demonstration_selection: random or balanced"
        ) from None
    return bm25s
