"""Parse json, jsonl, csv, tsv and parquet files row by row, and name the line of what cannot be read.

Every command reads rows here: numbers and texts of JSON are those of Python's reader, and a csv cell is its text.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from prompt_tuning.data.nested import NESTED_KEYS, Row, nested_rows, rows_of_file
from prompt_tuning.data.parquet import MAX_RATIO, parquet_rows
from prompt_tuning.errors import DataError
from prompt_tuning.support.data_files import file_format
from prompt_tuning.support.json_values import HALF_CHARACTER, TOO_DEEP, is_deep
from prompt_tuning.support.text import counted, listed

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

CHINESE_BYTES = re.compile(rb"(?:[\xb0-\xf7][\xa1-\xfe]){2}")
"""Two characters of GB2312, which GBK and GB18030 extend. Other encodings have such bytes too."""

SPACE = re.compile(r"[ \t\r\n]*")

csv.field_size_limit(2**31 - 1)  # A cell may hold a book, and the default limit is 128 kB.


PART = 2**24
"""The bytes of a line that are read at once."""

MIN_LIMIT = 10_000_000
"""The characters that the rows of any object may take. More are refused if they repeat the texts of the object."""

Number = int | str
"""The line of a row, from 1, or its number in a parquet file, from 0; `1, row 7` if an object has several rows."""


def numbered_rows(file: Path) -> Iterator[tuple[Number, Row]]:
    """Yield the rows of a file, each with its line, from 1; in a parquet file with its number, from 0.

    A row of several lines has the line on which it ends in a csv file, and on which it starts in a json file. The
    questions of an article and the rows of a table are rows, as `nested` says. In an array on one line the rows after
    the first also have their number, from 0.

    Raises:
        DataError: the file or a row cannot be read, with file and line.
    """
    kind = file_format(file)
    if kind == "csv":
        yield from _csv_rows(file)
    elif kind == "parquet":
        yield from enumerate(parquet_rows(file))
    elif file.suffix.lower() == ".jsonl":
        for line, row in _filled_lines(file):
            yield from rows_of_line(row, str(file), line)
    else:
        text = "".join(line for _, line in _lines(file))
        objects = _json_rows(text, str(file))
        first = list(islice(objects, 2))
        is_one_object = len(first) == 1 and not text.startswith("[", _after_space(text, 0))
        for number, value in chain(first, objects):
            yield from _rows_within(value, str(file), number, rows_of_file if is_one_object else nested_rows)


def rows_of_line(text: str, name: str, line: int) -> Iterator[tuple[Number, Row]]:
    """Yield the rows of the JSON object that a line holds; its arguments and errors are those of `parse_object`."""
    yield from _rows_within(parse_object(text, name, line), name, line, nested_rows)


def row_name(file: Path, number: Number) -> str:
    """Return what messages call a row of `numbered_rows`: `train.jsonl, line 12`."""
    return f"{file}, {'row' if file_format(file) == 'parquet' else 'line'} {number}"


def name_of_row(files: Iterable[Path], index: int) -> str | None:
    """Return what messages call row `index`, from 0, of files; None if there are fewer rows."""
    return next(islice(chain.from_iterable(map(_row_names, files)), index, None), None)


def parse_object(text: str, name: str, line: int) -> Row:
    """Return the JSON object that a line holds.

    Args:
        text: the line.
        name: what an error calls the file.
        line: the number of the line.

    Raises:
        DataError: the line is not one JSON object, with what was found.
    """
    text = text.rstrip()
    start = _after_space(text, 0)
    value, end = _decode(text, start, name, line)
    if _after_space(text, end) < len(text):
        raise _not_json("Extra data", f"{name}, line {line}", end + 1)
    return checked_row(value, text[start:end], f"{name}, line {line}")


def utf8_line(line: bytes, name: str, number: int) -> str:
    """Return the text of a line, without a byte-order mark.

    Args:
        line: the line.
        name: what an error calls its file.
        number: its number, from 1.

    Raises:
        DataError: the line is not UTF-8, or has a NUL.
    """
    if number == 1 and line.startswith(UTF16):
        raise DataError(f"{name}, line 1: UTF-16 text, not UTF-8; save it as UTF-8")
    if b"\0" in line:
        raise DataError(f"{name}, line {number}: a NUL byte, as in UTF-16; save it as UTF-8 text")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        message = f"{name}, line {number}: not UTF-8 text (byte {error.start} of the line); save it as UTF-8"
        if CHINESE_BYTES.search(line):
            command = f"iconv -f GB18030 -t UTF-8 {shlex.quote(name)} > utf8{Path(name).suffix}"
            message += f". If it is GB18030 or GBK: `{command}`"
        raise DataError(message) from None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as stream:
        for number, line in enumerate(byte_lines(stream), 1):
            yield number, utf8_line(line, str(file), number)


def byte_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, which ends at a part with a NUL: a sparse file may have a terabyte of them."""
    parts: list[bytes] = []
    for part in iter(partial(stream.readline, PART), b""):
        parts.append(part)
        if part.endswith(b"\n") or b"\0" in part:
            yield b"".join(parts)
            parts = []
    if parts:
        yield b"".join(parts)


