"""Score each predicted row alone, compare what was trained with the hard prompt, and choose the row of the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from transformers.utils.logging import tqdm

from prompt_tuning.arguments.methods import HARD_PROMPT
from prompt_tuning.metrics.loading import OWN_METRICS, load_metrics, main_metric
from prompt_tuning.metrics.scores import MetricFunction, Scores
from prompt_tuning.metrics.significance import CORPUS_METRICS, corpus_difference, difference, is_saved_mean
from prompt_tuning.runs.prepare import Prepared

RIGHT = 100.0
"""The score of a row that is right, by the metrics that compare a whole answer with its references."""

RowScores = dict[str, list[dict[str, float]]]
"""The scores of every row by metric, for every system."""


def score_rows(predictions: Mapping[str, Sequence[str]], prepared: Prepared, split: str) -> RowScores:
    """Score every row alone by the metrics of this package; nothing if the recipe has none of them.

    Metrics of others may load a model for each call, so they score only all rows together.

    Args:
        predictions: the texts of all rows, by the name of the system that wrote them.
        prepared: the recipe with its rows.
        split: the predicted split.
    """
    score = _own_score(prepared)
    if score is None:
        return {}
    references = list(prepared.encoded[split]["references"])
    scored: RowScores = {}
    total = len(predictions) * len(references)
    disabled = prepared.recipe.training.disable_tqdm
    with tqdm(total=total, desc="scoring rows", unit="row", disable=disabled, delay=1) as bar:
        for name, texts in predictions.items():
            scored[name] = []
            for text, texts_of_row in zip(texts, references, strict=True):
                scored[name].append(_rounded(Scores.from_json(score([text], [texts_of_row])).values))
                bar.update()
    return _of_all_rows(scored)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _of_all_rows(scored: RowScores) -> RowScores:
    """Keep the metrics that every row has; SQuAD's v2.0 has some only for rows with, or without, an answer."""
    metrics = set.intersection(*map(set, chain.from_iterable(scored.values())))
    for row in chain.from_iterable(scored.values()):
        for name in row.keys() - metrics:
            del row[name]
    return scored


def _own_score(prepared: Prepared) -> MetricFunction | None:
    names = prepared.recipe.metrics
    own_names = list(filter(OWN_METRICS.__contains__, names))
    if len(own_names) == len(names):
        return prepared.score
    return load_metrics(own_names, language=prepared.recipe.data.metric_language) if own_names else None


def compare_systems(
    results: Mapping[str, Any], scored: RowScores, predictions: Mapping[str, Sequence[str]], prepared: Prepared
) -> dict[str, dict[str, float]]:
    """Return the difference of what was trained from the hard prompt by metric, with its 95 % interval.

    Args:
        results: what results.json holds, with the scores of all rows.
        scored: of `score_rows`.
        predictions: the texts of all rows, by system.
        prepared: the recipe with its rows.

    Returns:
        For a metric that is a mean over rows or has a test: `difference`, `low`, `high`, and `p` of a mean. Nothing
        unless there are two systems, of which one is the hard prompt.
    """
    if len(predictions) != 2 or HARD_PROMPT not in predictions:
        return {}
    trained = _trained_system(predictions)
    references = list(prepared.encoded[results["split"]]["references"])
    comparison = {}
    metrics = list(Scores.from_json(results[trained]).values)
    disabled = prepared.recipe.training.disable_tqdm
    for metric in tqdm(metrics, desc="intervals", unit="metric", disable=disabled, delay=1):
        if metric in CORPUS_METRICS and all(references):
            texts = (predictions[trained], predictions[HARD_PROMPT])
            language = prepared.recipe.data.metric_language
            tested = corpus_difference(metric, [texts[0]], [texts[1]], references, language)
        elif (
            scored
            and metric in scored[trained][0]
            and is_saved_mean(_column(scored[trained], metric), results[trained][metric])
        ):
            tested = difference(_column(scored[trained], metric), _column(scored[HARD_PROMPT], metric))
        else:
            continue
        comparison[metric] = _rounded(tested)
    return comparison


def _column(rows: Sequence[Mapping[str, float]], metric: str) -> np.ndarray:
    """Return a metric of each row, `[1, rows]`."""
    return np.array([[row[metric] for row in rows]])


def _trained_system(systems: Mapping[str, Any]) -> str:
    """Return the system that is compared with the hard prompt; the hard prompt if it is the only one."""
    others = [name for name in systems if name != HARD_PROMPT]
    return others[0] if others else HARD_PROMPT


def right_row(results: Mapping[str, Any], scored: RowScores) -> int | None:
    """Return the place of the first row that the trained system answers right, preferably one that it mends.

    Args:
        results: what results.json holds.
        scored: of `score_rows`.

    Returns:
        None if no row is right, or if the task's metric does not say it.
    """
    trained = _trained_system(scored)
    if trained not in results or trained not in scored:
        return None
    metric = main_metric(results["task"], Scores.from_json(results[trained]))
    before = scored.get(HARD_PROMPT, [])
    first = None
    for place, row in enumerate(scored[trained]):
        if row.get(metric) != RIGHT:
            continue
        if not before or before[place][metric] != RIGHT:
            return place
        first = place if first is None else first
    return first
