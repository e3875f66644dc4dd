"""The scores of choices' probabilities, against counts by hand."""

from itertools import product

import numpy as np
import pytest

from prompt_tuning.metrics.probabilities import auc, f1, probability_scores, reliability


@pytest.mark.parametrize("seed", range(4))
def test_the_area_under_the_curve_is_the_share_of_pairs_in_the_right_order(seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 5, 40) / 4  # Most scores are equal to others.
    positive = generator.random(40) < 0.3 + 0.4 * scores
    wins = 0.0
    for high, low in product(scores[positive], scores[~positive]):
        wins += 1 if high > low else 0.5 if high == low else 0
    assert auc(scores, positive) == pytest.approx(wins / (positive.sum() * (~positive).sum()))
    assert auc(-scores, positive) == pytest.approx(1 - auc(scores, positive))
    assert auc(scores * 0, positive) == 0.5
    assert auc(scores, positive | True) is None and auc(scores, positive & False) is None


def test_f1_is_that_of_precision_and_recall():
    predicted, positive = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
    precision, recall = 1 / 3, 1 / 2
    assert f1(predicted, positive) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1(predicted & False, positive & False) == 0


def test_a_model_that_is_right_as_often_as_it_is_sure_has_no_calibration_error():
    confidence = np.array([0.75] * 4 + [1.0] * 2)
    bins = reliability(confidence, np.array([1, 1, 1, 0, 1, 1], bool))
    assert bins == [
        {"rows": 4, "confidence": 0.75, "accuracy": 0.75},
        {"rows": 2, "confidence": 1.0, "accuracy": 1.0},
    ]
    rows = [[0.75, 0.25]] * 3 + [[0.25, 0.75]] + [[1.0, 0.0]] * 2
    scores = probability_scores(rows, [0, 0, 0, 0, 0, 0], ["yes", "no"])
    assert scores["ece"] == 0 and scores["accuracy"] == pytest.approx(100 * 5 / 6) and "auc" not in scores
    assert scores["brier"] == pytest.approx((3 * 0.25**2 + 0.75**2) / 6)
    assert scores["macro_f1"] == pytest.approx(50 * (10 / 11 + 0))


def test_a_model_that_is_always_sure_has_its_share_of_errors_as_calibration_error():
    scores = probability_scores([[1.0, 0.0]] * 4, [0, 1, 0, 1], ["yes", "no"])
    assert scores["ece"] == 0.5 == scores["auc"] and scores["accuracy"] == 50


def test_rows_with_other_choices_have_neither_f1_nor_an_area():
    scores = probability_scores([[0.2, 0.8], [0.1, 0.2, 0.7]], [1, 0], None)
    assert scores["accuracy"] == 50 and scores.keys() == {"accuracy", "brier", "ece", "bins"}
