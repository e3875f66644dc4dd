"""How sure a score is: bootstrap over rows and seeds, and the paired test of two ways on the same rows.

Rows, and the seeds that a way was trained with, are drawn with replacement (Efron & Tibshirani 1993; Koehn 2004 for
translation). A bootstrap of few rows finds differences where there are none, so these have an exact test. Corpus
metrics, which are no mean over rows, go by sacreBLEU's own paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prompt_tuning.errors import RecipeError
from prompt_tuning.metrics.references import reference_streams
from prompt_tuning.metrics.sacrebleu.sacrebleu import tokenizer_for
from prompt_tuning.metrics.scores import MetricFunction

DRAWS = 2000
FEW_ROWS = 16  # up to which p is exact


def rows_scored_alone(
    score: MetricFunction, metric: str, predictions: Sequence[str], references: Sequence[list[str]]
) -> np.ndarray:
    """`[rows]`, a metric of each row alone; of a corpus metric the sentence-level one."""
    return np.array(
        [float(score([text], [texts])[metric]) for text, texts in zip(predictions, references, strict=True)]
    )


def row_scores(
    score: MetricFunction, metric: str, predictions: Sequence[str], references: Sequence[list[str]]
) -> np.ndarray | None:
    """`[rows]`, a metric of each row alone; None where their mean is not the metric of all, as with BLEU."""
    each = rows_scored_alone(score, metric, predictions, references)
    whole = float(score(predictions, references)[metric])
    return each if abs(each.mean() - whole) < 1e-6 * max(1.0, abs(whole)) else None


def interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of the mean of scores `[seeds, rows]`."""
    return _percentiles(_means(scores))


def difference(scores: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """How much better scores `[seeds, rows]` are than a baseline's, of as many seeds or of one, paired by row.

    Returns:
        `difference` of the means, `low` and `high` of its 95 % interval, and `p`, two-sided: how often a draw has the
        other sign; of at most FEW_ROWS rows of one seed, how many choices of their differences' signs make as large a
        mean, which of several seeds p is at least, too.
    """
    differences = scores - baseline
    drawn = _means(differences).round(9)  # means that are the same differ in their last digits
    low, high = _percentiles(drawn)
    p = min(1.0, 2 * min((drawn <= 0).mean(), (drawn >= 0).mean()) + 1 / DRAWS)
    seeds, rows = differences.shape
    if rows <= FEW_ROWS:
        exact = _exact_p(differences.mean(0))  # which knows nothing of how seeds differ
        p = max(p, exact) if seeds > 1 else exact
    return {"difference": float(differences.mean()), "low": low, "high": high, "p": float(p)}


def corpus_significance(
    metric: str, systems: Mapping[str, Sequence[str]], references: Sequence[list[str]], language: str | None = None
) -> dict[str, dict[str, float]]:
    """For each system `low`, `high` and, but for the first, `p` against it, by sacreBLEU's paired bootstrap.

    `p` is at least 2 / 2 ** rows, the least that an exact test of so many rows gives.

    Raises:
        RecipeError: a metric other than bleu and chrf.
    """
    if metric not in ("bleu", "chrf"):
        raise RecipeError(f"{metric} is no mean over rows, and only bleu and chrf have a test of their own; name one")
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.significance import PairedTest

    streams = reference_streams(references)
    bleu = metric == "bleu"
    made = BLEU(tokenize=tokenizer_for(language), references=streams) if bleu else CHRF(2, references=streams)
    named = [(name, list(texts)) for name, texts in systems.items()]
    _, results = PairedTest(named, {metric: made}, None, test_type="bs", n_samples=1000)()
    (values,) = (values for key, values in results.items() if key != "System")
    found = {}
    for name, each in zip(systems, values, strict=True):
        found[name] = {"low": each.mean - each.ci, "high": each.mean + each.ci}
        if each.p_value is not None:
            # sacreBLEU counts the draws that are further apart than the systems, of which equal ones have none; so few
            # rows, each for one or the other, cannot tell more.
            least = 2 / 2 ** len(references)
            found[name]["p"] = min(1.0, max(each.p_value, least)) if each.score != values[0].score else 1.0
    return found


def test_description(rows: int, seeds: int) -> str:
    """How intervals and p of a mean over rows came about, and what they leave out."""
    drawn = f"{DRAWS} draws of rows and seeds" if seeds > 1 else f"{DRAWS} draws of rows"
    said = [drawn] if rows > FEW_ROWS else [f"{drawn}, p by the signs of so few rows, whose intervals are too narrow"]
    if rows <= FEW_ROWS and seeds > 1:
        said.append("p of several seeds is that of the draws where it is larger")
    if seeds == 1:
        said.append("what another seed changes is not in them")
    elif seeds < 5:
        said.append("so few seeds may differ by more than these do")
    return "; ".join(said)


def _exact_p(differences: np.ndarray) -> float:
    """The sign-flip test (Fisher 1935): a row alone tells nothing, 2 / 2 ** rows is the least."""
    count = len(differences)
    signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    return float((abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-9)).mean())


def _means(scores: np.ndarray) -> np.ndarray:
    """`[DRAWS]`, the mean of each draw of rows and seeds: the same draws for all scores of one shape."""
    generator, (seeds, rows) = np.random.default_rng(0), scores.shape
    average = scores.mean(0)
    # Seeds drawn from so few differ less than seeds do.
    scores = average + (scores - average) * np.sqrt(seeds / max(seeds - 1, 1))
    drawn = generator.integers(rows, size=(DRAWS, rows))
    which = generator.integers(seeds, size=(DRAWS, seeds))
    of_seeds = (which[..., None] == np.arange(seeds)).mean(1) @ scores  # [draws, rows]
    return np.take_along_axis(of_seeds, drawn, 1).mean(1)


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
