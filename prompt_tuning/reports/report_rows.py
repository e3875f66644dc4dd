"""The rows of a report: their scores and gains, their own texts, and where their predictions differ."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from prompt_tuning.metrics.loading import direction
from prompt_tuning.metrics.scores import MetricFunction
from prompt_tuning.metrics.significance import is_saved_mean, rows_scored_alone
from prompt_tuning.reports.differences import marked_pieces
from prompt_tuning.reports.run_files import systems_in
from prompt_tuning.reports.summary import scores_of_systems

logger = logging.getLogger(__name__)

ROWS_SHOWN = 1000  # in the table; all rows are scored, counted and searched for gains and losses
CHARACTERS_SHOWN = 4000  # in a text
PREVIEW = 160  # characters
EXTREMES = 5

Row = dict[str, Any]


def compared_rows(rows: list[Row], systems: dict[str, str]) -> dict[str, Any]:
    """Return the rows to show, and those that the second of two systems answers best and worst."""
    compared = len(systems) == 2
    better: list[Row] = []
    worse: list[Row] = []
    for row in sorted(rows, key=lambda row: -row["gain"]):
        if row["gain"] > 0:
            better.append(row)
        elif row["gain"] < 0:
            worse.append(row)
    worse.reverse()
    shown = rows[:ROWS_SHOWN]
    # A row of the gains or losses may be beyond those that the table shows.
    _add_marks([*shown, *better[:EXTREMES], *worse[:EXTREMES]], list(systems))
    return {
        "systems": systems,
        "last": list(systems)[-1],
        "rows": shown,
        "total": len(rows),
        "compared": compared,
        "gains": better[:EXTREMES],
        "losses": worse[:EXTREMES],
        "better": len(better),
        "worse": len(worse),
        "last_shown": shown[-1]["place"],
    }


def _column(rows: list[Row], name: str) -> list[Any]:
    return [row[name] for row in rows]


def has_scores(rows: list[Row], metric: str) -> bool:
    """Return whether the run has written the scores of each row, as runs of older versions have not."""
    return metric in next(iter(rows[0].get("scores", {"": ()}).values()))


def add_scores(rows: list[Row], metric: str, score: MetricFunction, results: dict[str, Any]) -> None:
    """Set `scores` of every row: the main metric of the row alone, by system.

    Args:
        rows: the rows of predictions/<split>.jsonl.
        metric: the name of the main metric.
        score: computes it.
        results: results.json, which names the systems.
    """
    logger.info("scoring every row alone, for the report")
    references = _column(rows, "references")
    for row in rows:
        row["scores"] = {}
    for name in systems_in(results):
        row_scores = rows_scored_alone(score, metric, _column(rows, name), references)
        for row, row_score in zip(rows, row_scores, strict=True):
            row["scores"][name] = {metric: float(row_score)}


def shown_metrics(rows: list[Row], metric: str) -> list[str]:
    """Return the metrics that each row has, the main one first."""
    of_rows = next(iter(rows[0]["scores"].values()))
    return list(dict.fromkeys([metric, *of_rows]))


def add_gains(rows: list[Row], metric: str, systems: list[str]) -> None:
    """Set `place`, `gain` and `kind` of every row.

    The gain is the second system's score minus the first's, which is the hard prompt. A positive gain is better.
    """
    for place, row in enumerate(rows):
        gain = 0.0
        if len(systems) == 2:
            gain = direction(metric) * (row["scores"][systems[1]][metric] - row["scores"][systems[0]][metric])
        kind = "better" if gain > 0 else "worse" if gain < 0 else "same"
        row |= {"place": place, "gain": gain, "kind": kind}


def scores_are_means(rows: list[Row], metric: str, results: dict[str, Any]) -> bool:
    """Return whether the metric of all rows is the mean of the rows' scores."""
    for name, scores in scores_of_systems(results).items():
        if not is_saved_mean([row["scores"][name][metric] for row in rows], scores.values[metric]):
            return False
    return True


def add_texts(rows: list[Row]) -> None:
    """Set `columns`, the row's own texts, the shortest first, and shorten texts that are too long.

    A row of an older version has no columns: its source is shown without the words that all rows open with.
    """
    prefix = _common_words(_column(rows, "source"))
    for row in rows:
        columns = row.get("columns") or {"": row["source"][len(prefix) :].strip() or row["source"]}
        shown = []
        for name, text in sorted(columns.items(), key=lambda column: len(column[1])):
            shown.append({"name": name, "text": _shortened(text), "preview": _preview(text)})
        row["columns"] = shown
        row["references"] = list(dict.fromkeys(map(_shortened, row["references"])))
        for key, value in row.items():
            if isinstance(value, str):
                row[key] = _shortened(value)


def _add_marks(rows: list[Row], systems: Sequence[str]) -> None:
    """Set `marked`: for each of two predictions its pieces, each with whether the other one lacks it."""
    for row in rows:
        row["marked"] = {}
        for name in systems:
            row["marked"][name] = [(row[name], False)] if row[name] else []
        if len(systems) == 2:
            row["marked"] = dict(zip(systems, marked_pieces(row[systems[0]], row[systems[1]]), strict=True))


def _preview(text: str) -> str | None:
    """Return the two ends of a text on one line; None for a text that is short enough to be shown whole."""
    line = " ".join(text.split())
    if len(line) <= PREVIEW:
        return None
    return f"{line[: PREVIEW // 2].rstrip()} … {line[-PREVIEW // 2 :].lstrip()}"


def _common_words(sources: list[str]) -> str:
    """Return the words that all sources open with; nothing if all are the same."""
    prefix = os.path.commonprefix(sources)  # noqa: RUF071  # the comparison by character is wanted here
    if prefix == max(sources):
        return ""
    return prefix[: max(prefix.rfind(" "), prefix.rfind("\n")) + 1]


def _shortened(text: str) -> str:
    """Return a text, or its two ends with the number of characters left out between them."""
    if len(text) <= CHARACTERS_SHOWN:
        return text
    half = CHARACTERS_SHOWN // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters are left out here …]\n{text[-half:]}"
