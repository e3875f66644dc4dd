"""Recognise the base model of an adapter by its weights and tokenizer, and find it wherever a command starts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.models import forbid_model_loading, tiny_llama
from helpers.rows import question_rows
from huggingface_hub import constants
from peft import PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prompt_tuning import Predictor
from prompt_tuning.cli.main import main
from prompt_tuning.models.base_model import read_base_model, tokenizer_digest, weights_digest

MESSAGES = {
    "predict": ["predict", "--adapter", "{run}", "--input", "{rows}"],
    "evaluate": ["evaluate", "{recipe}", "--adapter", "{run}", "--output_dir", "{run}-evaluated"],
    "ensemble": ["ensemble", "{recipe}", "--adapters", "{run}", "{copy}", "--output_dir", "{run}-together"],
    "train": ["train", "{recipe}", "--adapter", "{run}", "--output_dir", "{run}-longer", "--max_steps", "1"],
    "inspect": ["inspect", "{run}"],
}


@pytest.fixture
def place(recipe_file, model_folders, tmp_path, monkeypatch):
    """Train in a folder with its own model in models/llama, named by a relative path; return the folder."""
    shutil.copytree(model_folders["llama"], tmp_path / "models" / "llama")
    monkeypatch.chdir(tmp_path)
    recipe = recipe_file(
        model_name_or_path="models/llama", output_dir="runs/mine", num_virtual_tokens=None, save_steps=2
    )
    assert main(["train", str(recipe), "--num_virtual_tokens", "6"]) == 0
    shutil.copytree("runs/mine", "runs/copy")
    return tmp_path


def commands(place, **names):
    values = {"recipe": place / "recipe.yaml", "run": place / "runs/mine", "copy": place / "runs/copy"}
    values |= {"rows": place / "test.jsonl"} | names
    return {name: [word.format(**values) for word in words] for name, words in MESSAGES.items()}


def predictions(run, name="soft_prompt"):
    return [json.loads(line)[name] for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]


def change_weights(folder, seed=7):
    size = AutoConfig.from_pretrained(folder).vocab_size
    tiny_llama(size, seed=seed).save_pretrained(folder)


def test_a_digest_is_that_of_the_tensors_however_they_are_stored(model_folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folders["llama"])
    digest = weights_digest(str(model_folders["llama"]))
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    assert weights_digest(str(tmp_path / "shards")) == digest
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 1
    model.save_pretrained(tmp_path / "changed")
    assert weights_digest(str(tmp_path / "changed")) != digest
    assert weights_digest("") is weights_digest("/gone/x", "main") is None


def test_a_digest_of_a_model_in_the_cache_asks_no_hub(model_folders):
    commit = "c" * 40
    snapshot = Path(constants.HF_HUB_CACHE) / "models--ann--in-shards" / "snapshots" / commit
    AutoModelForCausalLM.from_pretrained(model_folders["llama"]).save_pretrained(snapshot, max_shard_size="50KB")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    digest = weights_digest(str(model_folders["llama"]))
    assert weights_digest("ann/in-shards", "main") == weights_digest("ann/in-shards", commit) == digest
    assert weights_digest("ann/in-shards", "other") is None  # It is not in the cache, and the hub cannot be asked.


def test_a_base_model_that_moved_is_taken_everywhere_and_one_with_other_weights_nowhere(
    place, capsys, caplog, monkeypatch
):
    expected = predictions(place / "runs/mine")
    shutil.copytree("models/llama", "elsewhere")
    moved = ["--model_name_or_path", str(place / "elsewhere")]
    for name, words in commands(place).items():
        assert main([*words, *moved]) == 0, name
    assert "was trained on" not in caplog.text
    assert Predictor.load(place / "runs/mine", "elsewhere")(question_rows(9, 5)) == expected
    assert predictions(place / "runs/mine-evaluated") == expected
    start = ["check", "recipe.yaml", "--init", "adapter", "--init_adapter", "runs/mine"]
    assert main([*start, *moved]) == 0
    assert "was trained on" not in caplog.text
    for name in ("evaluated", "together", "longer"):
        shutil.rmtree(place / f"runs/mine-{name}")
    change_weights(Path("models/llama"))
    capsys.readouterr()
    forbid_model_loading(monkeypatch)
    for name, words in commands(place).items():
        assert main(words) == 1, name
        errors = capsys.readouterr().err
        assert "mine was trained on models/llama" in errors and "which has other weights" in errors, name
    # A prompt may start from one of another model, which is said. A hidden size of its own refuses it.
    assert main(start) == 0
    assert "which has other weights. The adapter fits only if it is the same model" in capsys.readouterr().err
    tiny_llama(AutoConfig.from_pretrained("models/llama").vocab_size, hidden_size=64).save_pretrained("models/llama")
    assert main(start) == 1
    assert "mine was trained on models/llama (hidden size 32)" in capsys.readouterr().err


def test_another_tokenizer_with_the_same_weights_is_refused(place, capsys, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained("models/llama")
    digest = tokenizer_digest(tokenizer)
    assert read_base_model(Path("runs/mine"))[0].tokenizer == digest
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained("models/llama")
    forbid_model_loading(monkeypatch)
    for name, words in commands(place).items():
        if name != "inspect":
            assert main(words) == 1, name
            assert "was trained with another vocabulary or chat template" in capsys.readouterr().err, name


def test_a_chat_run_of_0_1_0_is_refused_where_its_answers_began_with_other_text(place, capsys, monkeypatch):
    for run in ("runs/mine", "runs/copy"):
        (place / run / "base_model.json").unlink()  # Version 0.1.0 wrote none.
        (place / run / "template.yaml").write_text("source: '{{ question }}'\ntarget: x\nchat: true\n")
    checked = commands(place)
    assert main(checked["predict"]) == 0
    thinking = "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' }}"
    tokenizer = AutoTokenizer.from_pretrained("models/llama")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m['content'] }}", thinking + "{{ m['content'] }}")
    tokenizer.save_pretrained("models/llama")
    assert main([*checked["predict"], "--model_name_or_path", "models/llama"]) == 0
    assert "Predictions are not those of the training" in capsys.readouterr().err
    forbid_model_loading(monkeypatch)
    for name, words in checked.items():
        if name != "inspect":
            assert main(words) == 1, name
            assert "was trained by version 0.1.0, which began an answer" in capsys.readouterr().err, name


def test_a_training_resumes_and_compares_only_with_its_own_weights(place, capsys, caplog):
    shutil.copytree("models/llama", "elsewhere")
    (place / "runs/mine/results.json").unlink()
    train = ["train", "recipe.yaml", "--num_virtual_tokens", "6", "--save_steps", "2", "--resume_from_checkpoint"]
    train += ["true"]
    assert main([*train, "--model_name_or_path", "elsewhere"]) == 0
    assert "continued with other settings" not in caplog.text
    compare = ["compare", "recipe.yaml", "--seeds", "1", "--output_dir", "compared", "--num_virtual_tokens", "6"]
    assert main(compare) == 0
    assert main([*compare, "--model_name_or_path", "elsewhere"]) == 0
    change_weights(Path("models/llama"))
    capsys.readouterr()
    (place / "runs/mine/results.json").unlink()
    assert main(train) == 2
    assert "checkpoint-4 is of a run with another base model" in capsys.readouterr().err
    assert main(compare) == 1
    assert "was run before this changed: model_name_or_path models/llama" in capsys.readouterr().err
    (place / "compared/recipe-seed1/results.json").unlink()
    assert main(compare) == 2
    assert "was run with other settings (base model)" in capsys.readouterr().err


def test_a_relative_base_is_found_from_another_folder_and_never_asked_for_on_the_hub(place, monkeypatch, capsys):
    expected = predictions(place / "runs/mine")
    config = PeftConfig.from_pretrained("runs/mine")
    assert config.base_model_name_or_path == "./models/llama"
    (place / "other").mkdir()
    monkeypatch.chdir(place / "other")
    assert Predictor.load(place / "runs/mine")(question_rows(9, 5)) == expected
    assert Predictor.load(place / "runs/mine/checkpoint-4/..")(question_rows(9, 5)) == expected
    assert main(["inspect", str(place / "runs/mine")]) == 0
    (place / "models").rename(place / "gone")
    asked = []
    monkeypatch.setattr(
        "prompt_tuning.models.loading.AutoConfig.from_pretrained", lambda *args, **_: asked.append(args)
    )
    capsys.readouterr()
    for command in (["predict", "--input", str(place / "test.jsonl"), "--adapter"], ["inspect"]):
        assert main([*command, str(place / "runs/mine")]) == 1
        assert "its base model was the folder models/llama, which is not there" in capsys.readouterr().err
    assert not asked


def test_a_saved_recipe_never_asks_the_hub_for_what_was_a_folder(place, monkeypatch, capsys):
    longer = ["train", "recipe.yaml", "--adapter", "runs/mine", "--max_steps", "1", "--output_dir", "runs/longer"]
    assert main(longer) == 0
    assert main([*longer, "--resume_from_checkpoint", "true"]) == 0  # The names in the recipe are no change.
    saved = (place / "runs/longer/recipe.yaml").read_text()
    assert "model_name_or_path: ./models/llama\n" in saved and "adapter: ./runs/mine\n" in saved
    (place / "other").mkdir()
    monkeypatch.chdir(place / "other")
    for run, message in (
        ("runs/longer", "adapter ./runs/mine: no adapter_config.json there"),
        ("runs/mine", "model_name_or_path ./models/llama: no such folder"),
    ):
        capsys.readouterr()
        assert main(["check", str(place / run / "recipe.yaml")]) > 0
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, ""])
def test_an_adapter_that_names_no_base_model_takes_a_given_one(name, place, capsys):
    for run in ("runs/mine", "runs/copy"):
        (place / run / "base_model.json").unlink()
        config = json.loads((place / run / "adapter_config.json").read_text())
        (place / run / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
    capsys.readouterr()
    all_commands = commands(place)
    for command in ("predict", "inspect"):
        assert main(all_commands[command]) == 1
        message = "mine: its adapter_config.json names no base model. Give --model_name_or_path."
        assert message in capsys.readouterr().err
        assert main([*all_commands[command], "--model_name_or_path", "models/llama"]) == 0
    for command in ("evaluate", "ensemble", "train"):
        assert main(all_commands[command]) == 0, command
