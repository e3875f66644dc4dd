"""Intervals hold their mean, and tests find a difference where there is one and none in noise."""

import json
import random

import numpy as np
import pytest

from prompt_tuning.metrics.loading import load_metrics
from prompt_tuning.metrics.significance import (
    CORPUS_METRICS,
    corpus_difference,
    corpus_significance,
    difference,
    in_words,
    interval,
    row_scores,
)


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


ENGLISH = [
    "the",
    "a",
    "ferry",
    "left",
    "harbour",
    "before",
    "fog",
    "trees",
    "bridge",
    "two",
    "weeks",
    ",",
    ".",
    "1,250",
]
CHINESE = [*"渡船在大雾散去之前离开了港口邻居家的蜜蜂", "GPU", "１９８７", "。"]


def systems_and_references(case, words):
    """Return the predictions of two systems and references, some with several texts, of the case's kind."""
    rng = random.Random(len(case))
    separator = " " if words is ENGLISH else ""

    def text():
        return separator.join(rng.choices(words, k=rng.randrange(4, 12)))

    rows = {"one row": 1, "two rows": 2}.get(case, 24)
    references = [
        [text() for _ in range(rng.choice((1, 3)) if case == "several references" else 1)] for _ in range(rows)
    ]
    first = [texts[-1] if rng.random() < 0.4 else text() for texts in references]
    second = [texts[0] if rng.random() < 0.5 else text() for texts in references]
    if case == "equal rows":
        first, second, references = [first[0]] * rows, [second[0]] * rows, [references[0]] * rows
    if case == "empty predictions":
        first = [""] * rows
    if case == "one good row":
        first, second = ["x"] * rows, ["x"] * (rows - 1) + references[-1]
    return {"first": first, "second": second}, references


CASES = ["rows", "several references", "one row", "two rows", "equal rows", "empty predictions", "one good row"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("language", [None, "zh"])
@pytest.mark.parametrize(("module", "metric"), [("sacrebleu", "bleu"), ("chrf", "chrf"), ("ter", "ter")])
def test_the_interval_of_a_corpus_metric_belongs_to_its_score_and_contains_it(module, metric, language, case):
    systems, references = systems_and_references(case, CHINESE if language else ENGLISH)
    score = load_metrics([module], language=language)
    report = json.loads(json.dumps(corpus_significance(metric, systems, references, language)))
    for name, predictions in systems.items():
        assert report[name]["score"] == pytest.approx(score(predictions, references)[metric], abs=1e-9)
        assert report[name]["low"] <= report[name]["score"] <= report[name]["high"]


@pytest.mark.parametrize(("module", "metric"), [("sacrebleu", "bleu"), ("chrf", "chrf"), ("ter", "ter")])
def test_the_difference_of_a_corpus_metric_is_that_of_the_scores_within_a_paired_interval(module, metric):
    systems, references = systems_and_references("rows", ENGLISH)
    first, second = systems.values()
    score = load_metrics([module])
    scores = [score(predictions, references)[metric] for predictions in (first, second)]
    gained = corpus_difference(metric, [second], [first], references)
    assert gained["difference"] == pytest.approx(scores[1] - scores[0], abs=1e-4)
    assert gained["low"] < gained["difference"] < gained["high"]
    assert corpus_difference(metric, [first], [first], references) == {"difference": 0, "low": 0, "high": 0}
    # The draws are paired: one row changes the score little, whatever rows are drawn.
    near = [*first[:-1], references[-1][0]]
    changed = corpus_difference(metric, [near], [first], references)
    assert changed["high"] - changed["low"] < (gained["high"] - gained["low"]) / 2
    # Seeds that differ widen the interval. A baseline of one seed is that of every seed.
    seeds = corpus_difference(metric, [first, second], [first], references)
    assert seeds["difference"] == pytest.approx(gained["difference"] / 2)
    assert seeds["high"] - seeds["low"] > (gained["high"] - gained["low"]) / 2


@pytest.mark.parametrize(
    ("metric", "low", "high", "words"),
    [
        ("f1", 0.1, 5, "ahead"), ("f1", 0, 5, "level"), ("f1", -0.9, -0.1, "level"), ("f1", -1, 1, "not shown"),
        ("f1", -5, -0.1, "behind"), ("ter", -5, -0.1, "ahead"), ("ter", 0.1, 5, "behind"),
    ],
)  # fmt: skip
def test_a_difference_is_said_in_words(metric, low, high, words):
    assert in_words(metric, low, high) == words


def test_every_corpus_metric_has_a_test():
    systems, references = systems_and_references("rows", ENGLISH)
    for name in ("sacrebleu", "chrf", "ter", "rouge", "squad", "squad_v1", "squad_v2", "exact_match", "mlqa"):
        score = load_metrics([name], language="en")
        for metric, value in score(systems["first"], references).items():
            if not isinstance(value, str) and row_scores(score, metric, systems["first"], references) is None:
                assert metric in CORPUS_METRICS


@pytest.mark.parametrize("case", ["several references", "one row", "equal rows", "empty predictions"])
@pytest.mark.parametrize("name", ["rouge", "squad", "squad_v1", "squad_v2", "mlqa", "exact_match"])
def test_intervals_of_a_mean_and_of_a_difference_contain_them(name, case):
    systems, references = systems_and_references(case, ENGLISH)
    score = load_metrics([name], language="en")
    for metric in score(systems["first"], references):
        first, second = (row_scores(score, metric, texts, references)[None] for texts in systems.values())
        for scores in (first, second):
            low, high = interval(scores)
            assert low <= scores.mean() <= high
        compared = difference(second, first)
        assert compared["low"] <= compared["difference"] <= compared["high"] and 0 < compared["p"] <= 1


def test_the_interval_of_several_seeds_contains_their_mean():
    thirds = np.array([[200 / 3] * 7, [100 / 3] * 7])
    for scores in (thirds, thirds[:1]):
        low, high = interval(scores)
        assert low <= scores.mean() <= high
