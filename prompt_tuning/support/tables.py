"""Tables as text: Markdown for files, aligned columns for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from prompt_tuning.support.text import one_line


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    r"""Return a table in GitHub's Markdown. No text in a cell can end the cell.

    >>> print(markdown_table(("run", "F1"), [("a|b", 1.5), ("c", 12)]))
    | run   | F1   |
    |-------|------|
    | a\|b  | 1.5  |
    | c     | 12   |
    """
    return tabulate(_escaped(rows), headers=_escaped([head])[0], tablefmt="github", disable_numparse=True)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, align: Sequence[str] = ()) -> str:
    """Return a table with aligned columns and no lines.

    Args:
        head: the first row.
        rows: the other rows.
        align: "left" or "right" for every column. Default: left.

    >>> print(text_table(("", "F1"), [("hard prompt", "1.5"), ("soft prompt", "12.0")], align=("left", "right")))
                   F1
    hard prompt   1.5
    soft prompt  12.0
    """
    lines = [list(map(one_line, row)) for row in (head, *rows)]
    return tabulate(lines[1:], headers=lines[0], tablefmt="plain", disable_numparse=True, colalign=align or None)


def _escaped(rows: Iterable[Sequence[object]]) -> list[list[str]]:
    lines = []
    for row in rows:
        # A backslash before a pipe would take the escape from it.
        lines.append([re.sub(r"(\\?)\|", _escaped_pipe, one_line(cell)) for cell in row])
    return lines


def _escaped_pipe(found: re.Match[str]) -> str:
    return f"{found[1]} \\|" if found[1] else "\\|"
