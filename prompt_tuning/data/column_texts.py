"""Read the texts of rows by column, and measure what they show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from statistics import median
from typing import Any

from prompt_tuning.support.text import normalised, words
from prompt_tuning.templates.shapes import as_answers

LEAST_SHARE = 0.5
"""The least share of the rows for which a rule has to hold."""

LEAST_WORDS = 3
"""The least words of a summary or a sentence, in the median. Categories and names have fewer."""

Texts = dict[str, list[str]]
"""The text of every row, by column."""


def texts_by_column(rows: Sequence[Mapping[str, Any]]) -> Texts:
    """Return the first text of every value, by column. A row without one has an empty text.

    Columns without any text are left out.
    """
    columns = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):
        texts = [first_text(row.get(name)) for row in rows]
        if any(map(words, texts)):
            columns[name] = texts
    return columns


def first_text(value: Any) -> str:
    """Return a value's text, the first of several answers; "" if it has none."""
    answers = as_answers(value)
    texts = answers["text"] if isinstance(answers, Mapping) and "text" in answers else None
    first = texts[0] if isinstance(texts, list) and texts else None
    return first if isinstance(first, str) else ""


def plain_name(column: str) -> str:
    """Return the name of a column without case, spaces, underscores and dashes."""
    return re.sub(r"[\s_-]", "", column.casefold())


def share(holds: Callable[[str], object], texts: Sequence[str]) -> float:
    """Return the share of the texts, of those that are not empty, for which a function holds."""
    filled = list(filter(str.strip, texts))
    return sum(map(bool, map(holds, filled))) / len(filled) if filled else 0.0


def share_within(parts: Sequence[str], wholes: Sequence[str]) -> float:
    """Return the share of rows whose part is a proper part of the whole, of those that have a part."""
    num_parts = num_within = 0
    for part, whole in zip(map(normalised, parts), map(normalised, wholes), strict=True):
        num_parts += part != ""
        num_within += part != "" and part != whole and part in whole
    return num_within / max(num_parts, 1)


def are_yes_or_no(texts: Sequence[str]) -> bool:
    """Return True if every text is yes or no, or 是 or 否, and both occur."""
    return set(map(normalised, texts)) in ({"yes", "no"}, {"是", "否"})


def median_length(texts: Sequence[str]) -> float:
    """Return the number of characters of a text, in the median."""
    return median(map(len, texts))


def are_sentences(texts: Sequence[str]) -> bool:
    """Return True if most texts have several words and differ from each other, unlike categories and names."""
    return median(map(len, map(words, texts))) >= LEAST_WORDS and len(set(texts)) >= LEAST_SHARE * len(texts)
