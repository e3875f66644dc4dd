"""Exact match: the share of predictions that equal a reference, letter by letter."""

from typing import Any

import evaluate

from prompt_tuning.metrics.references import FEATURES, require_references


class ExactMatch(evaluate.Metric):
    """Percent of rows whose prediction equals a reference, without the whitespace around both.

    >>> from prompt_tuning.metrics.loading import load_metrics
    >>> load_metrics(["exact_match"])(["Tea ", "tea"], [["Tea"], ["Tea"]])
    {'exact_match': 50.0}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="""
Args:
    predictions: one text a row.
    references: one or more texts a row; rows may differ in their number.
Returns:
    exact_match: 0 to 100. Unlike the one of "squad", it normalises neither case nor punctuation.
""",
            features=FEATURES,
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        require_references(references)
        hits = 0
        for prediction, texts in zip(predictions, references, strict=True):
            hits += prediction.strip() in map(str.strip, texts)
        return {"exact_match": 100.0 * hits / len(predictions)}
