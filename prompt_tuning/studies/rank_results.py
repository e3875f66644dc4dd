"""Order the candidates of a ranking by their scores, with intervals and paired tests against the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.encoding.dataset import EncodingReport
from prompt_tuning.metrics.significance import DRAWS, corpus_significance, difference, interval, row_scores
from prompt_tuning.runs.prepare import Prepared
from prompt_tuning.studies.rank_candidates import validation_rows
from prompt_tuning.studies.rank_likelihoods import LikelihoodTable


def rank_facts(
    prepared: Mapping[str, Prepared], table: LikelihoodTable, texts: Mapping[str, list[str]], metric: str
) -> dict[str, Any]:
    """Return the winner, the test, and the facts of every candidate, the winner first, as rank.json holds them.

    The finalists come first, by the metric; of finalists with one score the likelier is better. The other candidates
    follow, those first that were scored on more rows.

    Args:
        prepared: the candidates by name.
        table: their log-likelihoods.
        texts: what the model wrote for every row, by the name of a finalist.
        metric: the score that chooses the winner.
    """
    first = next(iter(prepared.values()))
    references = list(validation_rows(first)["references"])
    scores = {}
    for name, predictions in texts.items():
        scores[name] = float(first.score(predictions, references)[metric])
    means = {name: table.mean(name) for name in prepared}
    finalists = sorted(scores, key=lambda name: (-scores[name], -means[name]))
    stopped = sorted(
        prepared.keys() - scores.keys(), key=lambda name: (-len(table.by_candidate[name]), -means[name], name)
    )
    winner = finalists[0]
    test, by_finalist = compared_texts({name: texts[name] for name in finalists}, references, first, metric)
    candidates = {}
    for name in [*finalists, *stopped]:
        facts = _likelihood_facts(table, name, winner) | lacking_rows(prepared[name])
        if name in scores:
            facts[metric] = {"score": scores[name], **by_finalist[name]}
        candidates[name] = facts
    return {"winner": winner, "test": test, "candidates": candidates}


def _likelihood_facts(table: LikelihoodTable, name: str, winner: str) -> dict[str, Any]:
    """Return a candidate's mean log-likelihood, and its difference from the winner on the rows of both."""
    scores = table.scores(name)[None]
    low, high = interval(scores)
    facts: dict[str, Any] = {"mean": table.mean(name), "low": low, "high": high}
    rows = list(table.by_candidate[name])
    if name != winner:
        facts["against_winner"] = difference(scores, table.scores(winner, rows)[None])
    return {"rows": len(rows), "log_likelihood": facts}


def lacking_rows(prepared: Prepared) -> dict[str, int]:
    """Return the number of rows that show fewer demonstrations than asked for; nothing if no row does."""
    report = prepared.reports["validation"]
    if isinstance(report, EncodingReport) and report.rows_with_fewer_demonstrations:
        return {"lacking_rows": report.rows_with_fewer_demonstrations}
    return {}


def compared_texts(
    texts: Mapping[str, list[str]], references: Sequence[list[str]], prepared: Prepared, metric: str
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Compare the texts of candidates with those of the first one, which has no `p`.

    Args:
        texts: one text a row, by the name of a candidate.
        references: one or more texts a row.
        prepared: computes the metric.
        metric: the name of the score.

    Returns:
        The name of the test, and the facts of each candidate.
    """
    winner = next(iter(texts))
    by_row = {}
    for name, predictions in texts.items():
        scores = row_scores(prepared.score, metric, predictions, references)
        if scores is None:
            return _test_corpus_metric(texts, references, prepared, metric)
        by_row[name] = scores[None]
    by_candidate: dict[str, dict[str, Any]] = {}
    for name, scores in by_row.items():
        low, high = interval(scores)
        by_candidate[name] = {"low": low, "high": high}
        if name != winner:
            against = difference(scores, by_row[winner])
            by_candidate[name] |= {"against_winner": against, "p": against["p"]}
    return f"{DRAWS} draws of rows", by_candidate


def _test_corpus_metric(
    texts: Mapping[str, list[str]], references: Sequence[list[str]], prepared: Prepared, metric: str
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Test finalists by a metric that is not a mean over rows. sacreBLEU tests only two systems or more."""
    by_candidate: dict[str, dict[str, Any]] = {next(iter(texts)): {}}
    if len(texts) > 1:
        language = prepared.recipe.data.metric_language
        by_candidate = dict(corpus_significance(metric, texts, references, language))
    return "sacreBLEU's paired bootstrap", by_candidate
