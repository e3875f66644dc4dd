"""sweep --backend optuna: trials of Trainer's search, the recipe of the best one, and how a search resumes."""

import json
import logging
import math
import re

import pytest
import yaml
from helpers import forked
from helpers.models import forbid_model_loading

from prompt_tuning.cli.main import main
from prompt_tuning.training.trainer import PromptTuningTrainer

pytest.importorskip("optuna", reason="optuna is not installed: pip install optuna")
RANGES = "  learning_rate: {low: 1e-3, high: 0.5, log: true}\n  weight_decay: [0, 0.1]\n"


@pytest.fixture
def command(recipe_file, tmp_path):
    """Return a function that writes a search, and returns the words of its command."""

    def write(ranges=RANGES, trials=2, **settings):
        recipe = recipe_file(output_dir=None, max_steps=2, save_strategy="no", **settings)
        (tmp_path / "ranges.yaml").write_text(f"recipe: {recipe}\nranges:\n{ranges}")
        words = ["sweep", str(tmp_path / "ranges.yaml"), "--backend", "optuna", "--n_trials", str(trials)]
        return [*words, "--output_dir", str(tmp_path / "search")]

    return write


def read(folder, name="search.json"):
    return json.loads((folder / name).read_text())


def test_the_recipe_of_the_best_trial_trains_what_the_trial_trained(command, tmp_path, capsys):
    assert main(command()) == 0
    facts = read(tmp_path / "search")
    assert [trial["state"] for trial in facts["trials"]] == ["COMPLETE"] * 2
    assert facts["best"]["value"] == min(trial["value"] for trial in facts["trials"])
    assert len({trial["settings"]["learning_rate"] for trial in facts["trials"]}) == 2
    best = tmp_path / "search" / "best.yaml"
    assert f"written: {best}" in capsys.readouterr().out
    assert yaml.safe_load(best.read_text())["learning_rate"] == facts["best"]["settings"]["learning_rate"]
    assert main(["train", str(best), "--eval_strategy", "steps", "--eval_steps", "2"]) == 0
    history = read(tmp_path / "search" / "best", "log_history.json")
    (loss,) = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert loss == pytest.approx(facts["best"]["value"], abs=1e-6)


def test_a_stopped_search_runs_only_the_trials_that_are_missing(command, tmp_path, monkeypatch, capsys):
    steps = []
    step = PromptTuningTrainer.training_step

    def stopping(*args, **kwargs):
        steps.append(len(steps))
        if len(steps) == 4:  # In the second step of the second trial.
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(PromptTuningTrainer, "training_step", stopping)
    assert main(command()) == 130
    assert main(command()) == 0
    assert len(steps) == 6
    states = [trial["state"] for trial in read(tmp_path / "search")["trials"]]
    assert states.count("COMPLETE") == 2
    assert main(command()) == 0 and len(steps) == 6
    assert main([*command(), "--seed", "9"]) == 2
    assert "holds a search with other settings or rows (seed). Name another --output_dir." in capsys.readouterr().err


def test_a_trial_that_diverges_has_no_value_and_the_others_run(command, tmp_path, monkeypatch, capsys, caplog):
    losses = []
    compute_loss = PromptTuningTrainer.compute_loss

    def diverge(self, model, *args, **kwargs):
        losses.append(model.training)
        return compute_loss(self, model, *args, **kwargs) * (float("nan") if len(losses) == 1 else 1)

    monkeypatch.setattr(PromptTuningTrainer, "compute_loss", diverge)
    # optuna keeps its records from the root logger, and pytest 9.0 reads no other.
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    assert main(command()) == 0
    failed, complete = read(tmp_path / "search")["trials"]
    assert (failed["state"], failed["value"], complete["state"]) == ("FAIL", None, "COMPLETE")
    assert re.search(r"(?m)^0 +fail ", capsys.readouterr().out)
    assert "TrainingError('step 1: the loss is nan" in caplog.text and "Traceback" not in caplog.text


def test_the_best_of_equal_trials_is_called_the_first(command, tmp_path):
    assert main(command("  weight_decay: [0, 0.1]\n", learning_rate=0)) == 0
    best = (tmp_path / "search" / "best.yaml").read_text()
    assert best.startswith("# The first of 2 equally good ones of 2 trials by eval_loss on the validation rows.\n")


def test_a_search_whose_trials_all_diverge_leaves_nothing(command, tmp_path, monkeypatch, capsys):
    compute_loss = PromptTuningTrainer.compute_loss
    monkeypatch.setattr(PromptTuningTrainer, "compute_loss", lambda *args, **kwargs: compute_loss(*args) * math.nan)
    assert main(command(trials=1)) == 1
    assert "no trial could be trained. Lower the learning rates of the ranges." in capsys.readouterr().err
    assert not (tmp_path / "search").exists()


def test_two_processes_search_the_trials_of_one(command, tmp_path):
    words = command(trials=1, per_device_train_batch_size=None)[:-1]
    assert main([*words, str(tmp_path / "one"), "--per_device_train_batch_size", "4"]) == 0
    outcomes = forked.run_in_two("prompt_tuning", *words, tmp_path / "two", "--per_device_train_batch_size", "2")
    assert [done.returncode for done in outcomes] == [0, 0], outcomes[0].stderr[-3000:]
    one, two = (read(tmp_path / name)["best"] for name in ("one", "two"))
    assert one | {"value": pytest.approx(one["value"], abs=1e-5)} == two


@pytest.mark.parametrize(
    ("ranges", "settings", "message"),
    [
        ("  num_virtual_tokens: [2, 4]\n", {}, "ranges: num_virtual_tokens: a trial cannot change it. It can change "),
        (
            "  learning_rate: {low: 1, high: -1}\n",
            {},
            "ranges: learning_rate: learning_rate is -1.0; it must be at least 0",
        ),
        ("  learning_rate: {low: 1, high: 0.5}\n", {}, "low is below high"),
        ("  learning_rate: 0.1\n", {}, "ranges: learning_rate: found '0.1'. Write it as {low: NUMBER, high: NUMBER}"),
        (RANGES, {"method": "none", "num_virtual_tokens": None}, "a search does not train method none"),
        (RANGES, {"validation_file": None}, "trials are judged by validation rows"),
    ],
)
def test_a_search_that_cannot_run_is_refused_before_a_model_loads(
    ranges, settings, message, command, monkeypatch, capsys
):
    forbid_model_loading(monkeypatch)
    assert main(command(ranges, **settings)) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["nope\n", "[]\n", '{"op_code": 99}\n', "[" * 10**5 + "\n"])
def test_a_damaged_journal_or_a_link_is_refused_before_a_model_loads(content, command, tmp_path, monkeypatch, capsys):
    forbid_model_loading(monkeypatch)
    journal = tmp_path / "search" / "optuna.jsonl"
    journal.parent.mkdir()
    journal.write_text(content)
    assert main(command()) == 1 and f"{journal}: not a journal of optuna" in capsys.readouterr().err
    journal.rename(tmp_path / "mine")
    journal.symlink_to(tmp_path / "mine")
    assert main(command()) == 1 and "out of the run's folder" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == content


def test_ranges_and_trials_without_a_backend_are_refused(command, capsys):
    words = command()
    without = [word for word in words if word not in ("--backend", "optuna", "--n_trials", "2")]
    assert main(without) == 2 and "Search ranges with --backend optuna." in capsys.readouterr().err
    assert main([*without, "--n_trials", "2"]) == 2 and "Add --backend optuna" in capsys.readouterr().err
