"""compare: the learning rates that it tries, what it reads of the test rows, and the runs of equal time."""

import json

import pytest
from helpers.models import forbid_model_loading

from prompt_tuning.cli.main import main
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.train import train
from prompt_tuning.studies.compare_runs import best_rate


@pytest.fixture
def study(recipe_file, tmp_path):
    """Return a function that writes a file of several recipes, and returns the words that compare them."""
    recipe = recipe_file(output_dir=None, num_virtual_tokens=None, max_steps=3)

    def write(*flags, **runs):
        path = tmp_path / "methods.yaml"
        path.write_text(f"recipe: {recipe}\nruns:\n" + "".join(f"  {name}: {text}\n" for name, text in runs.items()))
        return ["compare", str(path), "--output_dir", str(tmp_path / "runs"), "--seeds", "1", *flags]

    return write


def test_the_best_rate_on_validation_rows_is_the_only_one_that_reads_the_test_rows(
    study, tmp_path, capsys, monkeypatch
):
    rates_of_lora = "{method: lora, learning_rates: [0.03, 1e-6]}"
    soft = "{num_virtual_tokens: 6, learning_rates: [0.3, 1e39]}"
    command = [*study(lora=rates_of_lora, soft=soft, hard="{method: none}"), "2"]
    assert main(command) == 0
    folder = tmp_path / "runs"
    table = capsys.readouterr().out
    report = json.loads((folder / "compare.json").read_text())
    lora, soft = report["parts"]["lora"], report["parts"]["soft"]
    assert lora["tried"].keys() == {"0.03", "1e-06"} and soft["tried"]["1e+39"] is None
    assert lora["learning_rate"] == float(max(lora["tried"], key=lora["tried"].get)) and soft["learning_rate"] == 0.3
    for name, part in (("lora", lora), ("soft", soft)):
        for rate, score in part["tried"].items():
            run = folder / f"{name}-rate{rate}-seed1"
            assert not (run / "predictions" / "test.jsonl").exists()
            chosen = float(rate) == part["learning_rate"]
            assert [path.parent.name for path in run.rglob("test.jsonl")] == ["predictions"] * chosen
            assert (folder / f"{name}-rate{rate}-seed2").exists() == chosen
            if score is not None:
                results = json.loads((run / "results.json").read_text())
                assert results["split"] == "validation"
                assert results["lora" if name == "lora" else "soft_prompt"]["f1"] == score
    assert "0.3: " in table and "1e+39: diverged" in table and "soft: the smallest rate won" in table
    assert report["parts"]["hard"].keys() >= {"score", "served_by"} and "learning_rate" not in report["parts"]["hard"]

    flags = ["--num_virtual_tokens=6", "--learning_rate=0.3", "--seed=1", f"--output_dir={tmp_path / 'alone'}"]
    alone = json.loads((train(load_recipe(tmp_path / "recipe.yaml", flags)) / "results.json").read_text())
    assert soft["of_seeds"][0] == alone["soft_prompt"]["f1"]

    forbid_model_loading(monkeypatch)  # Every run is finished, except the one that diverged.
    study(lora=rates_of_lora, soft="{num_virtual_tokens: 6, learning_rates: [0.3]}", hard="{method: none}")
    assert main(command) == 2
    assert "the recipes try different numbers of them (lora 2, soft 1)" in capsys.readouterr().err
    study(lora=rates_of_lora, hard="{method: none}")
    assert main(command) == 0
    assert json.loads((folder / "compare.json").read_text())["parts"]["lora"] == lora


def test_rates_that_change_are_chosen_on_validation_rows_and_compared_on_test_rows(study, tmp_path):
    folder = tmp_path / "runs"

    def compared(rates):
        assert main(study(soft=f"{{num_virtual_tokens: 6, learning_rates: {rates}}}")) == 0
        return json.loads((folder / "compare.json").read_text())

    def results(path):
        found = json.loads((folder / path / "results.json").read_text())
        return found["split"], found["rows"], found["soft_prompt"]["f1"]

    assert compared([0.3])["rows"] == 9
    # The score of a run is changed, so that a rate chosen by it is known.
    file = folder / "soft-rate0.3-seed1" / "results.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps(saved | {"soft_prompt": saved["soft_prompt"] | {"f1": 99.0}}))
    report = compared([0.3, 0.1])
    *split, score = results("soft-rate0.3-seed1/compare-validation")
    assert split == ["validation", 6] and report["parts"]["soft"]["tried"]["0.3"] == score != 99
    assert report["rows"] == 9
    assert results("soft-rate0.1-seed1")[:2] == ("validation", 6)
    assert compared([0.1])["rows"] == 9
    assert results("soft-rate0.1-seed1/compare-test")[:2] == ("test", 9)


