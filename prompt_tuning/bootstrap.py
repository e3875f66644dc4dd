"""How sure a score is: bootstrap over rows and seeds, and the paired test of two ways on the same rows.

Rows, and the seeds that a way was trained with, are drawn with replacement (Efron & Tibshirani 1993; Koehn 2004 for
translation). Corpus metrics, which are no mean over rows, go by sacreBLEU's own paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prompt_tuning.metrics import Score
from prompt_tuning.metrics.references import reference_streams
from prompt_tuning.metrics.sacrebleu.sacrebleu import tokenizer_for

DRAWS = 2000


def rows_alone(score: Score, metric: str, predictions: Sequence[str], references: Sequence[list[str]]) -> np.ndarray:
    """`[rows]`, a metric of each row alone; of a corpus metric the sentence-level one."""
    return np.array(
        [float(score([text], [texts])[metric]) for text, texts in zip(predictions, references, strict=True)]
    )


def row_scores(
    score: Score, metric: str, predictions: Sequence[str], references: Sequence[list[str]]
) -> np.ndarray | None:
    """`[rows]`, a metric of each row alone; None where their mean is not the metric of all, as with BLEU."""
    each = rows_alone(score, metric, predictions, references)
    whole = float(score(predictions, references)[metric])
    return each if abs(each.mean() - whole) < 1e-6 * max(1.0, abs(whole)) else None


def interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of the mean of scores `[seeds, rows]`."""
    return _percentiles(_means(scores, np.random.default_rng(0)))


def difference(scores: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """How much better scores `[seeds, rows]` are than a baseline's, paired by row.

    Returns:
        `difference` of the means, `low` and `high` of its 95 % interval, and `p`, two-sided: how often a draw has the
        other sign.
    """
    # The same generator state draws the same rows for both.
    drawn = _means(scores, np.random.default_rng(0)) - _means(baseline, np.random.default_rng(0))
    low, high = _percentiles(drawn)
    p = min(1.0, 2 * min((drawn <= 0).mean(), (drawn >= 0).mean()) + 1 / DRAWS)
    return {"difference": float(scores.mean() - baseline.mean()), "low": low, "high": high, "p": float(p)}


def corpus_tests(
    metric: str, systems: dict[str, Sequence[str]], references: Sequence[list[str]], language: str | None = None
) -> dict[str, dict[str, float]]:
    """For each system `low`, `high` and, but for the first, `p` against it, by sacreBLEU's paired bootstrap."""
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.significance import PairedTest

    streams = reference_streams(references)
    made = BLEU(tokenize=tokenizer_for(language), references=streams) if metric == "bleu" else None
    made = made or CHRF(word_order=2, references=streams)
    named = [(name, list(texts)) for name, texts in systems.items()]
    _, results = PairedTest(named, {metric: made}, None, test_type="bs", n_samples=1000)()
    (values,) = (values for key, values in results.items() if key != "System")
    found = {}
    for name, each in zip(systems, values, strict=True):
        found[name] = {"low": each.mean - each.ci, "high": each.mean + each.ci}
        if each.p_value is not None:
            found[name]["p"] = each.p_value
    return found


def _means(scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    seeds, rows = scores.shape
    drawn = generator.integers(rows, size=(DRAWS, rows))
    which = generator.integers(seeds, size=(DRAWS, seeds))
    return np.array([scores[chosen][:, row].mean() for row, chosen in zip(drawn, which, strict=True)])


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
