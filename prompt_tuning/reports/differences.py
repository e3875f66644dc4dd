"""Mark the words in which two texts differ."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from prompt_tuning.support.text import UNSPACED_SCRIPTS

MOST_PIECES = 200  # in a text; the worst texts take a cube of it, and a report shows a thousand rows
_PIECE = re.compile(rf"\s+|[{UNSPACED_SCRIPTS}]|[^\W{UNSPACED_SCRIPTS}]+|\W", re.UNICODE)

Pieces = list[tuple[str, bool]]
"""The pieces of a text in their order, each with whether the other text lacks it."""


def marked_pieces(first: str, second: str) -> tuple[Pieces, Pieces]:
    """Split two texts where they differ, by words, and by characters in scripts without spaces.

    >>> marked_pieces("in the town", "in a town")
    ([('in ', False), ('the', True), (' town', False)], [('in ', False), ('a', True), (' town', False)])
    """
    one, other = _PIECE.findall(first), _PIECE.findall(second)
    if max(len(one), len(other)) > MOST_PIECES:
        return [(first, False)], [(second, False)]
    old: Pieces = []
    new: Pieces = []
    for kind, start, end, other_start, other_end in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        for pieces, text in ((old, one[start:end]), (new, other[other_start:other_end])):
            if text:
                pieces.append(("".join(text), kind != "equal"))
    return old, new