def test_a_full_model_that_was_chosen_is_evaluated_on_the_test_rows(study, tmp_path):
    assert main(study("--learning_rates", "1e-2", "1e-6", full="{method: full, max_steps: 1}")) == 0
    full = json.loads((tmp_path / "runs" / "compare.json").read_text())["parts"]["full"]
    run = tmp_path / "runs" / f"full-rate{full['learning_rate']}-seed1"
    results = json.loads((run / "compare-test" / "results.json").read_text())
    assert full["of_seeds"][0] == results["hard_prompt"]["f1"] and full["served_by"] == "any engine"
    assert full["adapter_bytes"] == (run / "model.safetensors").stat().st_size


def test_the_others_are_also_trained_for_the_time_of_the_first(study, tmp_path, capsys, monkeypatch):
    command = study(lora="{method: lora}", soft="{num_virtual_tokens: 6}", hard="{method: none}")
    assert main(command) == 0
    folder = tmp_path / "runs"
    for name, seconds in (("lora", 2.0), ("soft", 0.6)):
        file = folder / f"{name}-seed1" / "results.json"
        results = json.loads(file.read_text())
        assert results["seconds_per_step"] > 0
        file.write_text(json.dumps(results | {"seconds_per_step": seconds}))
    capsys.readouterr()
    assert main([*command, "--equal_time"]) == 0
    table = capsys.readouterr().out
    report = json.loads((folder / "compare.json").read_text())
    equal = report["equal_time"]["parts"]
    assert equal["soft"]["steps"] == 10 and report["parts"]["soft"]["steps"] == 3
    assert equal["lora"] == report["parts"]["lora"] and equal["hard"] == report["parts"]["hard"]
    assert {path.name for path in folder.glob("*-steps*")} == {"soft-steps10-seed1"}
    assert "as many steps as fit in the time of lora" in table
    forbid_model_loading(monkeypatch)
    assert main([*command, "--equal_time"]) == 0
    assert json.loads((folder / "compare.json").read_text()) == report
    file = folder / "soft-steps10-seed1" / "results.json"
    results = json.loads(file.read_text())
    file.write_text(json.dumps(results | {"inputs": results["inputs"] | {"train": "of other rows"}}))
    assert main([*command, "--equal_time"]) == 1
    assert f"{file.parent} was run before this changed: {tmp_path / 'train.jsonl'}" in capsys.readouterr().err
    file = folder / "soft-seed1" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds_per_step": 1e-300}))
    assert main([*command, "--equal_time"]) == 1
    assert "a run of lora or soft has no seconds_per_step, or an impossible one. Remove" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "runs", "message"),
    [
        ((), {"soft": "{learning_rates: [0.1, x]}"}, "learning_rates: expected numbers above 0, found ['0.1', 'x']"),
        ((), {"soft": "{learning_rates: 0}"}, "learning_rates: expected numbers above 0, found '0'"),
        (("--learning_rates", "0.1", "0.2", "--learning_rate", "1"), {"soft": "{}"}, "soft: learning_rate has no"),
        ((), {"soft": "{seed: 3}"}, "seed has no effect"),
        ((), {"soft": "{learning_rates: [0.1, 0.2]}", "lora": "{method: lora}"}, "(soft 2, lora 1)"),
        (("--equal_time",), {"hard": "{method: none}", "soft": "{}"}, "equal_time: hard trains nothing"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_a_model_loads(flags, runs, message, study, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    assert main(study(*flags, **runs)) == 2
    assert message in capsys.readouterr().err


def test_a_flag_that_is_not_a_rate_is_refused(study, capsys):
    with pytest.raises(SystemExit):
        main(study("--learning_rates", "0.1", "0", "x", soft="{}"))
    error = capsys.readouterr().err
    assert "--learning_rates: it is 0.0, and must be above 0" in error and "expected a number, found 'x'" in error


def test_rates_need_validation_rows(study, recipe_file, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    recipe_file(output_dir=None, num_virtual_tokens=None, validation_file=None)
    assert main(study(soft="{learning_rates: [0.1, 0.2]}")) == 1
    assert "soft: learning rates are chosen on validation rows" in capsys.readouterr().err


def test_the_best_rate_is_the_first_of_equal_ones_and_the_lowest_error():
    assert best_rate({0.1: 5, 0.2: 7, 0.3: 7, 0.4: None}, "f1") == 0.2
    assert best_rate({0.1: 5, 0.2: 7}, "ter") == 0.1
    assert best_rate({0.1: None}, "f1") is None
