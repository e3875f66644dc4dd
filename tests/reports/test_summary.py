"""The summary of a run on a terminal: its interval in words, its best checkpoint, advice, and the rows it shows."""

import json

import pytest
from helpers.made_runs import make_run

from prompt_tuning.cli.main import main
from prompt_tuning.reports.advice import advice, is_small
from prompt_tuning.reports.summary import best_checkpoint_text, significance_text, summarize

TRAINED = {
    "method": "prompt_tuning", "train_steps": 40, "train_rows": 400, "train_seconds": 3, "trainable_parameters": 99,
    "total_parameters": 1000, "evaluation_seconds": 2, "cut_rows": 0,
}  # fmt: skip


def scored(hard, soft):
    """Return the scores of a row by system."""
    scores = {"hard_prompt": hard, "soft_prompt": soft}
    return {"scores": {name: {"f1": value, "exact_match": value} for name, value in scores.items()}}


def compared(difference, low, high, p=0.01):
    return {"difference": difference, "low": low, "high": high, "p": p}


def test_one_mended_one_typical_and_one_wrong_row_are_shown_with_their_labels(tmp_path):
    changes = {number: scored(0.0 if number % 2 else 100.0, 0.0 if number == 4 else 100.0) for number in range(12)}
    text = summarize(make_run(tmp_path / "run", changes=changes))
    assert "rows by f1: 6 better, 1 worse, 5 the same" in text
    headings = [line for line in text.splitlines() if line.startswith("row ")]
    assert headings == [
        "row 1, mended: f1 0.0 becomes 100.0",
        "row 6, typical: f1 100.0, the median",
        "row 4, still wrong: f1 0.0",
    ]
    for count in (0, 1, 5, 12, 20):
        shown = summarize(make_run(tmp_path / "run", changes=changes), count)
        rows = [line.split(",")[0] for line in shown.splitlines() if line.startswith("row ")]
        assert len(rows) == len({*rows}) == min(count, 12)


def test_a_run_that_mends_nothing_has_no_mended_row_and_equal_rows_are_not_wrong(tmp_path):
    same = {number: scored(50.0, 50.0) for number in range(12)}
    text = summarize(make_run(tmp_path / "run", changes=same), 2)
    assert ", typical: f1 50.0, the median" in text and "mended" not in text and "wrong" not in text
    text = summarize(make_run(tmp_path / "older"))  # Runs of older versions have no scores of rows.
    assert [line for line in text.splitlines() if line.startswith("row ")] == ["row 0", "row 4", "row 8"]


def test_the_interval_is_in_the_table_and_in_words(tmp_path):
    comparison = {"f1": compared(20.0, 3.0, 41.5), "exact_match": compared(5.0, -9.0, 12.0, 0.4)}
    text = summarize(make_run(tmp_path / "run", results={"comparison": comparison}))
    assert "95 % interval" in text and "+3.0 to +41.5" in text and "-9.0 to +12.0" in text
    assert "difference in f1: significantly better (95 % interval +3.0 to +41.5" in text
    assert significance_text("f1", compared(1.0, -2.0, 3.0)).startswith("not significant (")
    assert significance_text("f1", compared(9.0, 1.0, 12.0, p=0.25)).startswith("not significant (")  # of few rows
    assert significance_text("f1", compared(-9.0, -12.0, -1.0)).startswith("significantly worse (")
    assert significance_text("ter", compared(-9.0, -12.0, -1.0)).startswith("significantly better (")
    assert not is_small("ter", compared(-9.0, -12.0, -1.0)) and is_small("f1", compared(1.0, 0.5, 1.5))


def test_the_saved_checkpoint_has_its_reason():
    results = {"best_checkpoint": "checkpoint-20", "best_metric": {"f1": 61.25}, "train_steps": 40}
    log = [{"eval_f1": 61.25, "step": 20}, {"eval_f1": 55.0, "step": 40}]
    assert best_checkpoint_text(results, "f1", log) == (
        "saved: step 20 of 40, which has the best validation f1, 61.25; step 40, the last, has 55"
    )
    assert best_checkpoint_text(results | {"best_metric": {}}, "f1", log) == "saved: step 20 of 40"
    last = best_checkpoint_text({"train_steps": 40}, "f1", log)
    assert last.startswith(
        "saved: the last step, 40; validation f1 was best at step 20, 61.25. load_best_model_at_end"
    )
    assert best_checkpoint_text({"train_steps": 40}, "f1", []) == "saved: the last step, 40"


@pytest.mark.parametrize(
    ("log", "changes", "tip"),
    [
        ([("loss", 2.0, 3.0, 4.0)], {}, "rate: the training loss rose from 2 to 4. Lower learning_rate 0.3"),
        ([("loss", 2.0, 2.0, 1.99)], {}, "rate: the training loss stayed at 1.99. Raise learning_rate 0.3"),
        ([("loss", 2.0, 1.5, 1.2)], {}, "budget: the training loss still fell, from 1.5 at step 20 to 1.2."),
        ([("loss", 2.0, 1.5, 1.2), ("eval_loss", 2.0, 1.9, 2.4)], {}, "rows: the validation loss rose from 1.9 at"),
        ([], {"train_rows": 24}, "rows: 24 training rows."),
        ([], {"cut_rows": 5}, "max_source_tokens: 5 of 12 rows were cut to fit it."),
        ([], {"prediction_counts": {"soft_prompt": {"at_limit": 9}}}, "template: 9 of 12 predictions ended only at"),
        ([], {}, "rows to evaluate: 12 rows show no difference of less than about 6.0 points."),
    ],
)
def test_a_small_gain_gives_advice_from_what_the_run_measured(log, changes, tip, tmp_path):
    entries = []
    for name, *values in log:
        entries += [{name: value, "step": 10 * number} for number, value in enumerate(values, 1)]
    facts = TRAINED | {"comparison": {"f1": compared(1.0, -5.0, 7.0, 0.5)}} | changes
    run = make_run(tmp_path / "run", results=facts, learning_rate=0.3)
    (run / "log_history.json").write_text(json.dumps(entries))
    text = " ".join(summarize(run).split())
    assert "the gain is small" in text and f"- {tip}" in text
    tips = advice(json.loads((run / "results.json").read_text()), "f1", {"learning_rate": 0.3}, entries)
    assert tip in tips[0] and tips[-1].startswith("template: `prompt-tuning rank`")


def test_a_large_gain_gives_no_advice(tmp_path):
    run = make_run(tmp_path / "run", results=TRAINED | {"comparison": {"f1": compared(40.0, 30.0, 50.0)}})
    assert "the gain is small" not in summarize(run)


def test_train_compares_with_the_hard_prompt_and_scores_each_row(recipe_file, tmp_path):
    assert main(["train", str(recipe_file()), "--save_strategy", "no", "--learning_rate", "0.3"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    source = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["columns"] == {name: source[row["row"]][name] for name in ("context", "question")}
    for metric, tested in results["comparison"].items():
        means = {}
        for system in ("hard_prompt", "soft_prompt"):
            means[system] = sum(row["scores"][system][metric] for row in rows) / len(rows)
            assert means[system] == pytest.approx(results[system][metric], abs=0.01)
        assert tested["difference"] == pytest.approx(means["soft_prompt"] - means["hard_prompt"], abs=1e-3)
        assert tested["low"] <= tested["difference"] <= tested["high"]