def _filled_lines(file: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in _lines(file) if line.strip())


def _rows_within(
    value: Row, name: str, number: Number, find: Callable[[Row], list[Row] | None]
) -> Iterator[tuple[Number, Row]]:
    """Yield the rows of an object that has several, with their place in it, or the object."""
    try:
        rows = find(value)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"an item has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{name}, line {number}: {reason}") from None
    if rows is None:
        yield number, value
    _check_repeated(rows or [], f"{name}, line {number}")
    for index, row in enumerate(rows or ()):
        yield f"{number}, row {index}", row


def _check_repeated(rows: list[Row], origin: str) -> None:
    """Raise a DataError if the rows of an object repeat its texts so often that they take far more than the file."""
    size = 0
    lengths: dict[int, int] = {}
    for row in rows:
        texts = [text for text in row.values() if isinstance(text, str)]
        size += sum(map(len, texts))
        lengths |= {id(text): len(text) for text in texts}
    if size > max(MIN_LIMIT, MAX_RATIO * sum(lengths.values())):
        raise DataError(
            f"{origin}: its rows repeat its texts more than {MAX_RATIO} times. If you trust the file, write its rows "
            "to a .jsonl file."
        )


def _row_names(file: Path) -> Iterator[str]:
    if file.suffix.lower() != ".jsonl":
        for number, _ in numbered_rows(file):
            yield row_name(file, number)
        return
    for line, text in _filled_lines(file):
        # A line that has no key of an article is counted without parsing it.
        may_be_nested = any(map(text.__contains__, NESTED_KEYS))
        for number, _ in rows_of_line(text, str(file), line) if may_be_nested else ((line, text),):
            yield row_name(file, number)


def _json_rows(text: str, name: str) -> Iterator[tuple[Number, Row]]:
    """Yield the objects of an array, or those that follow each other, with the line on which each starts.

    An object that does not start its line has its number, from 0, too.
    """
    place = _after_space(text, 0)
    is_array = text.startswith("[", place)
    if is_array:
        place = _after_space(text, place + 1)
    line, counted_to = 1, 0
    last_line = index = 0
    is_last = place == len(text) or (is_array and text.startswith("]", place))
    while not is_last:
        line += text.count("\n", counted_to, place)
        counted_to = place
        number: Number = f"{line}, row {index}" if line == last_line else line
        value, end = _decode(text, place, name, 1)
        yield number, checked_row(value, text[place:end], f"{name}, line {number}")
        last_line = line
        index += 1
        place = _after_space(text, end)
        is_last = not text.startswith(",", place) if is_array else place == len(text)
        if is_array and not is_last:
            place = _after_space(text, place + 1)
    if is_array and not text.startswith("]", place):
        raise _json_error(json.JSONDecodeError("Expecting ',' delimiter", text, place), name, 1)
    if is_array and _after_space(text, place + 1) < len(text):
        raise _json_error(json.JSONDecodeError("Extra data", text, _after_space(text, place + 1)), name, 1)


def _after_space(text: str, place: int) -> int:
    match = SPACE.match(text, place)
    return match.end() if match else place


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; raise ValueError if a key is there twice, of which Python would drop the first."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = _repeated(name for name, _ in pairs)
        raise ValueError(f"the key {twice[0]!r} is there twice; rename or remove one")
    return value


