"""Find where the rows of a translation have their languages, and which is translated into which."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, repeat
from typing import Any

from prompt_tuning.data.column_texts import Texts, first_text, median_length, plain_name
from prompt_tuning.data.languages import LANGUAGE_OF_NAME, guess_language
from prompt_tuning.templates.languages import LANGUAGES
from prompt_tuning.templates.shapes import as_translation, language_pair

SOURCE_NAMES = {"source", "src", "input", "原文"}
TARGET_NAMES = {"target", "tgt", "trg", "output", "译文", "translation"}

MOST_TIMES_AS_LONG = 4
"""The largest ratio of the lengths of two sides of a translation; Chinese takes a third of the letters of English."""

UNKNOWN = ""
"""The code of a language that nothing shows."""


@dataclass(frozen=True)
class Side:
    """One language of a translation, in a column of its own if `column` is not None."""

    code: str
    texts: list[str]
    column: str | None = None

    def __str__(self) -> str:
        """Return its name for a message."""
        return self.column or self.code


def sides_of_column(rows: Sequence[Mapping[str, Any]]) -> list[Side]:
    """Return the languages of the column `translation`; none if it does not hold several."""
    texts: dict[Any, list[str]] = {}
    for row in rows:
        pair = as_translation(row.get("translation"))
        if not isinstance(pair, Mapping):
            return []
        texts = texts or {code: [] for code in pair}
        for code, of_language in texts.items():
            of_language.append(first_text(pair.get(code)))
    return list(map(Side, map(str, texts), texts.values())) if len(texts) > 1 else []


def sides_by_name(first: Mapping[str, Any], texts: Texts, set_by_user: Mapping[str, Any]) -> list[Side]:
    """Return the columns that a user names or that are named by languages; none if these are not at least two."""
    source, target = set_by_user.get("source_column"), set_by_user.get("target_column")
    if source in texts and target in texts:
        return [_side_by_text(source, texts), _side_by_text(target, texts)]
    if {"sourceLang", "targetLang"} <= first.keys() and {"sourceString", "targetString"} <= texts.keys():
        source = Side(str(first["sourceLang"]), texts["sourceString"])
        return [source, Side(str(first["targetLang"]), texts["targetString"])]
    sides = []
    for column in texts:
        code = column.removeprefix("sentence_")
        base = re.split(r"[-_]", code)[0]
        # The code of Indonesian, id, is also a usual name of a column that holds no language.
        if base == "id" and guess_language(texts[column]) != "id":
            continue
        if base.isascii() and base.lower() in LANGUAGES and language_pair(first, code):
            sides.append(Side(code, texts[column]))
        elif column.strip().casefold() in LANGUAGE_OF_NAME:
            sides.append(Side(LANGUAGE_OF_NAME[column.strip().casefold()], texts[column], column))
    return sides if len(sides) > 1 else []


def sides_by_text(texts: Texts) -> list[Side]:
    """Return two columns of similar length that are in different languages; none if there are no two such columns."""
    for first, second in combinations(map(_side_by_text, texts, repeat(texts)), 2):
        shorter, longer = sorted((median_length(first.texts), median_length(second.texts)))
        has_two_languages = first.code != second.code and UNKNOWN not in (first.code, second.code)
        if has_two_languages and longer <= MOST_TIMES_AS_LONG * shorter:
            return [first, second]
    return []


def _side_by_text(column: str, texts: Texts) -> Side:
    code = LANGUAGE_OF_NAME.get(column.strip().casefold()) or guess_language(texts[column]) or UNKNOWN
    return Side(code, texts[column], column)


def source_and_target(sides: Sequence[Side], set_by_user: Mapping[str, Any]) -> tuple[Side, Side]:
    """Return the side to translate from and the side to translate into."""
    others = sorted(sides, key=_place)
    target = _with_code(others, set_by_user.get("target_lang"))
    if target:
        others.remove(target)
    source = _with_code(others, set_by_user.get("source_lang")) or others[0]
    others.remove(source)
    return source, target or others[0]


def _place(side: Side) -> int:
    """Return 0 for a column named as a source, 2 for one named as a target, 1 for others."""
    name = plain_name(side.column or "")
    return 0 if name in SOURCE_NAMES else 2 if name in TARGET_NAMES else 1


def _with_code(sides: Sequence[Side], code: str | None) -> Side | None:
    return next(filter(lambda side: side.code == code, sides), None)
