"""The command train: what it writes, how it stops and how it resumes."""

import json
import re

import pytest
from helpers.cards import check_card
from helpers.models import forbid_model_loading
from helpers.paths import file_names
from helpers.rows import write_jsonl
from peft import PeftModel
from transformers import AutoModelForCausalLM

from prompt_tuning.cli.main import main
from prompt_tuning.support.files import read_json_lines


def test_train_writes_every_file_of_a_run(run, recipe_file, model_folders, capsys):
    assert file_names(run) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "base_model.json", "checkpoint-2",
        "checkpoint-4", "initial_prompt.safetensors", "log_history.json", "predictions", "recipe.yaml", "report.html",
        "results.json", "template.yaml",
    }  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert results["task"] == "question_answering" and results["split"] == "test" and results["rows"] == 9
    assert set(results["hard_prompt"]) == set(results["soft_prompt"]) == {"f1", "exact_match"}
    assert results["trainable_parameters"] == 6 * 32 and results["train_steps"] == 4 and results["seed"] == 42
    assert set(results["versions"]) == {
        "prompt_tuning", "transformers", "peft", "accelerate", "datasets", "torch",
    }  # fmt: skip
    rows = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(9))
    assert set(rows[0]) == {
        "row", "columns", "source", "references", "source_tokens", "cut_tokens", "hard_prompt", "soft_prompt",
        "scores",
    }  # fmt: skip
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "hard prompt alone" in shown and "with soft prompt" in shown and shown.count("\nrow ") == 3
    assert f"prompt-tuning predict --adapter {run}" in shown and "192 trained parameters, 4 steps" in shown
    card = check_card(run / "README.md")
    assert card.data.library_name == "peft" and card.data.base_model is None  # A local folder has no hub id.
    assert re.search(rf"\| with soft prompt +\| {results['soft_prompt']['exact_match']} +\|", card.text)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folders["llama"]), run)
    modes = {path.stat().st_mode for path in run.rglob("*") if path.is_file()}
    assert modes == {(run / "results.json").stat().st_mode}  # safetensors' own may be read by one user only.


def test_the_saved_recipe_trains_the_same_adapter_again(run, tmp_path):
    assert main(["train", str(run / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]) == 0
    again = (tmp_path / "again" / "adapter_model.safetensors").read_bytes()
    assert again == (run / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "p_tuning"},
        {"method": "prefix_tuning"},
        {"method": "prefix_tuning", "init": "demonstrations", "num_virtual_tokens": None},
        {"method": "prefix_tuning", "prefix_projection": "true"},
        {"method": "cpt", "init_text": "Answer the question.", "num_virtual_tokens": None},
        {"residual": "true", "init": "frequent"},
        {"init": "class_labels", "init_labels": "[Oslo, Lima]", "num_virtual_tokens": None},
        {"method": "lora", "num_virtual_tokens": None},
        {"method": "full", "num_virtual_tokens": None},
    ],
    ids=str,
)
def test_every_method_trains_evaluates_and_predicts_the_same(settings, recipe_file, tmp_path, capsys):
    recipe = recipe_file(**settings)
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--save_strategy", "no"]) == 0
    results = json.loads((run / "results.json").read_text())
    name = settings.get("method") if settings.get("method") in ("lora", "full") else "soft_prompt"
    assert results["trainable_parameters"] > 0 and set(results[name]) == set(results["hard_prompt"])
    assert main(["show", str(run)]) == 0 and "difference" in capsys.readouterr().out
    card = check_card(run / "README.md")
    assert card.data.library_name == ("transformers" if name == "full" else "peft")
    assert {result.metric_value for result in card.data.eval_results} == {*results[name].values()}

    whole = ["--model_name_or_path", str(run)] if name == "full" else ["--adapter", str(run)]
    assert main(["evaluate", str(recipe), *whole, "--output_dir", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["hard_prompt" if name == "full" else name] == results[name]
    rows = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    source, output = str(tmp_path / "test.jsonl"), str(tmp_path / "predicted.jsonl")
    assert main(["predict", "--adapter", str(run), "--input", source, "--output", output]) == 0
    predicted = [json.loads(line)["prediction"] for line in (tmp_path / "predicted.jsonl").read_text().splitlines()]
    assert predicted == [row[name] for row in rows]
    assert main(["check", str(run / "recipe.yaml")]) == 0


def test_training_continues_an_adapter_and_a_prompt_starts_from_another(run, recipe_file, tmp_path, capsys):
    assert main(["train", str(recipe_file(adapter=run, output_dir=tmp_path / "longer", num_virtual_tokens=None))]) == 0
    assert json.loads((tmp_path / "longer" / "adapter_config.json").read_text())["num_virtual_tokens"] == 6
    assert main(["check", str(run / "recipe.yaml"), "--adapter", str(run)]) == 0
    assert main(["check", str(recipe_file(adapter=run, num_virtual_tokens=8))]) == 2
    assert f"adapter {run} has num_virtual_tokens: 6. Set num_virtual_tokens: 6." in capsys.readouterr().err
    transferred = recipe_file(init="adapter", init_adapter=run, num_virtual_tokens=9, output_dir=tmp_path / "spot")
    assert main(["train", str(transferred)]) == 0
    assert json.loads((tmp_path / "spot" / "adapter_config.json").read_text())["num_virtual_tokens"] == 9


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_encoder_decoder_models_train_and_predict(architecture, recipe_file, model_folders, tmp_path, capsys):
    assert main(["train", str(recipe_file(model_name_or_path=model_folders[architecture]))]) == 0
    rows = tmp_path / "test.jsonl"
    capsys.readouterr()
    assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(rows)]) == 0
    predicted = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    saved = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    assert predicted == [row["soft_prompt"] for row in saved]


