"""Write the results of `rank` as a table and in words."""

from __future__ import annotations

from typing import Any

from prompt_tuning.metrics.significance import DRAWS, FEW_ROWS
from prompt_tuning.reports.advice import SIGNIFICANT
from prompt_tuning.reports.losses import PREDICTION_LOSSES
from prompt_tuning.reports.styles import MARKDOWN, Style
from prompt_tuning.reports.summary import api_text
from prompt_tuning.support.text import agreed, counted


def rank_text(ranked: dict[str, Any], style: Style = MARKDOWN) -> str:
    """Return the table, and a line for each thing that a reader has to know about it.

    Args:
        ranked: what rank.json holds.
        style: how the text is written.
    """
    lines = [_table(ranked, style), "", *_notes(ranked, style), "", *_conclusions(ranked, style)]
    if ranked["next"]:
        lines.append(ranked["next"])
    return "\n".join(lines)


def _table(ranked: dict[str, Any], style: Style) -> str:
    metric = ranked["metric"]
    compared = ("95 %", "against the winner", "p")
    rows = []
    for name, facts in ranked["candidates"].items():
        cells = [style.words(name), str(facts["rows"])]
        if "log_likelihood" in facts:
            cells += _cells(facts["log_likelihood"], "mean", 2)
        cells += _cells(facts[metric], "score", 1) if metric in facts else [""] * 4
        rows.append(cells)
    likelihood = () if "api" in ranked else ("log-likelihood", *compared)
    return style.table(("candidate", "rows", *likelihood, style.words(metric), *compared), rows)


def _cells(facts: dict[str, Any], score: str, digits: int) -> list[str]:
    """Return a score, its interval, its difference from the winner's, and p; empty texts for what is missing."""
    spread = against = significance = ""
    if "low" in facts:
        spread = f"{facts['low']:.{digits}f} to {facts['high']:.{digits}f}"
    paired = facts.get("against_winner")
    if paired:
        against = f"{paired['difference']:+.{digits}f} ({paired['low']:+.{digits}f} to {paired['high']:+.{digits}f})"
    p = paired["p"] if paired else facts.get("p")
    if p is not None:
        significance = f"{p:.3f}, not significant" if p > SIGNIFICANT else f"{p:.3f}"
    return [f"{facts[score]:.{digits}f}", spread, against, significance]


def _notes(ranked: dict[str, Any], style: Style) -> list[str]:
    """Say how the numbers were computed, and what was left out."""
    candidates = ranked["candidates"]
    few = ""
    if min(facts["rows"] for facts in candidates.values()) <= FEW_ROWS:
        few = f", p of at most {FEW_ROWS} rows by their signs, their intervals too narrow"
    likelihood = f"log-likelihood: of a row's target without its end, in nats, {DRAWS} draws of rows{few}; "
    test = f"{style.words(ranked['metric'])}: {style.words(ranked['test'])}"
    if "api" in ranked:
        likelihood, test = "", f"{test}{few}"
    lines = [f"{counted(ranked['rows'], 'row')}; {likelihood}{test}"]
    steps = [f"{counted(kept, 'candidate')} on {counted(reach, 'row')}" for kept, reach in ranked["halving"]]
    lines.append(f"halving: {', '.join(steps)}")
    for name, facts in candidates.items():
        if "lacking_rows" in facts:
            lacking = counted(facts["lacking_rows"], "row", "show fewer")
            lines.append(f"{style.words(name)}: {lacking}; more do not fit max_source_tokens")
        for loss, count in facts.get("counts", {}).items():
            if count:
                answers = f"{counted(count, 'answer')} {agreed(count, PREDICTION_LOSSES[loss])}"
                lines.append(f"{style.words(name)}: {answers}")
    for name, reason in ranked["left_out"].items():
        lines.append(f"left out: {style.words(name)}: {style.words(reason)}")
    if "api" in ranked:
        lines.append(style.words(api_text(ranked["api"])))
    return lines


def _conclusions(ranked: dict[str, Any], style: Style) -> list[str]:
    """Say which candidate is the best, and from which ones it does not differ significantly."""
    metric, shown_metric = ranked["metric"], style.words(ranked["metric"])
    similar: list[str] = []
    stopped: list[str] = []
    for name, facts in ranked["candidates"].items():
        is_finalist = metric in facts and facts["rows"] == ranked["rows"]
        against = facts[metric] if metric in facts else facts["log_likelihood"]["against_winner"]
        if against.get("p", 0) > SIGNIFICANT:
            (similar if is_finalist else stopped).append(style.words(name))
    lines = [f"winner: {style.words(ranked['winner'])}"]
    if similar:
        lines.append(
            f"not significantly different from it by {shown_metric}: {'; '.join(similar)}; more rows may show one"
        )
    if stopped:
        stopped_by = shown_metric if "api" in ranked else "likelihood"
        lines.append(f"stopped, though their {stopped_by} is not significantly different: {'; '.join(stopped)}")
    lines.append("it was chosen on these rows, so its score is too high: `evaluate` winner.yaml on the test split")
    return lines
