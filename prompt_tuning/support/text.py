"""Compare texts, and split them into words, also in scripts without spaces."""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

# Thai, Lao and Tibetan; Burmese; Khmer; the CJK marks, kana and bopomofo; CJK ideographs and their extensions.
UNSPACED_SCRIPTS = (
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    r"\U00020000-\U0003ffff"
)


REPLACEMENT = "\ufffd"
"""Tokenizers write it for bytes that are no character, such as a part of one."""


def gap_after(source: str) -> str:
    """Return the separator of a source and its target in plain text, a space or nothing.

    Nothing follows a source that ends in white space, or in a full-width character as in Chinese and Japanese.
    """
    last = source[-1:]
    return "" if last.isspace() or (last and unicodedata.east_asian_width(last) in ("W", "F")) else " "


def counted(number: int, noun: str, predicate: str = "") -> str:
    """Return a number and its noun, which gets an s unless the number is one, and what is said of them.

    >>> counted(0, "row"), counted(1200, "row"), counted(1, "row", "have problems")
    ('0 rows', '1,200 rows', '1 row has problems')
    """
    said = f" {agreed(number, predicate)}" if predicate else ""
    return f"{number:,} {noun}{'' if number == 1 else 's'}{said}"


SINGULAR = {
    "are": "is", "ask": "asks", "carry": "carries", "do": "does", "fit": "fits", "had": "had", "have": "has",
    "show": "shows", "were": "was",
}  # fmt: skip
"""The verbs of messages about several things, with those about one."""


def agreed(number: int, predicate: str) -> str:
    """Return what is said of some things, with a verb that agrees with their number.

    >>> agreed(1, "are too long"), agreed(2, "are too long")
    ('is too long', 'are too long')
    """
    verb, space, rest = predicate.partition(" ")
    return f"{SINGULAR[verb]}{space}{rest}" if number == 1 else predicate


# White space at the ends of a text and of its lines, spaces and line ends of other kinds, and control characters.
_UNSEEN = re.compile(r"^\s|\s$|[ \t]\n|[^\S \n]|[\x00-\x08\x0e-\x1f\x7f\xad\u200b-\u200f\u2060\ufeff]")


def has_unseen_characters(text: str) -> bool:
    """Return True if a text holds characters that a terminal does not show, such as a space at its end.

    >>> has_unseen_characters("Question: "), has_unseen_characters("Question:")
    (True, False)
    """
    return _UNSEEN.search(text) is not None


# Control characters except tab and line feed, those of C1, overrides of the writing direction, and half characters.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text whose control characters are written as Python writes them, so that no terminal obeys them.

    A row, a prediction or a name of a stranger could otherwise clear the screen or hide words.

    >>> print(printable("\x1b[2J red \u202e"))
    \x1b[2J red \u202e
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: object) -> str:
    r"""Return a text on one line whose control characters are written, for a cell of a table or a heading.

    A long text loses its middle, since every cell of its column would be as wide.

    >>> print(one_line("a\nb\x1b[2J"))
    a b\x1b[2J
    """
    return printable(_without_middle(" ".join(str(text).splitlines())))


LONGEST_LINE = 2_000  # Characters of a line of a message, or of a cell.
MOST_LINES = 200


def bounded(message: str) -> str:
    r"""Return a message whose long lines have lost their middle, and which ends after MOST_LINES lines.

    A message may quote names of a stranger's file, of any length and number.

    >>> bounded("a: wrong"), len(bounded("a" * 10**6)) < 3000, bounded("a\n" * 300).splitlines()[-1]
    ('a: wrong', True, '(100 more lines)')
    """
    lines = message.splitlines()
    kept = [_without_middle(line) for line in lines[:MOST_LINES]]
    if len(lines) > MOST_LINES:
        kept.append(f"({counted(len(lines) - MOST_LINES, 'more line')})")
    return "\n".join(kept)


def _without_middle(line: str) -> str:
    lost = len(line) - LONGEST_LINE
    half = LONGEST_LINE // 2
    return line if lost <= 0 else f"{line[:half]} ... ({counted(lost, 'character')} left out) ... {line[-half:]}"


def printable_json(text: str) -> str:
    r"""Return JSON of the same value whose control characters are escaped as JSON escapes them.

    >>> print(printable_json('{"a": "\x9b2J"}'))
    {"a": "\u009b2J"}
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_text(text: object, file: TextIO | None = None) -> None:
    """Print a text that may be of others, to standard output by default."""
    print(printable(str(text)), file=file)


def normalised(text: str) -> str:
    """Return a text in lower case with single spaces. Rows are compared in this form."""
    return " ".join(text.casefold().split())


# In a script without spaces every character counts as a word.
_WORD = re.compile(rf"[^\s{UNSPACED_SCRIPTS}]+|[{UNSPACED_SCRIPTS}]")


def words(text: str) -> list[str]:
    """Return the runs of letters, marks and digits. In a script without spaces every character is a word.

    >>> words("Ada's boat, 1871; 于2019年")
    ['Ada', 's', 'boat', '1871', '于', '2019', '年']
    """
    return _WORD.findall(without_signs(text))


def without_signs(text: str) -> str:
    """Return a text with a space instead of every sign that is not a letter, a mark or a digit.

    Marks belong to letters, such as Hindi's vowel signs.

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


def listed(values: Sequence[object], most: int = 8) -> str:
    """Return the first values for a message, as Python writes them, with dots if there are more."""
    return ", ".join(map(repr, values[:most])) + (", ..." if len(values) > most else "")


def did_you_mean(name: str, names: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> str:
    """Return the question that offers the names most like a wrong one, or nothing if none is alike.

    >>> did_you_mean("trian", ["train", "check"]), did_you_mean("lr", ["train", "check"])
    ('Did you mean train?', '')
    """
    nearest = difflib.get_close_matches(name, list(names), n=most, cutoff=cutoff)
    return f"Did you mean {', '.join(nearest)}?" if nearest else ""