def test_method_none_evaluates_a_hard_prompt_and_trains_nothing(recipe_file, tmp_path):
    assert main(["train", str(recipe_file(method="none", num_virtual_tokens=None))]) == 0
    assert "soft_prompt" not in json.loads((tmp_path / "run" / "results.json").read_text())
    assert not (tmp_path / "run" / "adapter_config.json").exists()


def test_an_adapter_of_another_method_is_not_continued(recipe_file, tmp_path, capsys, monkeypatch):
    """Refuse it, because LoRA's layers stayed in the base model and changed the hard prompt's score."""
    recipe = str(recipe_file(method="lora", num_virtual_tokens=None, max_steps=1, output_dir=tmp_path / "lora"))
    assert main(["train", recipe]) == 0
    forbid_model_loading(monkeypatch)
    assert main(["train", str(recipe_file(num_virtual_tokens=None)), "--adapter", str(tmp_path / "lora")]) == 2
    assert "lora is of method lora, which is continued as lora; set method: lora" in capsys.readouterr().err


def test_the_last_step_is_saved_unless_the_best_is_loaded(recipe_file, tmp_path):
    """Save it although Trainer notes a best checkpoint as soon as a metric is named."""
    flags = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.3, "max_steps": 3}
    flags |= {"metric_for_best_model": "loss", "greater_is_better": "true"}
    assert main(["train", str(recipe_file(**flags))]) == 0
    assert "best_checkpoint" not in json.loads((tmp_path / "run/results.json").read_text())
    assert "| **3, saved** " in (tmp_path / "run/README.md").read_text()


def test_resume_from_checkpoint_false_starts_from_the_beginning(recipe_file, tmp_path):
    assert main(["train", str(recipe_file(max_steps=1)), "--resume_from_checkpoint", "false"]) == 0


def test_train_does_not_overwrite_a_run(run, recipe_file, capsys):
    assert main(["train", str(recipe_file())]) == 2
    assert "holds checkpoint-4 already; continue it with --resume_from_checkpoint true" in capsys.readouterr().err


