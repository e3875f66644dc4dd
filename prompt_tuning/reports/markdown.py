"""Write texts of others into Markdown, so that they stay texts."""

from __future__ import annotations

import re
from typing import Any

from prompt_tuning.support.text import one_line, printable

# It replaces the line ends of a fenced text while blank lines between sections are counted.
LINE_END = "\ue002"


def fence(text: str, language: str = "text") -> str:
    """Return a fenced block that nothing in the text ends."""
    text = printable(text)
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}".replace("\n", LINE_END)


def inline_code(text: Any) -> str:
    """Return inline code on one line that nothing in the text ends."""
    line = " ".join(one_line(str(text).replace(LINE_END, " ")).split())
    ticks = "`" * (_longest_ticks(line) + 1)
    pad = " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def plain_words(value: Any) -> str:
    """Return plain words as they are, and as inline code what Markdown or HTML could read in another way."""
    text = str(value)
    is_plain = re.fullmatch(r"(\w[\w ,.;'()+=%/-]*)?", text, re.ASCII)
    # An underscore within a word, as in x86_64, stresses nothing. A number and a dot begin a list.
    has_meaning = re.search(r"(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])|www\.|^\d+[.)] ", text)
    return text if is_plain and not has_meaning else inline_code(text)


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
