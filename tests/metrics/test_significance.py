"""Intervals hold their mean, and tests find a difference where there is one and none in noise."""

import numpy as np
import pytest

from prompt_tuning.metrics.loading import load_metrics
from prompt_tuning.metrics.significance import corpus_significance, difference, interval, row_scores


def test_a_95_percent_interval_holds_the_mean_in_95_percent_of_draws():
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(100):
        low, high = interval(generator.normal(50, 20, size=(1, 60)))
        held += low <= 50 <= high
    assert 88 <= held <= 100


def test_a_paired_test_finds_a_small_gain_on_every_row_and_none_in_noise():
    generator = np.random.default_rng(7)
    rows = generator.normal(50, 20, size=(1, 200))
    gained = difference(rows + generator.normal(2, 3, size=rows.shape), rows)
    assert gained["p"] < 0.01 and 0 < gained["low"] < gained["difference"] < gained["high"]
    noise = generator.normal(0, 3, size=rows.shape)
    noise = difference(rows + noise - noise.mean() + 0.05, rows)
    assert noise["p"] > 0.05 and noise["low"] < 0 < noise["high"]
    assert difference(rows, rows)["p"] == 1
    constant = np.full((1, 5), 3.0)
    assert difference(constant + 1, constant)["p"] == 2 / 2**5 and difference(constant, constant)["p"] == 1
    assert difference(constant[:, :1] + 1, constant[:, :1])["p"] == 1  # One row shows nothing.
    seeds = np.concatenate([rows + 5, rows - 5])  # Only one seed has a gain.
    assert difference(seeds, rows)["p"] > 0.1
    of_two = np.array([[10.0] * 16, [-8.0] * 16])  # The seeds contradict each other.
    assert difference(of_two, np.zeros((1, 16)))["p"] > 0.1


def test_few_rows_and_few_seeds_find_no_difference_in_noise():
    """Use a stricter test, because a plain bootstrap of 8 rows finds a difference in 12 % of noise."""
    generator = np.random.default_rng(3)
    noise = [generator.normal(0, 1, size=(2, 1, 8)) for _ in range(400)]
    significant = sum(difference(one, other)["p"] <= 0.05 for one, other in noise)
    assert significant <= 0.08 * 400
    two_seeds = np.array([[48.0] * 40, [52.0] * 40])  # Their deviation divides by n - 1.
    assert interval(two_seeds) == pytest.approx((50 - 2 * 2**0.5, 50 + 2 * 2**0.5))


def test_corpus_metrics_are_not_means_over_rows_and_have_the_test_of_sacrebleu():
    references = [
        [f"the {word} cat sat on the old mat by the door"] for word in ("red", "big", "shy", "wet", "sad") * 6
    ]
    good = [texts[0] for texts in references]
    poor = [text.replace("old mat by", "new rug at") for text in good]
    bleu = load_metrics(["sacrebleu"])
    assert row_scores(bleu, "bleu", poor[:-1] + good[:1], references) is None
    squad = load_metrics(["squad"])
    assert row_scores(squad, "f1", poor, references).shape == (30,)
    for metric in ("bleu", "chrf"):
        report = corpus_significance(metric, {"poor": poor, "good": good}, references)
        assert report["good"]["p"] < 0.01 and "p" not in report["poor"]
        assert corpus_significance(metric, {"poor": poor, "same": list(poor)}, references)["same"]["p"] == 1
        of_two = {"poor": poor[:2], "good": good[:2]}
        assert corpus_significance(metric, of_two, references[:2])["good"]["p"] == 0.5  # Two rows cannot show more.
        assert report["poor"]["low"] <= report["poor"]["high"] < 100
