"""What a run lost is in results.json, the report and the summary, each count apart."""

import json

from helpers.rows import question_rows, write_jsonl

from prompt_tuning.cli.main import main
from prompt_tuning.encoding.decoding import decode_to_limit
from prompt_tuning.reports.losses import losses_text, prediction_counts


def test_predictions_are_counted_by_what_ended_them(tokenizer):
    character = tokenizer("Turin 学").input_ids
    rows = [character[:-1], character, [*character[:-1], 1], [1], [*tokenizer("Turin\n").input_ids, 7], []]
    texts, limited = decode_to_limit(rows, tokenizer, ("\n",))
    assert limited == [True, True, False, False, False, False]
    assert prediction_counts(texts, limited) == {"at_limit": 2, "within_character": 1, "empty": 2}


def test_a_run_counts_what_it_lost_and_shows_it(recipe_file, tmp_path, capsys):
    long = "a very long answer that goes on and on"
    train, test = question_rows(24), question_rows(9, 5)
    train[1]["answers"]["text"] = [long]
    train[2]["question"] = long * 9
    for row in test[:2]:
        row["answers"]["text"] = [long]
    test[2]["answers"]["text"] = ["Oslo\nLima"]
    recipe = recipe_file(max_source_tokens=26, drop_overlong="true", max_steps=1)
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "test.jsonl", test)
    assert main(["train", str(recipe)]) == 0
    shown = capsys.readouterr()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    kept = {"dropped_rows": 2, "dropped_targets": 1, "unreachable_targets": 0}
    assert results["splits"]["train"].items() >= kept.items()
    size = results["splits"]["test"]
    assert (size["unreachable_targets"], size["long_references"], size["dropped_rows"]) == (1, 2, 0)
    assert size["cut_rows"] > 2 and size["cut_answers"] > 0
    counts = results["prediction_counts"]
    assert counts.keys() == {"soft_prompt", "hard_prompt"}
    predictions = (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    empty = sum(not json.loads(line)["soft_prompt"] for line in predictions)
    assert counts["soft_prompt"]["empty"] == empty and counts["soft_prompt"]["at_limit"] > 0
    lines = losses_text(results)
    assert "2 rows of train were left out as too long, 1 of them for their target" in lines
    assert "1 row of test has a target that no prediction can be" in lines
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(line in shown.out and line in page for line in lines)
    output = tmp_path / "out.jsonl"
    flags = ["--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "test.jsonl"), "--output", str(output)]
    assert main(["predict", *flags]) == 0
    at_limit = counts["soft_prompt"]["at_limit"]
    assert f"{at_limit} of 9 predictions are at the limit of new tokens" in capsys.readouterr().err


def test_a_run_that_counted_nothing_shows_no_line():
    size = {"rows": 9, "cut_rows": 3, "longest": 40}
    assert losses_text({"split": "test", "splits": {"test": size}}) is None
    assert losses_text({"split": "test"}) is None
    counted = size | {"dropped_rows": 0, "dropped_targets": 0, "cut_answers": 0, "unreachable_targets": 0}
    assert losses_text({"split": "test", "splits": {"test": counted}}) == []
