"""Read rows and write them with their predictions, in the order of the input."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO, TypedDict

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from prompt_tuning.data.rows import LocalRows
from prompt_tuning.data.writing import is_table
from prompt_tuning.encoding.batching import streamed_batches
from prompt_tuning.errors import DataError
from prompt_tuning.reports.losses import PREDICTION_LOSSES, prediction_counts
from prompt_tuning.runs.answers import Question
from prompt_tuning.runs.input_rows import (
    OriginAndRow,
    input_name,
    no_rows,
    open_input,
    raise_error,
    read_row,
    stream_input,
)
from prompt_tuning.runs.predictor import Predictor
from prompt_tuning.runs.shares import Share
from prompt_tuning.support.data_files import checked_path
from prompt_tuning.support.json_values import without_nan
from prompt_tuning.support.text import agreed, counted, print_text, printable_json

NEW_COLUMNS = ("prediction", "truncated", "at_limit", "score")
"""The columns that `predict` adds to rows."""


class AskedRow(NamedTuple):
    """A row, where it is from, and what the model is asked."""

    origin: str
    row: dict[str, Any]
    question: Question


class PredictedRow(TypedDict):
    """What `predict` and `requests` write of a row besides its own columns."""

    prediction: str


@dataclass(frozen=True)
class PredictSettings:
    """How rows are predicted.

    Args:
        batch_size: the most rows that are predicted together.
        batch_tokens: the most tokens that are predicted together, padding and new tokens included.
        with_truncated: write the columns `truncated` (the row was cut to fit max_source_tokens) and `at_limit` (only
            the limit of new tokens ended the prediction).
        with_scores: write the column `score`, the mean log-probability of the prediction's tokens.
        trust_remote_code: run the Python code that is with the model.
    """

    batch_size: int = 8
    batch_tokens: float = float("inf")
    with_truncated: bool = False
    with_scores: bool = False
    trust_remote_code: bool = False


def predict(
    adapters: Sequence[str],
    source: str = "-",
    output: str = "-",
    model_name_or_path: str | None = None,
    settings: PredictSettings | None = None,
) -> dict[str, int]:
    """Predict for every row of a file or of standard input, a batch at a time.

    In one of several processes of a launch, predict for a share of the rows; the first process writes them all.

    Args:
        adapters: the folder of a run or its hub id; or of several, each also as NAME=RUN, for rows with `task`.
        source: a file or pattern as `train` reads it, or another file, of JSON Lines or plain text with one source a
            line; "-" is standard input.
        output: the file to write, with a column `prediction`: a table if its name is that of one, else JSON Lines;
            "-" is standard output.
        model_name_or_path: the base model, if it is no longer where it was.
        settings: how rows are predicted.

    Returns:
        How many `rows` there were, and how many of them were cut, or have a prediction that is empty or at its limit.

    Raises:
        DataError: a row is bad, with its line. No output file is written then, except for lines: the rows before and
            after a bad one are predicted.
        PromptTuningError: as `Predictor.load` does.
    """
    settings = settings or PredictSettings()
    path = checked_path(source, output)
    is_table(output)
    share = Share.of_launch()
    share.check(path, output)
    rows: Iterable[OriginAndRow | None] | None = open_input(source, path)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    errors: list[DataError] = []
    with ExitStack() as files:
        # The output is opened first, so that a file that cannot be written is refused before the model loads.
        file = files.enter_context(share.output(output))
        predictor = Predictor.load(
            adapters[0] if len(adapters) == 1 else adapters,
            model_name_or_path,
            trust_remote_code=settings.trust_remote_code,
        )
        bar = files.enter_context(_bar(rows, share, output))
        on_error: Callable[[DataError], None] = raise_error
        if rows is None:
            on_error = raise_error if share.of > 1 else _reporter(errors)
            rows = stream_input(source, path, predictor.encoder, files, on_error=on_error)
        counts: Counter[str] = Counter()

        def read(origin: str, row: dict[str, Any]) -> Question:
            name = predictor.task_name(row, origin)
            task = predictor.all_tasks[name]
            return read_row(task.encoder, task.data, origin, row, name)

        asked = ask_rows(share.rows(rows), read, counts, on_error=on_error)
        for batch in streamed_batches(
            asked, lambda of_row: predictor.length(of_row.question), settings.batch_size, settings.batch_tokens
        ):
            _predict_batch(predictor, batch, file, settings, counts)
            file.flush()
            bar.update(len(batch))
        counts = share.total(counts)
        if not counts["rows"]:
            raise _without_prediction(source, errors)
        share.write(file, output)
    if share.number == 0:
        report_counts(counts)
    if errors:
        raise _without_prediction(source, errors)
    return dict(counts)


def ask_rows(
    rows: Iterable[OriginAndRow | None],
    read: Callable[[str, dict[str, Any]], Question],
    counts: Counter[str],
    *,
    on_error: Callable[[DataError], None] = raise_error,
) -> Iterator[AskedRow | None]:
    """Yield each row with its question, and None for each None.

    Args:
        rows: the rows of the input.
        read: returns the question of a row, whose origin comes first.
        counts: counts the rows for `report_counts`.
        on_error: called for a row that `read` refuses; the rows after it are read if it returns.
    """
    for origin_and_row in rows:
        if origin_and_row is None:
            yield None
            continue
        origin, row = origin_and_row
        try:
            question = read(origin, row)
        except DataError as error:
            on_error(error)
            continue
        _count_row(counts, question)
        yield AskedRow(origin, row, question)


def write_line(file: TextIO, row: dict[str, Any]) -> None:
    """Write a row as a line of JSON."""
    line = json.dumps(without_nan(row), ensure_ascii=False, default=str)
    file.write(f"{printable_json(line) if file is sys.stdout else line}\n")


def write_row(file: TextIO, row: dict[str, Any], columns: dict[str, Any], counts: Counter[str]) -> None:
    """Write a row with new columns, and count for `report_counts` which of its own columns they replace."""
    for name in columns:
        counts[f"replaced_{name}"] += name in row
    counts["nan"] += without_nan(row) != row
    write_line(file, row | columns)


def _count_row(counts: Counter[str], question: Question) -> None:
    """Count a row, and what its prediction does not see of it, for `report_counts`."""
    counts["rows"] += 1
    counts["cut"] += question.cut_tokens > 0
    counts["untrained"] += question.untrained_tokens > 0
    counts["fewer"] += question.omitted_demonstrations > 0


def report_counts(counts: Counter[str]) -> None:
    """Say for how many rows a prediction is of less than the row, is cut or is empty."""
    replaced = [(counts[f"replaced_{name}"], f"had a column {name!r}, which is replaced") for name in NEW_COLUMNS]
    for count, message in (
        *replaced,
        (counts["nan"], "have a number that JSON does not have, NaN or infinity, which is written as null"),
        (counts["cut"], "were cut to fit max_source_tokens"),
        (counts["untrained"], "have tokens of the trained text that no training row has, which are not trained"),
        (counts["fewer"], "have fewer demonstrations, to fit max_source_tokens"),
    ):
        if count:
            print_text(f"{count} of {counted(counts['rows'], 'row')} {agreed(count, message)}", file=sys.stderr)
    for name, message in PREDICTION_LOSSES.items():
        if counts[name]:
            of_all = counted(counts["rows"], "prediction")
            print_text(f"{counts[name]} of {of_all} {agreed(counts[name], message)}", file=sys.stderr)


def _reporter(errors: list[DataError]) -> Callable[[DataError], None]:
    """Return a function that keeps an error and prints it at once."""

    def report(error: DataError) -> None:
        errors.append(error)
        print_text(f"error: {error}", file=sys.stderr)

    return report


def _without_prediction(source: str, errors: list[DataError]) -> DataError:
    """Return the error of an input of which rows, or all of them, have no prediction."""
    if not errors:
        return no_rows(source)
    number = counted(len(errors), "row")
    return DataError(f"{input_name(source)}: {number} without a prediction. Correct what is named above.")


def _bar(rows: Iterable[Any] | None, share: Share, output: str) -> tqdm:
    """Return a progress bar, which a terminal shows unless the predictions are printed there."""
    total = None
    if isinstance(rows, LocalRows) and sys.stderr.isatty():
        total = sum(1 for _ in share.rows(rows))
    return tqdm(total=total, unit="row", disable=True if output == "-" and sys.stdout.isatty() else None)


def _predict_batch(
    predictor: Predictor, batch: list[AskedRow], file: TextIO, settings: PredictSettings, counts: Counter[str]
) -> None:
    """Write the rows of a batch with their predictions, and count them for the messages at the end."""
    _, rows, questions = zip(*batch, strict=True)
    texts, at_limit = [], []
    for row, answer in zip(rows, predictor.answers(questions, with_scores=settings.with_scores), strict=True):
        texts.append(answer.text)
        at_limit.append(answer.at_limit)
        columns: dict[str, Any] = {"prediction": answer.text}
        if settings.with_truncated:
            columns |= {"truncated": answer.truncated, "at_limit": answer.at_limit}
        if settings.with_scores:
            columns["score"] = answer.score
        write_row(file, row, columns, counts)
    counts.update(prediction_counts(texts, at_limit))
