"""Tables in Markdown, as rank, compare and sweep print and keep them."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    r"""The lines of a table.

    >>> print(*markdown_table(("run", "F1"), [("a|b", 1.5)]), sep="\n")
    | run | F1 |
    |---|---|
    | a\|b | 1.5 |
    """
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
