"""Read rows and write them with their predictions, in the order of the input."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from transformers.utils import logging as transformers_logging

from prompt_tuning.arguments.arguments import DataArguments
from prompt_tuning.data.formats import rows_of_line, utf8_lines
from prompt_tuning.data.loading import with_standard_columns
from prompt_tuning.data.rows import open_rows
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import DataError, TemplateError
from prompt_tuning.reports.losses import PREDICTION_LOSSES, prediction_counts
from prompt_tuning.runs.predictor import Predictor, Question, read_question
from prompt_tuning.support.data_files import checked_path, file_format
from prompt_tuning.support.files import atomic_write
from prompt_tuning.support.text import agreed, counted, print_text, printable_json

OriginAndRow = tuple[str, dict[str, Any]]
"""Where a row is from, for messages, and the row."""


def predict(
    adapter: str,
    source: str = "-",
    output: str = "-",
    batch_size: int = 8,
    model_name_or_path: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Predict for every row of a file or of standard input, a batch at a time.

    Args:
        adapter: the folder of a run, or its hub id.
        source: a file or pattern as `train` reads it, or another file, of JSON Lines or plain text with one source a
            line; "-" is standard input.
        output: the file to write, JSON Lines with a column `prediction`; "-" is standard output.
        batch_size: the number of rows that are predicted together.
        model_name_or_path: the base model, if it is no longer where it was.
        trust_remote_code: run the Python code that is with the model.

    Raises:
        DataError: a row is bad, with its line. No output file is written then.
        PromptTuningError: as `Predictor.load` does.
    """
    path = checked_path(source, output)
    rows = open_input(source, path)
    transformers_logging.disable_progress_bar()
    with ExitStack() as files:
        # The output is opened first, so that a file that cannot be written is refused before the model loads.
        file = sys.stdout if output == "-" else files.enter_context(atomic_write(Path(output), named_by_user=True))
        predictor = Predictor.load(adapter, model_name_or_path, trust_remote_code=trust_remote_code)
        if rows is None:
            rows = stream_input(source, path, predictor.encoder, files)
        counts: Counter[str] = Counter()
        while batch := list(islice(rows, batch_size)):
            counts += _predict_batch(predictor, batch, file)
        if not counts["rows"]:
            raise DataError(f"{_name(source)}: no rows")
    report_counts(counts)


def count_row(counts: Counter[str], question: Question, row: dict[str, Any]) -> None:
    """Count a row, and what its prediction does not see of it, for `report_counts`."""
    counts["rows"] += 1
    counts["cut"] += question.cut_tokens > 0
    counts["untrained"] += question.untrained_tokens > 0
    counts["fewer"] += question.omitted_demonstrations > 0
    counts["replaced"] += "prediction" in row


def report_counts(counts: Counter[str]) -> None:
    """Say for how many rows a prediction is of less than the row, is cut or is empty."""
    for count, message in (
        (counts["replaced"], "had a column 'prediction', which is replaced"),
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


def _predict_batch(predictor: Predictor, batch: list[OriginAndRow], file: TextIO) -> Counter[str]:
    """Write the rows of a batch with their predictions; return the numbers of rows for the messages at the end."""
    counts: Counter[str] = Counter()
    questions = []
    for origin, row in batch:
        question = read_row(predictor.encoder, predictor.data, origin, row)
        questions.append(question)
        count_row(counts, question, row)
    predictions, limited = predictor.answer_to_limit(questions)
    counts.update(prediction_counts(predictions, limited))
    for (_, row), prediction in zip(batch, predictions, strict=True):
        line = json.dumps(row | {"prediction": prediction}, ensure_ascii=False, default=str)
        file.write(f"{printable_json(line) if file is sys.stdout else line}\n")
    file.flush()
    return counts


def read_row(encoder: Encoder, data: DataArguments, origin: str, row: dict[str, Any]) -> Question:
    """Return a row as token ids, or raise a DataError that says where it is from."""
    template = encoder.template
    missing = template.missing_columns(template.source_columns, with_standard_columns(row, data))
    if missing:
        names = ", ".join(map(repr, row))
        raise DataError(
            f"template {template.name} reads the column {missing[0]!r}, and {origin}, has {names}; "
            "rename one, or train with the setting that names it"
        )
    try:
        return read_question(encoder, data, row)
    except TemplateError as error:
        raise DataError(f"{origin}: {error}") from error


def open_input(source: str, path: Path | None) -> Iterator[OriginAndRow] | None:
    """Return the rows of a file that `train` reads; None for a file of lines and for standard input.

    A pipe may have the name of a file, and can be read only once.
    """
    return iter(open_rows(source)) if file_format(source) and path and path.is_file() else None


def stream_input(source: str, path: Path | None, encoder: Encoder, files: ExitStack) -> Iterator[OriginAndRow]:
    """Return the rows of a file of lines, or of standard input for None, which `files` closes."""
    stream = files.enter_context(path.open("rb")) if path else sys.stdin.buffer
    return _line_rows(utf8_lines(stream, _name(source)), encoder, source)


def _line_rows(lines: Iterator[tuple[int, str]], encoder: Encoder, source: str) -> Iterator[OriginAndRow]:
    """Yield the rows of JSON Lines, or of plain text with one source a line. The first line tells which it is."""
    is_json = True if source.endswith(".jsonl") else None
    first_empty: str | None = None
    for number, line in lines:
        origin = f"{_name(source)}, line {number}"
        empty = not line.strip()
        if empty:
            first_empty = first_empty or origin
        elif is_json is None:
            is_json = _is_json(line, origin)
        if is_json is False and first_empty:
            raise DataError(f"{first_empty}: empty; plain text needs one source on every line")
        if is_json and not empty:
            for place, row in rows_of_line(line, _name(source), number):
                yield f"{_name(source)}, line {place}", row
        elif not empty:
            yield origin, _text_row(line, encoder)


def _is_json(line: str, origin: str) -> bool:
    """Return True if the first line of a file is that of JSON Lines."""
    if re.match(r"\s*\[\s*(\{|$)", line):
        raise DataError(f"{origin}: a JSON array; give an object a line, or name the file .json")
    return line.lstrip().startswith("{")


def _text_row(line: str, encoder: Encoder) -> dict[str, Any]:
    """Return a line of plain text as a row of the one column that the template reads."""
    text = line.rstrip("\r\n")
    columns = sorted(encoder.template.source_columns)
    if len(columns) != 1:
        raise DataError(
            f"plain text has one column and template {encoder.template.name} reads {len(columns)} "
            f"({', '.join(columns)}); "
            f'give JSON Lines, as {{"{columns[0]}": "..."}}'
        )
    if columns == ["translation"]:
        return {"translation": {(encoder.languages or {})["source_lang"]: text}}
    return {columns[0]: text}


def _name(source: str) -> str:
    return "standard input" if source == "-" else source
