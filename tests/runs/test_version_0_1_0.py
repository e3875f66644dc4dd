"""Check that runs, adapters, recipes and checkpoints of version 0.1.0 (tests/fixtures/v0.1.0) work as before."""

import json
import shutil

import pytest
import torch
from helpers.paths import ROOT
from safetensors.torch import load_file

from prompt_tuning.cli.main import main

FIXTURES = ROOT / "tests" / "fixtures" / "v0.1.0"
RUNS = (
    "prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "lora", "demonstrations", "t5_prefix",
    "multitask/rivers", "multitask/ferries",
)  # fmt: skip


@pytest.fixture
def old(tmp_path, monkeypatch):
    """Copy what 0.1.0 wrote and make the copy the working directory."""
    shutil.copytree(FIXTURES, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("name", RUNS)
def test_saved_runs_predict_what_they_predicted(name, old):
    run = old / "runs" / name
    rows = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text("utf-8").splitlines()]
    assert main(["predict", "--adapter", f"runs/{name}", "--input", "test.jsonl", "--output", "out.jsonl"]) == 0
    predicted = [json.loads(line)["prediction"] for line in (old / "out.jsonl").read_text("utf-8").splitlines()]
    assert predicted == [row["lora" if name == "lora" else "soft_prompt"] for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_saved_runs_are_shown_and_reported(name, old, capsys):
    results = json.loads((old / "runs" / name / "results.json").read_text("utf-8"))
    assert main(["show", f"runs/{name}"]) == main(["report", f"runs/{name}"]) == main(["card", f"runs/{name}"]) == 0
    tuned = results["lora" if name == "lora" else "soft_prompt"]
    assert f"{tuned['f1']:.1f}" in capsys.readouterr().out
    assert "report.html" in {path.name for path in (old / "runs" / name).iterdir()}


@pytest.mark.parametrize("method", ("prompt_tuning", "p_tuning"))
def test_a_training_that_0_1_0_stopped_resumes_to_the_same_prompt(method, old):
    flags = ["--output_dir", f"runs/stopped_{method}", "--resume_from_checkpoint", "true"]
    assert main(["train", f"recipes/stopped_{method}.yaml", *flags]) == 0
    resumed = load_file(old / f"runs/stopped_{method}/adapter_model.safetensors")
    expected = load_file(old / f"expected_stopped_{method}.safetensors")
    assert resumed.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_training_of_0_1_0_that_stops_twice_in_an_epoch_resumes_to_the_same_prompt(old):
    train = ["train", "recipes/stopped_prompt_tuning.yaml", "--output_dir", "runs/stopped_prompt_tuning"]
    train += ["--save_total_limit", "9", "--save_steps", "1", "--resume_from_checkpoint"]
    run = old / "runs" / "stopped_prompt_tuning"
    assert main([*train, "true"]) == 0
    # An epoch has 6 steps, and 0.1.0 stopped after step 8.
    assert [number for number in range(9, 13) if (run / f"checkpoint-{number}" / "order.pt").exists()] == [9, 10, 11]
    resumed = load_file(run / "adapter_model.safetensors")
    assert main([*train, str(run / "checkpoint-9")]) == 0
    again = load_file(run / "adapter_model.safetensors")
    assert all(torch.equal(resumed[name], again[name]) for name in resumed)


def test_a_saved_prompt_is_trained_further(old):
    flags = ["--adapter", "runs/prompt_tuning", "--output_dir", "runs/longer", "--max_steps", "2"]
    assert main(["train", "recipes/prompt_tuning.yaml", *flags, "--learning_rate", "0"]) == 0
    before, after = (
        load_file(old / "runs" / name / "adapter_model.safetensors") for name in ("prompt_tuning", "longer")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_recipe_of_0_1_0_passes_check(old):
    recipes = [str(path) for path in sorted((old / "recipes").glob("*.yaml"))]
    assert len(recipes) == 12
    assert main(["check", *recipes]) == 0


def test_a_recipe_that_lacks_a_setting_of_its_card_is_named(old, capsys):
    recipe = old / "runs" / "prompt_tuning" / "recipe.yaml"
    recipe.write_text(recipe.read_text("utf-8").replace("loss: cross_entropy", "loss: kl"), encoding="utf-8")
    assert main(["card", "runs/prompt_tuning"]) == 1
    assert "teacher_template" in capsys.readouterr().err


def test_a_setting_that_this_version_does_not_know_is_in_the_card(old):
    recipe = old / "runs" / "prompt_tuning" / "recipe.yaml"
    recipe.write_text(recipe.read_text("utf-8") + "setting_of_another_version: 7\n", encoding="utf-8")
    assert main(["card", "runs/prompt_tuning"]) == 0
    assert "setting_of_another_version" in (old / "runs" / "prompt_tuning" / "README.md").read_text("utf-8")
