"""sweep: each run equals a run of train, the shared model never changes, and a failed run stops no other."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from helpers.rows import question_rows, write_jsonl
from safetensors.torch import load_file

from prompt_tuning import PromptTuningTrainer
from prompt_tuning.cli.main import main
from prompt_tuning.models.loading import load_base_model, load_config
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.train import train
from prompt_tuning.studies import shared_base as runs
from prompt_tuning.studies.run_lists import read_sweep

METHODS = {
    "soft": {"num_virtual_tokens": 6},
    "prefix": {"method": "prefix_tuning", "num_virtual_tokens": 3},
    "bf16": {"bf16": "true"},
    "lora": {"method": "lora"},
    "checkpointed": {"activation_checkpointing": "true", "num_virtual_tokens": 5},
    "full": {"method": "full", "max_steps": 1},
    "none": {"method": "none"},
    "again": {"num_virtual_tokens": 6},
}


def write_sweep(tmp_path, recipe, settings):
    path = tmp_path / "sweep.yaml"
    lines = [
        f"  {name}: {{{', '.join(f'{key}: {value}' for key, value in changes.items())}}}"
        for name, changes in settings.items()
    ]
    path.write_text(f"recipe: {recipe}\nruns:\n" + "\n".join(lines) + "\n")
    return str(path)


def weights(folder):
    return load_file(folder / ("adapter_model.safetensors" if folder.name != "full" else "model.safetensors"))


@pytest.fixture
def base_models(monkeypatch):
    """Record the base models that sweep reads."""
    models = []

    def load(*args):
        models.append(load_base_model(*args))
        return models[-1]

    monkeypatch.setattr(runs, "load_base_model", load)
    return models


def test_every_run_equals_a_run_of_train_bit_for_bit(recipe_file, tmp_path, base_models, capsys):
    recipe = recipe_file(output_dir=None, max_steps=2, num_virtual_tokens=None)
    swept = tmp_path / "runs"
    assert main(["sweep", write_sweep(tmp_path, recipe, METHODS), "--output_dir", str(swept)]) == 0
    table = capsys.readouterr().out
    assert len(base_models) == 1
    for name, settings in METHODS.items():
        flags = [f"--{key}={value}" for key, value in settings.items()]
        alone = train(load_recipe(recipe, [*flags, f"--output_dir={tmp_path / 'alone' / name}"]))
        assert re.search(rf"(?m)^{name} +f1 ", table)
        files = {file.relative_to(alone) for file in alone.glob("*") if not file.name.startswith("checkpoint")}
        assert files == {
            file.relative_to(swept / name) for file in (swept / name).glob("*") if "checkpoint" not in file.name
        }
        if name != "none":
            of_sweep, of_train = weights(swept / name), weights(alone)
            assert of_sweep.keys() == of_train.keys() and all(
                torch.equal(of_sweep[key], of_train[key]) for key in of_train
            ), name
        predictions = [folder / "predictions" / "test.jsonl" for folder in (swept / name, alone)]
        assert predictions[0].read_text() == predictions[1].read_text()


def test_no_run_changes_the_shared_base_model(recipe_file, tmp_path, base_models, monkeypatch):
    """Compare adapters, hooks, attention and modes; a run's copy of the model has the same memory for its weights."""
    copies = []
    shared = runs.sharing_weights
    monkeypatch.setattr(runs, "sharing_weights", lambda model: copies.append(shared(model)) or copies[-1])
    settings = {
        name: method_settings for name, method_settings in METHODS.items() if name not in ("full", "none", "again")
    }
    sweep = write_sweep(tmp_path, recipe_file(output_dir=None, max_steps=1, num_virtual_tokens=None), settings)
    assert main(["sweep", sweep, "--output_dir", str(tmp_path / "runs")]) == 0
    (base,) = base_models
    model = load_recipe(recipe_file()).model
    fresh = load_base_model(model, load_config(model))
    assert [name for name, _ in base.named_modules()] == [name for name, _ in fresh.named_modules()]
    assert [type(module) for module in base.modules()] == [type(module) for module in fresh.modules()]
    for module in base.modules():
        assert not any(value for name, value in vars(module).items() if name.endswith("_hooks"))
    assert base.config.to_dict() == fresh.config.to_dict() and base.training == fresh.training
    assert base.config._attn_implementation == fresh.config._attn_implementation
    for (name, tensor), (_, expected) in zip(base.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(tensor, expected) and not tensor.requires_grad and tensor.grad is None, name
    pointers = {tensor.data_ptr() for tensor in base.parameters()}
    assert len(copies) == len(settings) and all(
        pointers <= {t.data_ptr() for t in copy.parameters()} for copy in copies
    )


def test_runs_under_zero3_which_splits_weights_share_no_model(recipe_file, monkeypatch):
    recipe = load_recipe(recipe_file())
    monkeypatch.setattr(runs, "train", lambda recipe, **settings: settings)
    assert "base" in runs.SharedBaseModel().train(recipe)
    recipe.training.deepspeed_plugin = SimpleNamespace(zero_stage=3, deepspeed_config={})
    assert "base" not in runs.SharedBaseModel().train(recipe)


def test_a_failed_run_is_reported_and_only_that_run_is_run_again(recipe_file, tmp_path, capsys, monkeypatch):
    sweep = write_sweep(
        tmp_path, recipe_file(output_dir=None), {"one": {}, "two": {"learning_rate": 0.1}, "three": {"seed": 7}}
    )
    command = ["sweep", sweep, "--max_steps", "2", "--save_steps", "1", "--output_dir", str(tmp_path / "runs")]
    trained = []

    def fails_in_two(recipe, **settings):
        trained.append(recipe.training.output_dir.rsplit("/")[-1])
        if trained == ["one", "two"]:
            monkeypatch.setattr(PromptTuningTrainer, "log", broken_after_a_checkpoint)
        try:
            return train(recipe, **settings)
        finally:
            monkeypatch.setattr(PromptTuningTrainer, "log", log)

    log = PromptTuningTrainer.log

    def broken_after_a_checkpoint(trainer, *args, **kwargs):
        raise ZeroDivisionError("made up")

    monkeypatch.setattr(runs, "train", fails_in_two)
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert trained == ["one", "two", "three"]
    assert re.search(r"(?m)^two +failed: ZeroDivisionError: made up$", out)
    assert re.search(r"(?m)^three +f1 ", out)
    assert "== run 1 of 3: one" in err and "== run 2 of 3: two" in err
    assert "two: made up" in err and "Traceback" in err
    assert "error" in json.loads((tmp_path / "runs" / "sweep.json").read_text())["two"]
    assert (tmp_path / "runs" / "two" / "checkpoint-1").is_dir()

    assert main(command) == 0
    assert trained == ["one", "two", "three", "two"]
    alone = train(
        load_recipe(recipe_file(output_dir=tmp_path / "alone", max_steps=2, learning_rate=0.1)),
        evaluate_hard_prompt=False,
    )
    assert torch.equal(weights(tmp_path / "runs" / "two")["prompt_embeddings"], weights(alone)["prompt_embeddings"])
    assert main([*command, "--seed", "9"]) == 2
    errors = capsys.readouterr().err
    assert "run one: " in errors and "was run with other settings (seed)" in errors
    recipe_file(output_dir=None)
    write_jsonl(tmp_path / "test.jsonl", question_rows(4))
    assert main(command) == 1
    errors = capsys.readouterr().err
    assert "run one: " in errors and "was run before this changed: " in errors


def test_several_processes_end_at_the_first_failed_run(recipe_file, tmp_path, base_models, monkeypatch):
    (tmp_path / "sweep.yaml").write_text(f"recipe: {recipe_file(output_dir=None)}\nruns: {{one: {{}}, two: {{}}}}\n")

    def fails(*args, **settings):
        raise ZeroDivisionError("made up")

    monkeypatch.setattr(runs, "train", fails)
    monkeypatch.setattr("prompt_tuning.studies.sweep.PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ZeroDivisionError):
        main(["sweep", str(tmp_path / "sweep.yaml"), "--output_dir", str(tmp_path / "runs")])


def test_all_errors_of_all_runs_are_raised_before_a_model_loads(recipe_file, tmp_path, capsys, base_models):
    write_jsonl(tmp_path / "bad.jsonl", [{"context": "c", "question": None, "answers": {"text": ["a"]}}])
    settings = {
        "good": {},
        "rows": {"train_file": tmp_path / "bad.jsonl"},
        "splits": {"method": "none", "eval_strategy": "no"},
        "machine": {"report_to": "wandb"},
    }
    recipe = recipe_file(output_dir=None)
    assert main(["sweep", write_sweep(tmp_path, recipe, settings), "--output_dir", str(tmp_path / "runs")]) == 1
    err = capsys.readouterr().err
    assert "run rows: " in err and "bad.jsonl, line 1: " in err and "run machine: " in err
    settings |= {"key": {"num_virtual_token": 3}, "file": {"train_file": "gone.jsonl"}}
    assert main(["sweep", write_sweep(tmp_path, recipe, settings), "--output_dir", str(tmp_path / "runs")]) == 2
    err = capsys.readouterr().err
    assert "run key: command line: unknown setting num_virtual_token. Did you mean num_virtual_tokens?" in err
    assert "run file: " in err and "gone.jsonl: no such file" in err
    assert not base_models and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs: {a: {}}", "run a: it has no recipe"),
        ("recipe: [r.yaml]\nruns: {a: {}}", "run a: it has no recipe"),
        ("recipe: r.yaml\nruns: {}", "expected `runs: {name: {setting: value}}`"),
        ("recipe: r.yaml\nruns: {'': {}}", "its folder has its name"),
        ("recipe: r.yaml\nruns: [a]", "expected `runs: {name: {setting: value}}`"),
        ("recipe: r.yaml\nrun: {}", "unknown key run; a sweep has recipe and runs"),
        ("recipe: r.yaml\nruns: {a/b: {}}", "run a/b: its folder has its name"),
        ("recipe: r.yaml\nruns: {a: {output_dir: x}}", "run a: the sweep sets output_dir"),
        ("recipe: r.yaml\nruns:\n  a: {}\n  a: {seed: 1}", "line 4: a was set on line 3 already"),
    ],
)
def test_a_file_that_is_not_a_sweep_is_refused(text, message, tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(text + "\n")
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_a_run_takes_back_settings_of_its_recipe_by_null(tmp_path):
    (tmp_path / "sweep.yaml").write_text("recipe: r.yaml\nruns: {a: {method: lora, init: null, init_text: ~}}\n")
    assert read_sweep(tmp_path / "sweep.yaml")["a"].flags == ["--method=lora", "--init=null", "--init_text=null"]
