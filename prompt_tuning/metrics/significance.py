"""Say how sure a score is: confidence intervals, and paired tests of two systems on the same rows.

Rows, and the seeds of trained systems, are drawn with replacement (Efron & Tibshirani 1993; Koehn 2004 for
translation). A bootstrap of few rows finds differences that do not exist, so few rows have an exact test. A corpus
metric is not a mean over rows, and has sacreBLEU's own paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from sacrebleu.metrics.base import Metric

from prompt_tuning.errors import RecipeError
from prompt_tuning.metrics.chrf.chrf import corpus_chrf
from prompt_tuning.metrics.loading import direction
from prompt_tuning.metrics.references import reference_streams
from prompt_tuning.metrics.sacrebleu.sacrebleu import corpus_bleu
from prompt_tuning.metrics.scores import MetricFunction
from prompt_tuning.metrics.ter.ter import corpus_ter

DRAWS = 2000
DRAWN_AT_ONCE = 2**20  # numbers of rows; 8 MB
MEAN_TOLERANCE = 0.006  # A saved score has two decimals.
FEW_ROWS = 16  # p is exact for at most so many rows.
LEVEL = 1.0  # A system is level if it loses less than so many points.
# The scores that sacreBLEU tests, and what computes each of them here and in its `evaluate` module.
CORPUS_METRICS: dict[str, Callable[..., Metric]] = {"bleu": corpus_bleu, "chrf": corpus_chrf, "ter": corpus_ter}


def rows_scored_alone(
    score: MetricFunction, metric: str, predictions: Sequence[str], references: Sequence[list[str]]
) -> np.ndarray:
    """Return a metric of each row alone, `[rows]`. For a corpus metric it is the sentence-level metric.

    Args:
        score: of `load_metrics`.
        metric: the name of a score.
        predictions: one text a row.
        references: one or more texts a row.
    """
    scores = []
    for text, texts in zip(predictions, references, strict=True):
        scores.append(float(score([text], [texts])[metric]))
    return np.array(scores)


def row_scores(
    score: MetricFunction, metric: str, predictions: Sequence[str], references: Sequence[list[str]]
) -> np.ndarray | None:
    """Return a metric of each row alone, `[rows]`, or None if their mean is not the metric of all rows.

    BLEU is an example of the latter. The arguments are those of `rows_scored_alone`.
    """
    scores = rows_scored_alone(score, metric, predictions, references)
    corpus_score = float(score(predictions, references)[metric])
    return scores if abs(scores.mean() - corpus_score) < 1e-6 * max(1.0, abs(corpus_score)) else None


def is_saved_mean(scores: Sequence[float] | np.ndarray, saved: float) -> bool:
    """Return whether a score of results.json is the mean of the scores of its rows."""
    return abs(float(np.mean(scores)) - saved) < MEAN_TOLERANCE


def interval(scores: np.ndarray) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of scores `[seeds, rows]`, which it contains."""
    return _containing(*_percentiles(_means(scores)), float(scores.mean()))


