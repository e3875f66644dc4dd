"""Score the probabilities of choices: accuracy, F1, the area under the ROC curve, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10
"""The number of ranges of confidence of a reliability picture, each as wide as the others (Guo et al. 2017)."""


def probability_scores(
    probabilities: Sequence[Sequence[float]], targets: Sequence[int], choices: Sequence[str] | None
) -> dict[str, Any]:
    """Score the probabilities of the choices of every row.

    Args:
        probabilities: those of each row's choices, which sum to 1.
        targets: the number of the right choice of each row.
        choices: the choices, if all rows have the same ones; else None.

    Returns:
        `accuracy` in percent, `brier`, the mean over a row's choices and then over rows of (p - t)^2 (Brier 1950),
        `ece`, the expected calibration error from 0 to 1 (Guo et al. 2017), and `bins`. If all rows have the same
        choices also `macro_f1` in percent. If these are two and both are right in some row, also `auc` of the first
        one, from 0 to 1.
    """
    taken = np.array(list(map(np.argmax, probabilities)))
    right = np.array(targets)
    correct = taken == right
    confidence = np.array(list(map(max, probabilities)))
    errors = []
    for row, target in zip(probabilities, targets, strict=True):
        errors.append(np.mean((np.array(row) - np.eye(len(row))[target]) ** 2))
    bins = reliability(confidence, correct)
    gap = 0.0
    for of_bin in bins:
        gap += of_bin["rows"] * abs(of_bin["accuracy"] - of_bin["confidence"])
    scores: dict[str, Any] = {"accuracy": 100 * float(correct.mean()), "brier": float(np.mean(errors))}
    scores |= {"ece": gap / len(right), "bins": bins}
    if choices is None:
        return scores
    by_choice = []
    for number in range(len(choices)):
        by_choice.append(f1(taken == number, right == number))
    scores["macro_f1"] = 100 * float(np.mean(by_choice))
    area = None if len(choices) > 2 else auc(np.array(probabilities)[:, 0], right == 0)
    return scores if area is None else scores | {"auc": area}


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the area under the ROC curve, by ranks (Mann & Whitney 1947).

    It is the share of pairs of a positive and another row in which the positive row has the higher score. Equal scores
    count one half.

    Args:
        scores: `[rows]`.
        positive: `[rows]` of bool.

    Returns:
        None if all rows are positive, or no row is.
    """
    num_positive, num_others = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_others:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = counts.cumsum() - (counts - 1) / 2  # Equal scores share the mean of their ranks.
    wins = mean_ranks[place][positive].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * num_others))


def f1(predicted: np.ndarray, positive: np.ndarray) -> float:
    """Return the F1 of one class, from 0 to 1; 0 if no row has it and none is predicted to."""
    total = int(predicted.sum() + positive.sum())
    return 2 * int((predicted & positive).sum()) / total if total else 0.0


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Return for each range of confidence that has rows their number, mean confidence and accuracy, all from 0 to 1.

    Args:
        confidence: `[rows]`, the probability of the choice that was taken.
        correct: `[rows]` of bool.
    """
    numbers = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for number in np.unique(numbers):
        rows = numbers == number
        sure, right = round(float(confidence[rows].mean()), 6), round(float(correct[rows].mean()), 6)
        bins.append({"rows": int(rows.sum()), "confidence": sure, "accuracy": right})
    return bins
