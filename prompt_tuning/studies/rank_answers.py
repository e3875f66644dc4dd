"""Rank candidates by the answers of a model behind an API, with the successive halving of rank_likelihoods.py.

A server does not give the likelihood of a target. The task's metric of the answers decides at every step instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prompt_tuning.metrics.significance import DRAWS
from prompt_tuning.runs.api_model import ApiAnswer, ApiModel, api_counts
from prompt_tuning.runs.prepare import Prepared
from prompt_tuning.studies.rank_candidates import validation_rows
from prompt_tuning.studies.rank_likelihoods import halve
from prompt_tuning.studies.rank_results import compared_texts, lacking_rows


@dataclass
class AnswerTable:
    """The answers to the rows of every candidate so far.

    Args:
        model: answers rows that have no answer yet.
        prepared: the candidates by name.
        metric: the name of the score.
    """

    model: ApiModel
    prepared: Mapping[str, Prepared]
    metric: str
    by_candidate: dict[str, dict[int, ApiAnswer]] = field(default_factory=dict)

    def add(self, candidates: Sequence[str], rows: Sequence[int]) -> None:
        """Ask for the answers to rows as these candidates write them."""
        for name in candidates:
            of_candidate = self.prepared[name]
            encoded = validation_rows(of_candidate).select(rows)
            answers = self.model.answer_rows(encoded, of_candidate.encoder, of_candidate.recipe, "validation")
            self.by_candidate.setdefault(name, {}).update(zip(rows, answers, strict=True))

    def rows(self, name: str) -> list[int]:
        """Return the rows that a candidate has answers to."""
        return sorted(self.by_candidate[name])

    def texts(self, name: str, rows: Sequence[int]) -> list[str]:
        """Return the answers of a candidate to rows."""
        return [self.by_candidate[name][row].text for row in rows]

    def references(self, rows: Sequence[int]) -> list[list[str]]:
        """Return the reference answers of rows, which are the same for all candidates."""
        return list(validation_rows(next(iter(self.prepared.values()))).select(rows)["references"])

    def score(self, name: str, rows: Sequence[int]) -> float:
        """Return the metric of a candidate's answers to rows."""
        return float(self.prepared[name].score(self.texts(name, rows), self.references(rows))[self.metric])


def rank_by_answers(
    model: ApiModel, prepared: Mapping[str, Prepared], plan: Sequence[tuple[int, int]], metric: str
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return what `rank_facts` returns, without likelihoods, and the finalists' answers to all rows.

    Every candidate is compared with the winner on the rows that both have answers to.

    Args:
        model: the model.
        prepared: the candidates by name.
        plan: of `halving_plan`.
        metric: the score that decides.
    """
    table = AnswerTable(model, prepared, metric)
    finalists = halve(list(prepared), plan, table.add, table.score)
    all_rows = list(range(plan[-1][1]))
    final = {name: table.score(name, all_rows) for name in finalists}
    finalists = sorted(finalists, key=lambda name: -final[name])
    winner = finalists[0]
    stopped = sorted(
        prepared.keys() - final.keys(),
        key=lambda name: (-len(table.rows(name)), -table.score(name, table.rows(name)), name),
    )
    test = f"{DRAWS} draws of rows"
    candidates = {}
    for name in [*finalists, *stopped]:
        rows = table.rows(name)
        texts = {winner: table.texts(winner, rows)} | {name: table.texts(name, rows)}
        test, compared = compared_texts(texts, table.references(rows), prepared[name], metric)
        facts: dict[str, Any] = {"rows": len(rows), **lacking_rows(prepared[name])}
        facts[metric] = {"score": table.score(name, rows), **compared[name]}
        facts["counts"] = api_counts(list(table.by_candidate[name].values()))
        candidates[name] = facts
    facts = {"winner": winner, "test": test, "candidates": candidates, "api": model.facts()}
    return facts, {name: table.texts(name, all_rows) for name in finalists}
