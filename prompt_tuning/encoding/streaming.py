"""Training rows that are read and encoded as training needs them, for data of which nothing is to be written first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from datasets import IterableDataset

from prompt_tuning.data.loading import row_origin, split_origin, streamed_rows
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import DataError, OverlongError, TemplateError
from prompt_tuning.recipe.recipe import Recipe

FIRST_ROWS = 100  # encoded before a model loads
BUFFER_SIZE = 1000  # as IterableDataset.shuffle has it


@dataclass
class StreamReport:
    """What encoding did to the rows of a stream so far; a row that is read again, in another pass, counts again.

    Rows that wait to be shuffled are among them, and after a resume those that were trained on before.
    """

    rows: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    dropped_rows: int = 0
    longest: int = 0

    def __str__(self) -> str:
        if not self.rows:
            return f"a stream, of which the first {FIRST_ROWS} rows were read"
        cut = f"{self.cut_rows} cut by {self.cut_tokens} tokens in all" if self.cut_rows else "none cut"
        dropped = f", {self.dropped_rows} left out" if self.dropped_rows else ""
        return f"a stream: {self.rows} rows read, {cut}{dropped}, longest {self.longest} tokens"


@dataclass(frozen=True)
class Stream:
    """Where the rows come from, and what is done to them."""

    recipe: Recipe
    rows: IterableDataset
    encoder: Encoder
    report: StreamReport


def encode_stream(recipe: Recipe, rows: IterableDataset, encoder: Encoder) -> tuple[IterableDataset, StreamReport]:
    """The training rows' `input_ids`, `labels` and number `row`, pass after pass without an end, and the report to be.

    Order and shuffling are a function of the seed alone, so that a resumed training skips what it was trained on. The
    passes are one epoch to Trainer, which would lose its place in a second one: it has no length to count with.

    Raises:
        DataError: one of the first rows cannot be read or encoded. Of a later one it is raised when it is read.
    """
    deque(islice(encoded_rows(Stream(recipe, rows, encoder, StreamReport())), FIRST_ROWS), maxlen=0)
    stream = Stream(recipe, rows, encoder, StreamReport())
    return IterableDataset.from_generator(_passes, gen_kwargs={"stream": stream}), stream.report


def _passes(stream: Stream) -> Iterator[dict[str, Any]]:
    """Each shuffled by itself, so that none starts before the one before it has ended."""
    for number in count():
        rows = IterableDataset.from_generator(encoded_rows, gen_kwargs={"stream": stream})
        seed = stream.recipe.training.seed + number
        yield from rows.shuffle(seed=seed, buffer_size=stream.recipe.data.buffer_size or BUFFER_SIZE)


def encoded_rows(stream: Stream) -> Iterator[dict[str, Any]]:
    """One pass.

    Raises:
        DataError: a row cannot be read or encoded, with its file and line or number; or all are too long.
    """
    data, report, encoder = stream.recipe.data, stream.report, stream.encoder
    before = report.rows
    for number, row in enumerate(streamed_rows(stream.rows, data)):
        try:
            encoded = encoder.training_row(row)
        except OverlongError as error:
            if not stream.recipe.prompt.drop_overlong:
                raise DataError(f"{row_origin(data, 'train', number)}: {error}") from error
            report.dropped_rows += 1
            continue
        except TemplateError as error:
            raise DataError(f"{row_origin(data, 'train', number)}: {error}") from error
        report.rows += 1
        report.cut_rows += encoded["cut"] > 0
        report.cut_tokens += encoded["cut"]
        report.longest = max(report.longest, len(encoded["input_ids"]))
        yield {name: encoded[name] for name in ("input_ids", "labels")} | {"row": number}
    if report.rows == before:
        raise DataError(f"{split_origin(data, 'train')}: all rows were left out as too long")