def _finite(text: str) -> float:
    """Return a number; raise ValueError if Python takes it for infinity."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number; write it as a text")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a value of JSON; write null or a text")


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_refuse_constant)


def _decode(text: str, place: int, name: str, first_line: int) -> tuple[Any, int]:
    """Return the JSON value at a place of a text, and the place of its end.

    Raises:
        DataError: there is no valid value.
    """
    try:
        return DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _json_error(error, name, first_line) from None
    except (RecursionError, ValueError) as error:
        reason = str(error)
        if isinstance(error, RecursionError):
            reason = TOO_DEEP
        elif "digits" in reason:
            reason = "a number of more than 4300 digits; write it as a text"
        raise DataError(f"{name}, line {first_line + text.count(chr(10), 0, place)}: {reason}") from None


def _json_error(error: json.JSONDecodeError, name: str, first_line: int) -> DataError:
    return _not_json(error.msg, f"{name}, line {first_line + error.lineno - 1}", error.colno)


def _not_json(reason: str, origin: str, column: int) -> DataError:
    return DataError(f"{origin}: not JSON: {reason} (column {column})")


def checked_row(value: Any, text: str, origin: str) -> Row:
    """Return a value that was read from a text, if it is an object that every later step can take.

    Raises:
        DataError: it is no object, is nested too deeply, or has half a character.
    """
    if not isinstance(value, dict):
        found = "null" if value is None else type(value).__name__
        raise DataError(f"{origin}: expected a JSON object, found {found}")
    if is_deep(value, text):
        raise DataError(f"{origin}: {TOO_DEEP}")
    if HALF_CHARACTER.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{origin}: half a character, {error.object[error.start]!r}, is not text") from None
    return value


def _csv_rows(file: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a csv file with the line on which each ends. A cell is text, and null if it is empty."""
    separator = _separator(file)
    reader = csv.reader(_csv_lines(file), delimiter=separator, strict=True)
    empty_line: int | None = None
    names: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                empty_line = empty_line or (reader.line_num if names else None)
            elif names is None:
                names = _checked_names(cells, file)
            else:
                if empty_line and len(names) == 1:
                    raise DataError(
                        f'{file}, line {empty_line}: empty; of one column each line is a row: write "" or leave it out'
                    )
                if len(cells) != len(names):
                    raise DataError(
                        f"{file}, line {reader.line_num}: {counted(len(cells), 'cell')}, and the first line names "
                        f"{counted(len(names), 'column')}; "
                        f'quote a text that has a line break or the separator, as "a{separator} b"'
                    )
                values = [cell or None for cell in cells]
                yield reader.line_num, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise DataError(
            f'{file}, line {reader.line_num}: not csv: {error}. Write a quote inside a quoted cell as "".'
        ) from None


def _csv_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a csv file; a carriage return alone may end a line."""
    for _, line in _lines(file):
        if "\r" in line.removesuffix("\n").removesuffix("\r"):
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _separator(file: Path) -> str:
    """Return what separates the cells: a tab in a tsv file; else the first of , ; and tab that the first line has."""
    if file.suffix.lower() == ".tsv":
        return "\t"
    for separator in ",;\t":
        header = next(filter(None, csv.reader(_csv_lines(file), delimiter=separator)), [])
        if len(header) > 1:
            return separator
    return ","


def _checked_names(names: list[str], file: Path) -> list[str]:
    """Return the names of the columns. A first one without a name is the index that pandas writes, as pandas reads it.

    Raises:
        DataError: two columns have the same name, or another has none.
    """
    names = [names[0] or "Unnamed: 0", *names[1:]]
    if "" in names:
        raise DataError(
            f"{file}: column {names.index('') + 1} has no name in the first line; name it, or with pandas write the "
            "file without its index, by to_csv(..., index=False)"
        )
    twice = _repeated(names)
    if twice:
        raise DataError(f"{file}: columns named twice: {listed(sorted(twice))}; rename one")
    return names


def _repeated(names: Iterable[str]) -> list[str]:
    """Return the names that are there more than once, in their order."""
    return [name for name, count in Counter(names).items() if count > 1]
