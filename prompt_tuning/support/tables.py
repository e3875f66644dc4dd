"""Tables as text: Markdown for files, aligned columns for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate


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
    return tabulate(rows, headers=head, tablefmt="plain", disable_numparse=True, colalign=align or None)


def _escaped(rows: Iterable[Sequence[object]]) -> list[list[str]]:
    lines = []
    for row in rows:
        lines.append([" ".join(str(cell).split("\n")).replace("|", "\\|") for cell in row])
    return lines
