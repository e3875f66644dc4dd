"""Read the rows that a command predicts: a data file, or a stream of lines."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.formats import byte_lines, rows_of_line, utf8_line
from prompt_tuning.data.loading import with_standard_columns
from prompt_tuning.data.rows import LocalRows, open_rows
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import DataError, TemplateError
from prompt_tuning.runs.answers import Question, read_question
from prompt_tuning.support.data_files import file_format
from prompt_tuning.support.text import listed

OriginAndRow = tuple[str, dict[str, Any]]
"""Where a row is from, for messages, and the row."""

SILENCE = 1.0
"""The seconds without a line after which rows of a stream no longer wait for others."""


def open_input(source: str, path: Path | None) -> LocalRows | None:
    """Return the rows of a file that `train` reads; None for a file of lines and for standard input.

    A pipe may have the name of a file, and can be read only once.
    """
    return open_rows(source) if file_format(source) and path and path.is_file() else None


def no_rows(source: str) -> DataError:
    """Return the error of an input without rows."""
    return DataError(f"{input_name(source)}: no rows. Give at least one.")


def raise_error(error: DataError) -> None:
    """Raise an error; what `stream_input` does with a bad line if its caller has no other wish."""
    raise error


def stream_input(
    source: str,
    path: Path | None,
    encoder: Encoder,
    files: ExitStack,
    *,
    on_error: Callable[[DataError], None] = raise_error,
) -> Iterator[OriginAndRow | None]:
    """Return the rows of a file of lines, or of standard input for None, which `files` closes.

    Args:
        source: the name of the input.
        path: its file.
        encoder: its template has the column of plain text.
        files: closes the file.
        on_error: called for a line that cannot be read; the lines after it are read if it returns.

    Returns:
        Each row after its origin, and None each time that no line came for `SILENCE`.
    """
    stream = files.enter_context(path.open("rb")) if path else sys.stdin.buffer
    lines = byte_lines(stream) if path and path.is_file() else lines_until_silence(stream, SILENCE)
    return _line_rows(lines, encoder, source, on_error)


def _line_rows(
    lines: Iterable[bytes | None], encoder: Encoder, source: str, on_error: Callable[[DataError], None]
) -> Iterator[OriginAndRow | None]:
    """Yield the rows of JSON Lines, or of plain text with one source a line. The first line tells which it is."""
    name = input_name(source)
    is_json = True if source.endswith(".jsonl") else None
    first_empty: str | None = None
    number = 0
    for line in lines:
        if line is None:
            yield None
            continue
        number += 1
        origin = f"{name}, line {number}"
        try:
            text = utf8_line(line, name, number)
            if not text.strip():
                first_empty = first_empty or origin
                continue
            if is_json is None:
                is_json = _is_json(text, origin, encoder)
            if is_json:
                rows = [(f"{name}, line {place}", row) for place, row in rows_of_line(text, name, number)]
            else:
                rows = [(origin, _text_row(text, encoder))]
        except DataError as error:
            if is_json is None:  # Nothing is known of the lines after it.
                raise
            on_error(error)
            continue
        if first_empty and not is_json:
            on_error(DataError(f"{first_empty}: empty; plain text needs one source on every line"))
            first_empty = None
        yield from rows


def lines_until_silence(stream: BinaryIO, seconds: float) -> Iterator[bytes | None]:
    """Yield the lines of a stream, and None each time that none came for so many seconds."""
    try:
        descriptor = stream.fileno()
    except OSError:  # It is in memory.
        yield from stream
        return
    begun: list[bytes] = []
    patience: float | None = seconds
    while True:
        if not select.select([descriptor], [], [], patience)[0]:
            patience = None
            yield None
            continue
        patience = seconds
        read = os.read(descriptor, 2**16)
        first, *lines = read.split(b"\n")
        begun.append(first)
        for line in lines:
            yield b"".join(begun) + b"\n"
            begun = [line]
        if not read:
            break
    if any(begun):
        yield b"".join(begun)


def read_row(encoder: Encoder, data: DataArguments, origin: str, row: dict[str, Any], task: str = "") -> Question:
    """Return a row as token ids.

    Args:
        encoder: writes the row.
        data: says what rows may call their columns.
        origin: where the row is from, for messages.
        row: the row.
        task: the name of its task among several.

    Raises:
        DataError: the row lacks a column, or cannot be encoded.
    """
    template = encoder.template
    missing = template.missing_columns(template.source_columns, with_standard_columns(row, data))
    if missing:
        names = listed([*row], 30)
        raise DataError(
            f"template {template.name} reads the column {missing[0]!r}, and {origin}, has {names}; "
            "rename one, or train with the setting that names it"
        )
    try:
        return read_question(encoder, data, row, task)
    except TemplateError as error:
        raise DataError(f"{origin}: {error}") from error


def _is_json(line: str, origin: str, encoder: Encoder) -> bool:
    """Return True if the first line of a file is that of JSON Lines."""
    if re.match(r"\s*\[\s*(\{|$)", line):
        raise DataError(f"{origin}: a JSON array; give an object a line, or name the file .json")
    if line.lstrip().startswith("{"):
        return True
    columns = sorted(encoder.template.source_columns)
    if len(columns) != 1:
        raise DataError(
            f"plain text has one column and template {encoder.template.name} reads {len(columns)} "
            f"({', '.join(columns)}); "
            f'give JSON Lines, as {{"{columns[0]}": "..."}}'
        )
    return False


def _text_row(line: str, encoder: Encoder) -> dict[str, Any]:
    """Return a line of plain text as a row of the one column that the template reads."""
    text = line.rstrip("\r\n")
    (column,) = encoder.template.source_columns
    if column == "translation":
        return {"translation": {(encoder.languages or {})["source_lang"]: text}}
    return {column: text}


def input_name(source: str) -> str:
    """Return what messages call the input."""
    return "standard input" if source == "-" else source
