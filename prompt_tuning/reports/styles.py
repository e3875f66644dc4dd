"""The two ways in which tables and words of others are written: Markdown for a file, plain text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prompt_tuning.reports.markdown import plain_words
from prompt_tuning.support.tables import markdown_table, text_table
from prompt_tuning.support.text import one_line


@dataclass(frozen=True)
class Style:
    """A way to write text.

    Args:
        table: returns a table of its first row and the others.
        words: returns words of others, so that they stay words.
    """

    table: Callable[[Sequence[Any], Sequence[Sequence[Any]]], str]
    words: Callable[[Any], str]


MARKDOWN = Style(markdown_table, plain_words)
TERMINAL = Style(text_table, one_line)
