"""Choose the rows that a summary shows: one that the trained prompt mends, one typical, one that is still wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wcwidth import clip, wrap
from wcwidth import width as cells

from prompt_tuning.metrics.loading import direction
from prompt_tuning.reports.run_files import systems_in
from prompt_tuning.support.tables import prose_width

LABEL_WIDTH = 20
ANSWER_WIDTH = 100
INDENT = "  | "

Row = dict[str, Any]


def row_texts(rows: Sequence[Row], systems: Sequence[str], metric: str, count: int) -> list[str]:
    """Return the text of the rows that `chosen_rows` chooses, with the reasons; the arguments are the same."""
    chosen = chosen_rows(rows, systems, metric, count)
    return list(map(_text, map(rows.__getitem__, chosen), chosen.values()))


def chosen_rows(rows: Sequence[Row], systems: Sequence[str], metric: str, count: int) -> dict[int, str]:
    """Return the places of `count` rows, each with the reason why it is shown.

    Args:
        rows: the rows of predictions/<split>.jsonl.
        systems: the keys of the systems, the hard prompt first.
        metric: by which a row is better than another one.
        count: how many. Rows after the first three, and rows of older versions, are evenly spaced.
    """
    labels = _labelled(rows, systems, metric) if rows and "scores" in rows[0] else {}
    chosen = dict(list(labels.items())[:count])
    for index in range(count):
        if len(chosen) < min(count, len(rows)):
            chosen.setdefault(index * len(rows) // count, "")
    for place in range(len(rows)):  # Labelled rows may be among those that are evenly spaced.
        if len(chosen) < min(count, len(rows)):
            chosen.setdefault(place, "")
    return chosen


def counts_text(rows: Sequence[Row], systems: Sequence[str], metric: str) -> str | None:
    """Say how many rows the second of two systems answers better and worse than the first; None without scores."""
    if len(systems) != 2 or not rows or "scores" not in rows[0]:
        return None
    better = worse = 0
    for row in rows:
        gain = _gain(row, systems, metric)
        better += gain > 0
        worse += gain < 0
    return f"rows by {metric}: {better} better, {worse} worse, {len(rows) - better - worse} the same"


def _labelled(rows: Sequence[Row], systems: Sequence[str], metric: str) -> dict[int, str]:
    """Return the places of the row that is mended most, of a typical one and of the worst one, with their labels."""
    scores = [direction(metric) * row["scores"][systems[-1]][metric] for row in rows]
    order = sorted(range(len(rows)), key=scores.__getitem__)
    places: dict[int, str] = {}
    if len(systems) == 2:
        best = max(order, key=lambda place: _gain(rows[place], systems, metric))
        if _gain(rows[best], systems, metric) > 0:
            old = rows[best]["scores"][systems[0]][metric]
            places[best] = f"mended: {metric} {old:.1f} becomes {_score(rows[best], systems, metric):.1f}"
    # The median row of equal scores may be the mended one. Its neighbours are as typical.
    middle = order[len(order) // 2 :]
    typical = middle[0] if middle[0] not in places or len(middle) == 1 else middle[1]
    if typical not in places:
        places[typical] = f"typical: {metric} {_score(rows[typical], systems, metric):.1f}, the median"
    wrong = order[0]
    if scores[wrong] < scores[order[-1]] and wrong not in places:
        still = "still wrong" if len(systems) == 2 else "wrong"
        places[wrong] = f"{still}: {metric} {_score(rows[wrong], systems, metric):.1f}"
    return places


def _score(row: Row, systems: Sequence[str], metric: str) -> float:
    return row["scores"][systems[-1]][metric]


def _gain(row: Row, systems: Sequence[str], metric: str) -> float:
    return direction(metric) * (_score(row, systems, metric) - row["scores"][systems[0]][metric])


def _text(row: Row, label: str) -> str:
    heading = f"row {row['row']}" + (f", {label}" if label else "")
    source = wrap(" ".join(row["source"].split()), prose_width(), initial_indent=INDENT, subsequent_indent=INDENT)
    references = " / ".join(dict.fromkeys(row["references"]))
    lines = [heading, *source, f"  {'expected':{LABEL_WIDTH}}{references}"]
    for name, system in systems_in(row).items():
        lines.append(f"  {system:{LABEL_WIDTH}}{shortened_line(row[name])}")
    return "\n".join(lines)


def shortened_line(text: str) -> str:
    """Return a text on one line of at most ANSWER_WIDTH cells of a terminal."""
    text = " ".join(text.split())
    if cells(text) > ANSWER_WIDTH:
        text = f"{clip(text, 0, ANSWER_WIDTH - 4).rstrip()} ..."
    return text or "(nothing)"
