"""Read and encode training rows as training needs them, for data that is too large to be written first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from datasets import IterableDataset

from prompt_tuning.data.loading import row_origin, split_origin, streamed_rows
from prompt_tuning.encoding.row_checks import UNREACHABLE_SHOWN, RowCounts
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import DataError, EmptyRowError, OverlongError, OverlongTargetError, TemplateError
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.support.text import counted

FIRST_ROWS = 100
"""The number of rows that are encoded before a model loads, so that most errors show at once."""

BUFFER_SIZE = 1000
"""The number of rows to shuffle among; the default of IterableDataset.shuffle."""


class StreamReport(RowCounts):
    """What encoding did to the rows of a stream so far.

    A row that is read again in another pass counts again. Rows that wait to be shuffled count, and after a resume also
    those that the stopped run trained on.
    """

    def __str__(self) -> str:
        """Return one line for the log."""
        if not self.rows:
            return f"a stream, of which the first {FIRST_ROWS} rows were read"
        rows = f"a stream: {counted(self.rows, 'row')} read"
        return ", ".join([rows, *self.losses(), f"longest {counted(self.longest, 'token')}"])

    def add(self, number: int, encoded: dict[str, Any]) -> None:
        """Count an encoded row."""
        self.rows += 1
        self.cut_rows += encoded["cut_tokens"] > 0
        self.cut_tokens += encoded["cut_tokens"]
        self.untrained_rows += encoded["untrained_tokens"] > 0
        self.untrained_tokens += encoded["untrained_tokens"]
        self.longest = max(self.longest, len(encoded["input_ids"]))
        self.cut_answers += encoded["answer_cut"]
        if encoded["unreachable"]:
            self.unreachable_targets += 1
            if len(self.unreachable) < UNREACHABLE_SHOWN:
                self.unreachable += ((number, encoded["unreachable"]),)


@dataclass(frozen=True)
class Stream:
    """The rows of a stream, how they are encoded, and the report that is filled meanwhile."""

    recipe: Recipe
    rows: IterableDataset
    encoder: Encoder
    report: StreamReport


def encode_stream(
    recipe: Recipe, rows: IterableDataset, encoder: Encoder
) -> tuple[IterableDataset, StreamReport, StreamReport]:
    """Return the training rows of a stream, pass after pass without an end, and their report, which training fills.

    Order and shuffling depend only on the seed, so that a resumed training skips the rows it was trained on. All
    passes are one epoch to Trainer: in a second epoch it would lose its place, because a stream has no length.

    Returns:
        Rows with `input_ids`, `labels` and their number `row`; their report; and the report of the first rows.

    Raises:
        DataError: one of the first rows cannot be read or encoded. A bad later row raises when it is read.
    """
    first = StreamReport()
    for _ in islice(encoded_rows(Stream(recipe, rows, encoder, first)), FIRST_ROWS):
        pass
    stream = Stream(recipe, rows, encoder, StreamReport())
    return IterableDataset.from_generator(_passes, gen_kwargs={"stream": stream}), stream.report, first


def _passes(stream: Stream) -> Iterator[dict[str, Any]]:
    """Yield the rows of pass after pass, each shuffled separately, so that passes do not mix."""
    for number in count():
        rows = IterableDataset.from_generator(encoded_rows, gen_kwargs={"stream": stream})
        seed = stream.recipe.training.seed + number
        yield from rows.shuffle(seed=seed, buffer_size=stream.recipe.data.buffer_size or BUFFER_SIZE)


def encoded_rows(stream: Stream) -> Iterator[dict[str, Any]]:
    """Yield the encoded rows of one pass.

    Raises:
        DataError: a row cannot be read or encoded, named by its file and line or number; or all rows are too long.
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
            report.dropped_targets += isinstance(error, OverlongTargetError)
            continue
        except EmptyRowError as error:
            if not stream.recipe.prompt.drop_empty:
                message = f"{row_origin(data, 'train', number)}: {error}. Set drop_empty: true to leave such rows out."
                raise DataError(message) from error
            report.empty_rows += 1
            continue
        except TemplateError as error:
            raise DataError(f"{row_origin(data, 'train', number)}: {error}") from error
        report.add(number, encoded)
        yield {"input_ids": encoded["input_ids"], "labels": encoded["labels"], "row": number}
    if report.rows == before:
        raise DataError(
            f"{split_origin(data, 'train')}: all rows were left out as too long or empty; raise "
            "max_source_tokens, or correct the rows or the template"
        )