def difference(scores: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """Compare scores with those of a baseline on the same rows.

    Args:
        scores: `[seeds, rows]`.
        baseline: `[seeds, rows]` with as many seeds, or with one.

    Returns:
        `difference` of the means, `low` and `high` of its 95 % interval, and the two-sided `p`. p is how often a draw
        has the other sign. For at most FEW_ROWS rows of one seed, it is the share of choices of the differences' signs
        that make a mean as large. For as few rows of several seeds, it is the larger of the two.
    """
    differences = scores - baseline
    drawn = _means(differences).round(9)  # Equal means differ in their last digits.
    difference = float(differences.mean())
    low, high = _containing(*_percentiles(drawn), difference)
    p = min(1.0, 2 * min((drawn <= 0).mean(), (drawn >= 0).mean()) + 1 / DRAWS)
    seeds, rows = differences.shape
    if rows <= FEW_ROWS:
        # The exact test sees the mean over seeds, and not how seeds differ.
        exact = _exact_p(differences.mean(0))
        p = max(p, exact) if seeds > 1 else exact
    return {"difference": difference, "low": low, "high": high, "p": float(p)}


def corpus_significance(
    metric: str, systems: Mapping[str, Sequence[str]], references: Sequence[list[str]], language: str | None = None
) -> dict[str, dict[str, float]]:
    """Run sacreBLEU's paired bootstrap.

    Args:
        metric: one of CORPUS_METRICS, computed as the metric of that name is.
        systems: the predictions of each system, one text a row. All are compared with the first system.
        references: one or more texts a row.
        language: of the texts, as the metric takes it.

    Returns:
        For each system its `score`, `low` and `high` of the 95 % interval, which contains the score, and for all
        except the first `p` against the first. `p` is at least 2 / 2 ** rows, the least that an exact test of so many
        rows returns.

    Raises:
        RecipeError: a metric that sacreBLEU does not test.
    """
    if metric not in CORPUS_METRICS:
        names = ", ".join(CORPUS_METRICS)
        raise RecipeError(
            f"{metric} is not a mean over rows, and of such metrics only {names} have a test. Name one of them."
        )
    from sacrebleu.significance import PairedTest, Result

    corpus_metric = CORPUS_METRICS[metric](language, references=reference_streams(references))
    _, columns = PairedTest(list(systems.items()), {metric: corpus_metric}, None, test_type="bs", n_samples=1000)()
    del columns["System"]
    (results,) = columns.values()
    significance = {}
    first_score = None
    for name, result in zip(systems, results, strict=True):
        assert isinstance(result, Result) and result.mean is not None and result.ci is not None
        # sacreBLEU's mean is a float32, which JSON does not write.
        low, high = _containing(float(result.mean - result.ci), float(result.mean + result.ci), result.score)
        significance[name] = {"score": result.score, "low": low, "high": high}
        if result.p_value is None:
            first_score = result.score
            continue
        # sacreBLEU counts the draws that are further apart than the systems. Equal systems have none, and so few rows
        # cannot show more than the least p.
        least = 2 / 2 ** len(references)
        significance[name]["p"] = min(1.0, max(result.p_value, least)) if result.score != first_score else 1.0
    return significance


def corpus_difference(
    metric: str,
    systems: Sequence[Sequence[str]],
    baseline: Sequence[Sequence[str]],
    references: Sequence[list[str]],
    language: str | None = None,
) -> dict[str, float]:
    """Compare a system with a baseline by a corpus metric on the same rows.

    Args:
        metric: one of CORPUS_METRICS.
        systems: the predictions of each seed, one text a row.
        baseline: the same of the baseline, with as many seeds, or with one.
        references: one or more texts a row.
        language: of the texts, as the metric takes it.

    Returns:
        `difference` of the mean scores, and `low` and `high` of its 95 % interval by draws of rows and seeds.
    """
    corpus_metric = CORPUS_METRICS[metric](language, references=reference_streams(references))
    generator = np.random.default_rng(0)
    every_row_once = np.arange(len(references))[None]
    rows = np.concatenate([every_row_once, *_row_draws(generator, len(references))])
    seed_weights = _seed_weights(generator, max(len(systems), len(baseline)))
    differences = _corpus_scores(corpus_metric, systems, rows) - _corpus_scores(corpus_metric, baseline, rows)
    difference = float(differences[0].mean())
    drawn = (_wider(differences[1:].T).T * seed_weights).sum(1)
    low, high = _containing(*_percentiles(drawn), difference)
    return {"difference": difference, "low": low, "high": high}


def _corpus_scores(metric: Metric, systems: Sequence[Sequence[str]], rows: np.ndarray) -> np.ndarray:
    """Return the score of each seed on each choice of rows, `[choices, seeds]`, for choices `[choices, rows]`.

    sacreBLEU keeps the counts of each row to itself, and its public functions would split the texts for each choice.
    """
    columns = []
    for predictions in systems:
        counts = np.array(metric._extract_corpus_statistics(predictions, None), dtype="float32")  # noqa: SLF001
        columns.append([metric._compute_score_from_stats(counts[chosen].sum(0)).score for chosen in rows])  # noqa: SLF001
    return np.array(columns).T


def in_words(metric: str, low: float, high: float) -> str:
    """Say what the 95 % interval of a difference from a baseline shows.

    Returns:
        "ahead" if the whole interval is better; "level" if it is less than LEVEL points worse; "behind" if all of it
        is worse; else "not shown".
    """
    low, high = sorted((direction(metric) * low, direction(metric) * high))
    if low > 0:
        return "ahead"
    if low > -LEVEL:
        return "level"
    return "behind" if high < 0 else "not shown"


def test_description(rows: int, seeds: int) -> str:
    """Say how intervals and p of a mean over rows were computed, and what they leave out."""
    draws = f"{DRAWS} draws of rows and seeds" if seeds > 1 else f"{DRAWS} draws of rows"
    parts = [draws] if rows > FEW_ROWS else [f"{draws}, p by the signs of so few rows, whose intervals are too narrow"]
    if rows <= FEW_ROWS and seeds > 1:
        parts.append("p of several seeds is that of the draws if it is larger")
    if seeds == 1:
        parts.append("they leave out what another seed changes")
    elif seeds < 5:
        parts.append("so few seeds may differ by more than these do")
    return "; ".join(parts)


def _exact_p(differences: np.ndarray) -> float:
    """Return p of the sign-flip test (Fisher 1935). Its least is 2 / 2 ** rows: one row shows nothing."""
    count = len(differences)
    signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    return float((abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-9)).mean())


def _means(scores: np.ndarray) -> np.ndarray:
    """Return the mean of each draw of rows and seeds, `[DRAWS]`. Scores of one shape have the same draws."""
    seeds, rows = scores.shape
    generator = np.random.default_rng(0)
    scores = _wider(scores)
    means = [scores[:, drawn].mean(2).T for drawn in _row_draws(generator, rows)]  # [draws, seeds] each
    return (np.concatenate(means) * _seed_weights(generator, seeds)).sum(1)


def _row_draws(generator: np.random.Generator, rows: int) -> Iterator[np.ndarray]:
    """Yield the rows of some draws after the other, `[draws, rows]`, DRAWS in all, so that many rows fit in memory."""
    at_once = max(DRAWN_AT_ONCE // rows, 1)
    for first in range(0, DRAWS, at_once):
        yield generator.integers(rows, size=(min(at_once, DRAWS - first), rows))


def _seed_weights(generator: np.random.Generator, seeds: int) -> np.ndarray:
    """Return the share of each seed in a draw, `[DRAWS, seeds]`."""
    drawn_seeds = generator.integers(seeds, size=(DRAWS, seeds))
    return (drawn_seeds[..., None] == np.arange(seeds)).mean(1)


def _wider(scores: np.ndarray) -> np.ndarray:
    """Return scores `[seeds, ...]` further from their mean, since so few drawn seeds differ too little."""
    seeds = len(scores)
    average = scores.mean(0)
    return average + (scores - average) * np.sqrt(seeds / max(seeds - 1, 1))


def _containing(low: float, high: float, score: float) -> tuple[float, float]:
    """Widen an interval to its score, which rounding or the skew of few draws may leave outside."""
    return min(low, score), max(high, score)


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
