"""Compare and split texts: normalising, words, scripts without spaces."""

from __future__ import annotations

import functools
import re
import unicodedata

# Thai and Lao; Burmese; Khmer; the CJK marks, kana and bopomofo; CJK ideographs and their extensions.
UNSPACED_SCRIPTS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    r"\U00020000-\U0003ffff"
)


def gap_after(source: str) -> str:
    """What stands between a source and its target in plain text: a space, unless the source ends in one of its own or
    in a full-width character, as Chinese and Japanese do, which put none.
    """
    last = source[-1:]
    return "" if last.isspace() or (last and unicodedata.east_asian_width(last) in ("W", "F")) else " "


def normalised(text: str) -> str:
    """Without case and white space, as rows are compared."""
    return " ".join(text.casefold().split())


_WORD = re.compile(rf"[^\s{UNSPACED_SCRIPTS}]+|[{UNSPACED_SCRIPTS}]")  # a character, where words are not set apart


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits; of a script without spaces each character.

    >>> words("Ada's boat, 1871; 于2019年")
    ['Ada', 's', 'boat', '1871', '于', '2019', '年']
    """
    return _WORD.findall(without_signs(text))


def without_signs(text: str) -> str:
    """Letters with their marks, as Hindi's vowel signs are, and digits; a space for each other sign.

    >>> without_signs("दिल्ली, 1871")
    'दिल्ली  1871'
    """
    return "".join(map(_letter_or_space, text))


@functools.cache
def _letter_or_space(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    return character if category[0] in "LMN" else " "
