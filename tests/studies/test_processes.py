"""rank, evaluate, sweep and compare in two processes: each has a share, and the tables are those of one process."""

import json

import pytest
from helpers import forked
from helpers.models import forbid_model_loading

from prompt_tuning.cli.main import main


def in_two(module, *words):
    outcomes = forked.run_in_two(module, *words)
    assert [done.returncode for done in outcomes] == [0, 0], outcomes[0].stderr[-3000:] + outcomes[1].stderr[-3000:]
    assert outcomes[0].stdout and not outcomes[1].stdout  # The first process prints.


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_two_processes_rank_a_share_of_the_rows_each(recipe_file, tmp_path):
    recipe = recipe_file(num_virtual_tokens=None, method="none")
    templates = ["--templates", "question_answering/plain", "question_answering/question_first"]
    words = [recipe, *templates, "--finalists", "1", "--output_dir"]
    assert main(["rank", *map(str, words), str(tmp_path / "one")]) == 0
    in_two("helpers.counted_ranking", tmp_path, *words, tmp_path / "two")
    one, two = (lines(tmp_path / name / "likelihoods.jsonl") for name in ("one", "two"))
    assert [row | {"log_likelihood": pytest.approx(row["log_likelihood"], abs=1e-4)} for row in one] == two
    assert [int((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1)] == [len(one) // 2, len(one) // 2]
    for name in ("predictions.jsonl", "winner.yaml", "rank.md"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


def test_a_ranking_under_fsdp_is_refused(recipe_file, monkeypatch, capsys):
    forbid_model_loading(monkeypatch)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert main(["rank", str(recipe_file())]) == 2
    assert "rank does not run under FSDP. Launch it with recipes/accelerate/ddp.yaml." in capsys.readouterr().err


def test_two_processes_evaluate_the_rows_as_one_does(recipe_file, tmp_path):
    words = ["evaluate", str(recipe_file(num_virtual_tokens=None, method="none")), "--output_dir"]
    assert main([*words, str(tmp_path / "one")]) == 0
    in_two("prompt_tuning", *words, tmp_path / "two")
    one, two = ((tmp_path / name / "predictions" / "test.jsonl").read_text() for name in ("one", "two"))
    assert one == two
    assert read_table(tmp_path / "one" / "results.json") == read_table(tmp_path / "two" / "results.json")


@pytest.mark.parametrize(("command", "runs"), [("sweep", "soft"), ("compare", "hard other")])
def test_two_processes_write_the_table_of_one(command, runs, recipe_file, tmp_path):
    settings = dict(output_dir=None, num_virtual_tokens=None, per_device_train_batch_size=None)
    recipe = recipe_file(max_steps=2, save_strategy="no", **settings)
    source = tmp_path / "runs.yaml"
    settings = {"soft": {"num_virtual_tokens": 6}, "hard": {"method": "none"}}
    settings["other"] = settings["hard"] | {"generation_max_length": 6}
    source.write_text(json.dumps({"recipe": str(recipe), "runs": {name: settings[name] for name in runs.split()}}))
    words = [command, str(source), "--per_device_train_batch_size"]
    assert main([*words, "4", "--output_dir", str(tmp_path / "one")]) == 0
    in_two("prompt_tuning", *words, "2", "--output_dir", tmp_path / "two")
    one, two = (read_table(tmp_path / name / f"{command}.json") for name in ("one", "two"))
    assert one == two


def read_table(file):
    """Return a table without what a clock measured, and without the number of processes."""

    def without_clock(facts):
        ignored = ("seconds", "memory", "processes", "output_dir")
        return {name: value for name, value in facts.items() if not any(word in name for word in ignored)}

    return json.loads(file.read_text(), object_hook=without_clock)
