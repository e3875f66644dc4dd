"""What `rank` found, as a table and in words."""

from __future__ import annotations

from typing import Any

from prompt_tuning.metrics.significance import DRAWS, FEW_ROWS
from prompt_tuning.support.tables import markdown_table

ALIKE = 0.05  # two candidates with a larger p cannot be told apart


def rank_text(ranked: dict[str, Any]) -> str:
    """The table in Markdown, and in words what cannot be told apart."""
    metric, winner, candidates = ranked["metric"], ranked["winner"], ranked["candidates"]
    compared = ("95 %", "against the winner", "p")
    head = ("candidate", "rows", "log-likelihood", *compared, metric, *compared)
    rows = []
    for name, facts in candidates.items():
        cells = [name, str(facts["rows"]), *_cells(facts["log_likelihood"], "mean", 2)]
        of_metric = facts.get(metric, {})
        cells += _cells(of_metric, "score", 1) if of_metric else [""] * 4
        rows.append(cells)
    fewest = min(facts["rows"] for facts in candidates.values())
    few = f", p of at most {FEW_ROWS} rows by their signs, their intervals too narrow" if fewest <= FEW_ROWS else ""
    what = f"log-likelihood: of a row's target without its end, in nats, {DRAWS} draws of rows{few}"
    lines = [*markdown_table(head, rows), "", f"{ranked['rows']} rows; {what}; {metric}: {ranked['test']}"]
    lines.append("halving: " + ", ".join(f"{kept} candidates on {reach} rows" for kept, reach in ranked["halving"]))
    lines += [
        f"{name}: {facts['lacking_rows']} rows are shown fewer, which is all that fits max_source_tokens"
        for name, facts in candidates.items()
        if "lacking_rows" in facts
    ]
    lines += [f"left out: {name}: {reason}" for name, reason in ranked["left_out"].items()]
    lines += ["", f"winner: {winner}"]
    alike = [name for name, facts in candidates.items() if facts.get(metric, {}).get("p", 0) > ALIKE]
    if alike:
        lines.append(f"cannot be told apart from it by {metric}: {'; '.join(alike)}; more rows may tell")
    near = [
        name
        for name, facts in candidates.items()
        if metric not in facts and facts["log_likelihood"]["against_winner"]["p"] > ALIKE
    ]
    if near:
        lines.append(f"stopped, though the likelihood does not tell them from it: {'; '.join(near)}")
    lines.append("it was chosen on these rows, which alone raises its score: `evaluate` winner.yaml on the test split")
    return "\n".join([*lines, ranked["next"]] if ranked["next"] else lines)


def _cells(facts: dict[str, Any], score: str, digits: int) -> list[str]:
    """A score, its interval, the difference from the winner's and p, as far as they are there."""
    against = facts.get("against_winner", {})
    p = against.get("p", facts.get("p"))
    told = "" if p is None else f"{p:.3f}{', not told apart' if p > ALIKE else ''}"
    return [
        f"{facts[score]:.{digits}f}",
        f"{facts['low']:.{digits}f} to {facts['high']:.{digits}f}" if "low" in facts else "",
        f"{against['difference']:+.{digits}f} ({against['low']:+.{digits}f} to {against['high']:+.{digits}f})"
        if against
        else "",
        told,
    ]
