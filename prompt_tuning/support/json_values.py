"""Parse JSON that may be a stranger's: a value that is nested too deeply is an error like any other."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

MAX_DEPTH = 100
"""The number of lists and objects that a value may have inside each other."""

MAX_BYTES = 50_000_000
"""The size of a file that is one value."""

MAX_PARTS = 300_000
"""The number of lists and objects of a value, of which each takes far more memory and time than its characters."""

HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of half a character, which JSON can write and UTF-8 cannot."""

TOO_DEEP = f"lists and objects inside each other deeper than {MAX_DEPTH}; make the value a text"


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, is nested too deeply or has too many parts, half a character, or an integer
            of more than 4,300 digits.
        TypeError: it is not a text.
    """
    has_half_character = HALF_CHARACTER.search(text)
    if text.count("[") + text.count("{") > MAX_PARTS:
        raise ValueError(f"more than {MAX_PARTS:,} lists and objects")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if has_half_character:
        json.dumps(value, ensure_ascii=False).encode()
    if is_deep(value, text):
        raise ValueError(TOO_DEEP)
    return value


def read_bounded(path: Path, limit: int) -> str:
    """Return the text of a file of UTF-8.

    Raises:
        ValueError: the file is not UTF-8, or has more than `limit` bytes, of which no more are read.
    """
    with path.open("rb") as file:
        return bounded_text(file.read(limit + 1), limit)


def bounded_text(content: bytes, limit: int) -> str:
    """Return bytes as text; raise a ValueError if they are not UTF-8, or more than `limit`."""
    if len(content) > limit:
        raise ValueError(f"larger than {limit:,} bytes")
    return content.decode("utf-8")


def is_deep(value: Any, text: str) -> bool:
    """Return True if a value is nested more deeply than MAX_DEPTH; `text` is what it was read from."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        level = list(chain.from_iterable(map(_items, level)))
    return bool(level)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def without_nan(value: Any) -> Any:
    """Return a value with null instead of each number that JSON does not have: NaN and the infinities."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(without_nan, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
