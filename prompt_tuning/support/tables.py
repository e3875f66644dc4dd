"""Tables as text: Markdown for files, aligned columns that fit the width for a terminal."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from tabulate import tabulate
from wcwidth import ljust, rjust, wrap
from wcwidth import width as cells

from prompt_tuning.support.text import one_line

# Widths are cells of a terminal, of which a Chinese character takes two.
MOST_PROSE = 110  # cells of a line of prose
LONGEST_WORD = 36  # cells of a word that a narrow column keeps whole
LEAST_PROSE = 16  # cells of the last column, which is often prose, whatever its words
GAP = "  "


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    r"""Return a table in GitHub's Markdown. No text in a cell can end the cell.

    >>> print(markdown_table(("run", "F1"), [("a|b", 1.5), ("c", 12)]))
    | run   | F1   |
    |-------|------|
    | a\|b  | 1.5  |
    | c     | 12   |
    """
    return tabulate(_escaped(rows), headers=_escaped([head])[0], tablefmt="github", disable_numparse=True)


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, align: Sequence[str] = (), width: int | None = None
) -> str:
    """Return a table with aligned columns and no lines.

    A table that is wider than the terminal gets its longest cells in several lines. If that is not enough, each row
    becomes a block with a line for each cell.

    Args:
        head: the first row.
        rows: the other rows.
        align: "left" or "right" for every column. Default: left.
        width: the most cells of a line. Default: those of the terminal; without a terminal there is no limit.

    >>> print(text_table(("", "F1"), [("hard prompt", "1.5"), ("soft prompt", "12.0")], align=("left", "right")))
                   F1
    hard prompt   1.5
    soft prompt  12.0
    >>> print(text_table(("run", "words"), [("a", "one two three four")], width=14))
    run  words
    a    one two
         three
         four
    >>> print(text_table(("run", "steps", "seconds"), [("a", "1", ""), ("b", "3", "4.0")], width=16))
    a
      steps: 1
    b
      steps: 3
      seconds: 4.0
    """
    lines = [list(map(one_line, row)) for row in (head, *rows)]
    width = terminal_width() if width is None else width
    widths = _fitting_widths(lines, width)
    if widths is None:
        return _blocks(lines, width)
    text = []
    for row in lines:
        wrapped = map(_wrapped, row, widths)
        for parts in zip_longest(*wrapped, fillvalue=""):
            text.append(GAP.join(map(_padded, parts, widths, align or ["left"] * len(widths))).rstrip())
    return "\n".join(text)


def _wrapped(cell: str, width: int) -> list[str]:
    # A cell that fits keeps its spaces.
    return [cell] if cells(cell) <= width else wrap(cell, width)


def _padded(part: str, width: int, side: str) -> str:
    return rjust(part, width) if side == "right" else ljust(part, width)


def terminal_width() -> int | None:
    """Return the cells of a line of the terminal that standard output is; None if it is not one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def prose_width() -> int:
    """Return the cells of a line of prose: at most MOST_PROSE, and those of the terminal."""
    return min(terminal_width() or MOST_PROSE, MOST_PROSE)


def _fitting_widths(lines: Sequence[Sequence[str]], width: int | None) -> list[int] | None:
    """Return a width for each column so that the table fits; None if it cannot."""
    columns = list(zip(*lines, strict=True))
    widths = [max(map(cells, column)) for column in columns]
    free = None if width is None else width - len(GAP) * (len(columns) - 1)
    if free is None or sum(widths) <= free:
        return widths
    least = []
    for column in columns:
        words = " ".join(column).split() or [""]
        least.append(min(max(map(cells, words)), LONGEST_WORD))
    least[-1] = min(least[-1], LEAST_PROSE)
    if sum(least) > free:
        return None
    while sum(widths) > free:
        widest = max(range(len(widths)), key=lambda place: (widths[place] > least[place], widths[place]))
        widths[widest] -= 1
    return widths


def _blocks(lines: Sequence[Sequence[str]], width: int | None) -> str:
    """Return each row as its first cell and a line for each other cell that holds something."""
    head, *rows = lines
    blocks = []
    for first, *others in rows:
        blocks.append(first)
        for name, cell in zip(head[1:], others, strict=True):
            if cell:
                text = f"{name}: {cell}" if name else cell
                blocks += wrap(text, width or MOST_PROSE, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(blocks)


def _escaped(rows: Iterable[Sequence[object]]) -> list[list[str]]:
    lines = []
    for row in rows:
        # A backslash before a pipe would take the escape from it.
        lines.append([re.sub(r"(\\?)\|", _escaped_pipe, one_line(cell)) for cell in row])
    return lines


def _escaped_pipe(found: re.Match[str]) -> str:
    return f"{found[1]} \\|" if found[1] else "\\|"