def test_an_interrupted_run_ends_with_130_and_resumes(recipe_file, tmp_path, capsys, monkeypatch):
    from prompt_tuning.training.trainer import PromptTuningTrainer

    step = PromptTuningTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    recipe = str(recipe_file())
    monkeypatch.setattr(PromptTuningTrainer, "training_step", interrupted)
    assert main(["train", recipe, "--save_steps", "2"]) == 130
    assert "--resume_from_checkpoint true resumes" in capsys.readouterr().err
    assert file_names(tmp_path / "run") == {"checkpoint-2", "base_model.json", "recipe.yaml"}
    monkeypatch.setattr(PromptTuningTrainer, "training_step", step)
    assert main(["train", recipe, "--save_steps", "2", "--resume_from_checkpoint", "true"]) == 0
    whole = tmp_path / "whole"
    assert main(["train", recipe, "--save_steps", "2", "--output_dir", str(whole)]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == (
        whole / "adapter_model.safetensors"
    ).read_bytes()
    assert "other settings" not in capsys.readouterr().err
    again = ["--save_steps", "2", "--resume_from_checkpoint", "true", "--weight_decay", "0.1"]
    assert main(["train", recipe, *again, "--output_dir", str(whole)]) == 0
    assert "is continued with other settings than the run in its folder had: weight_decay" in capsys.readouterr().err


def test_a_failed_save_leaves_nothing_under_a_final_name(recipe_file, tmp_path, capsys, monkeypatch):
    def full(self, folder, **kwargs):
        (folder / "adapter_config.json").write_text("half")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("prompt_tuning.engine.shared_prefix.SharedPrefixModel.save_pretrained", full)
    assert main(["train", str(recipe_file()), "--save_strategy", "no"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert file_names(tmp_path / "run") == {"base_model.json", "recipe.yaml"}


def test_a_partial_checkpoint_is_removed_and_the_one_before_is_kept(recipe_file, tmp_path, capsys, monkeypatch):
    from prompt_tuning.training.trainer import PromptTuningTrainer

    save = PromptTuningTrainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 4:
            raise RuntimeError("unexpected pos 64 vs 0")  # torch.save says this on a full disk.
        save(self, folder)

    monkeypatch.setattr(PromptTuningTrainer, "_save_optimizer_and_scheduler", full)
    monkeypatch.setattr("prompt_tuning.support.files._disk_limit", lambda partial: 28)
    assert main(["train", str(recipe_file()), "--save_steps", "2"]) == 1
    assert "run: No space left on device; no partial file was left" in capsys.readouterr().err
    assert file_names(tmp_path / "run") == {"checkpoint-2", "base_model.json", "recipe.yaml"}


def test_one_file_is_cut_into_splits_that_every_command_sees(recipe_file, tmp_path, capsys):
    recipe = str(recipe_file(validation_file=None, test_file=None, validation_size=4, test_size=0.25, split_seed=3))
    assert main(["check", recipe]) == 0
    checked = capsys.readouterr()
    assert "train: 14 rows" in checked.out and "validation: 4 rows" in checked.out and "test: 6 rows" in checked.out
    assert "cut by test_size 0.25, validation_size 4 into 6 test, 14 train, 4 validation rows" in checked.err
    assert main(["train", recipe]) == 0
    trained = read_json_lines(tmp_path / "run" / "predictions" / "test.jsonl")
    saved = str(tmp_path / "run" / "recipe.yaml")
    adapter = str(tmp_path / "run")
    assert main(["evaluate", saved, "--adapter", adapter, "--output_dir", str(tmp_path / "again"), "--seed", "7"]) == 0
    evaluated = read_json_lines(tmp_path / "again" / "predictions" / "test.jsonl")
    assert [row["source"] for row in evaluated] == [row["source"] for row in trained]
    assert ", test_size 0.25" in (tmp_path / "run" / "README.md").read_text()
    capsys.readouterr()
    assert main(["render", recipe, "--split", "test", "-n", "1"]) == 0
    shown = capsys.readouterr().out
    line = int(shown.split("train.jsonl, line ")[1].split()[0])
    context = read_json_lines(tmp_path / "train.jsonl")[line - 1]["context"]
    assert context in shown


def test_columns_that_no_template_reads_are_ignored_by_every_command(recipe_file, tmp_path, capsys):
    plain = recipe_file()
    assert main(["train", str(plain), "--output_dir", str(tmp_path / "plain")]) == 0
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
    for split in ("train", "validation", "test"):
        rows = read_json_lines(tmp_path / f"{split}.jsonl")
        for number, row in enumerate(rows):
            traces = [number, "text", {"a": [None]}][number % 3]
            row |= {"messages": turns, "traces": traces, "labels": [1], "input_ids": "x", "row": 7, "prediction": None}
            row |= {"source": "s", "target": "t", "translation": None, "document": "d", "problem": "p", "overlong": 1}
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    assert main(["train", str(plain)]) == 0
    names = ("adapter_model.safetensors", "predictions/test.jsonl", "template.yaml")
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    out = tmp_path / "out.jsonl"
    predicting = ["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "test.jsonl")]
    assert main([*predicting, "--output", str(out)]) == 0
    expected = [row["soft_prompt"] for row in read_json_lines(tmp_path / "run" / "predictions" / "test.jsonl")]
    assert [row["prediction"] for row in read_json_lines(out)] == expected
    capsys.readouterr()
    assert main(["templates", "question_answering/plain", "--row", str(tmp_path / "test.jsonl")]) == 0
    assert "-- target: 'Porto'" in capsys.readouterr().out


def test_settings_that_max_steps_leaves_without_effect_are_reported(recipe_file, capsys):
    assert main(["train", str(recipe_file()), "--num_train_epochs", "5", "--warmup_steps", "4"]) == 0
    error = capsys.readouterr().err
    assert error.count("num_train_epochs has no effect: max_steps 4 ends the training") == 1
    assert error.count("warmup_steps 4: the learning rate does not reach its peak in max_steps 4") == 1
