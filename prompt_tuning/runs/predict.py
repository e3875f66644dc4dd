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

from prompt_tuning.arguments.arguments import LOCAL_FORMATS
from prompt_tuning.data.files import load_file, utf8_lines
from prompt_tuning.data.loading import with_standard_columns
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.engine.shared_prefix import compute_prompt_once
from prompt_tuning.errors import DataError, TemplateError
from prompt_tuning.runs.predictor import Predictor, Question
from prompt_tuning.support.files import atomic_write

SUFFIXES = LOCAL_FORMATS.keys()

WHOLE_SUFFIXES = SUFFIXES - {".jsonl"}
"""The formats that are read whole, as `train` reads them. The lines of other files are read one by one."""

TABLE_SUFFIXES = {".tsv", ".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc", ".gz", ".zip"}
"""The formats that are refused: they are tables or archives, not plain text."""

OriginAndRow = tuple[str, dict[str, Any]]
"""Where a row is from, for messages, and the row."""


def predict(
    adapter: str, source: str = "-", output: str = "-", batch_size: int = 8, model_name_or_path: str | None = None
) -> None:
    """Predict for every row of a file or of standard input, a batch at a time.

    Args:
        adapter: the folder of a run, or its hub id.
        source: JSON Lines, plain text with one source a line, or a json, csv or parquet file as `train` reads it; "-"
            is standard input.
        output: the file to write, JSON Lines with a column `prediction`; "-" is standard output.
        batch_size: the number of rows that are predicted together.
        model_name_or_path: the base model, if it is no longer where it was.

    Raises:
        DataError: a row is bad, with its line. No output file is written then.
        PromptTuningError: as `Predictor.load` does.
    """
    _check_files(source, output)
    transformers_logging.disable_progress_bar()
    predictor = Predictor.load(adapter, model_name_or_path)
    with ExitStack() as files:
        if Path(source).suffix in WHOLE_SUFFIXES:
            rows = _table_rows(Path(source))
        else:
            stream = sys.stdin.buffer if source == "-" else files.enter_context(Path(source).open("rb"))
            rows = _line_rows(utf8_lines(stream, _name(source)), predictor.encoder, source)
        file = sys.stdout if output == "-" else files.enter_context(atomic_write(Path(output)))
        files.enter_context(predictor.autocasting())
        files.enter_context(compute_prompt_once(predictor.model))
        counts: Counter[str] = Counter()
        while batch := list(islice(rows, batch_size)):
            counts += _predict_batch(predictor, batch, file)
        if not counts["rows"]:
            raise DataError(f"{_name(source)}: no rows")
    for count, message in (
        (counts["replaced"], "had a column 'prediction', which is replaced"),
        (counts["cut"], "were cut to fit max_source_tokens"),
        (counts["fewer"], "have fewer demonstrations, to fit max_source_tokens"),
    ):
        if count:
            print(f"{count} of {counts['rows']} rows {message}", file=sys.stderr)


def _check_files(source: str, output: str) -> None:
    """Raise a DataError for a file that cannot be read or written."""
    if source != "-" and not Path(source).exists():
        raise DataError(f"--input {source}: no such file")
    suffix = Path(source).suffix
    capitals = suffix not in SUFFIXES and suffix.lower() in WHOLE_SUFFIXES
    if suffix.lower() in TABLE_SUFFIXES or capitals:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise DataError(
            f"--input {source}: not read; save it as one of {suffixes}, in small letters, or as plain text"
        )
    for name, path in (("--input", source), ("--output", output)):
        if Path(path).is_dir():
            raise DataError(f"{name} {path}: a folder; name a file")


def _predict_batch(predictor: Predictor, batch: list[OriginAndRow], file: TextIO) -> Counter[str]:
    """Write the rows of a batch with their predictions; return the numbers of rows for the messages at the end."""
    counts: Counter[str] = Counter()
    questions = []
    for origin, row in batch:
        question = _read_row(predictor, origin, row)
        questions.append(question)
        counts["rows"] += 1
        counts["cut"] += question.cut_tokens > 0
        counts["fewer"] += question.omitted_demonstrations > 0
        counts["replaced"] += "prediction" in row
    for (_, row), prediction in zip(batch, predictor.answer(questions), strict=True):
        file.write(json.dumps(row | {"prediction": prediction}, ensure_ascii=False, default=str) + "\n")
    file.flush()
    return counts


def _read_row(predictor: Predictor, origin: str, row: dict[str, Any]) -> Question:
    """Return a row as token ids, or raise a DataError that says where it is from."""
    template = predictor.encoder.template
    missing = template.missing_columns(template.source_columns, with_standard_columns(row, predictor.data))
    if missing:
        names = ", ".join(map(repr, row))
        raise DataError(
            f"template {template.name} reads the column {missing[0]!r}, and {origin}, has {names}; "
            "rename one, or train with the setting that names it"
        )
    try:
        return predictor.read(row)
    except TemplateError as error:
        raise DataError(f"{origin}: {error}") from error


def _table_rows(file: Path) -> Iterator[OriginAndRow]:
    for number, row in enumerate(load_file(file), 1):
        yield f"{file}, row {number}", row


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
        if not empty:
            yield origin, _json_row(line, origin) if is_json else _text_row(line.rstrip("\r\n"), encoder)


def _is_json(line: str, origin: str) -> bool:
    """Return True if the first line of a file is that of JSON Lines."""
    if re.match(r"\s*\[\s*(\{|$)", line):
        raise DataError(f"{origin}: a JSON array; give an object a line, or name the file .json")
    return line.lstrip().startswith("{")


def _json_row(line: str, origin: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        # JSON can escape half of a character, which UTF-8 cannot write.
        json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DataError(f"{origin}: not JSON: {error.msg} (column {error.colno})") from None
    except UnicodeEncodeError as error:
        raise DataError(f"{origin}: half a character, {error.object[error.start]!r}, is not text") from None
    if not isinstance(row, dict):
        raise DataError(f"{origin}: expected a JSON object, found {type(row).__name__}")
    return row


def _text_row(line: str, encoder: Encoder) -> dict[str, Any]:
    """Return a line of plain text as a row of the one column that the template reads."""
    columns = sorted(encoder.template.source_columns)
    if len(columns) != 1:
        raise DataError(
            f"plain text has one column and template {encoder.template.name} reads {len(columns)} "
            f"({', '.join(columns)}); "
            f'give JSON Lines, as {{"{columns[0]}": "..."}}'
        )
    if columns == ["translation"]:
        return {"translation": {(encoder.languages or {})["source_lang"]: line}}
    return {columns[0]: line}


def _name(source: str) -> str:
    return "standard input" if source == "-" else source
