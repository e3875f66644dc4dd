"""Refuse what is no base model before weights are read: paths, adapters, encoders, and a hub that does not answer."""

import json
import shutil
import time

import pytest
from helpers.models import forbid_model_loading, tiny_llama
from helpers.rows import question_rows, write_jsonl
from transformers import AutoTokenizer, BertConfig, DistilBertConfig, GPTNeoXConfig, RobertaConfig

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.data.loading import load_splits
from prompt_tuning.errors import DataError, ModelError, RecipeError
from prompt_tuning.metrics.loading import load_metrics
from prompt_tuning.models.loading import load_config, load_tokenizer
from prompt_tuning.models.prompts import add_adapter, prompt_config


@pytest.fixture
def asked(monkeypatch):
    """Fail a test that asks the hub, and say so."""

    def ask(*args, **kwargs):
        raise AssertionError("the hub was asked")

    for name in (
        "prompt_tuning.models.loading.AutoConfig.from_pretrained", "prompt_tuning.models.loading.hub_answers",
        "prompt_tuning.data.loading.load_dataset", "prompt_tuning.data.loading.hub_answers", "evaluate.load",
    ):  # fmt: skip
        monkeypatch.setattr(name, ask)


@pytest.mark.parametrize(
    "name", ["./x", "../x/y", "/x", "/x/y", "~/x", "~", "x/y/z", "x/y/", r"C:\x", r"models\x", "D:/x"]
)
def test_what_looks_like_a_path_never_reaches_the_hub(name, asked, tmp_path, monkeypatch, recipe_file, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        load_config(ModelArguments(model_name_or_path=name))
    with pytest.raises(DataError, match="no such folder"):
        load_splits(DataArguments(task="question_answering", dataset_name=name), ("train",))
    with pytest.raises(RecipeError, match="no such file or folder"):
        load_metrics([name])
    for setting in ("adapter", "init_adapter"):
        init = {"init": "adapter"} if setting == "init_adapter" else {}
        recipe = recipe_file(num_virtual_tokens=None, **{setting: f"'{name}'"}, **init)
        assert main(["check", str(recipe)]) == 2
        assert f"{setting} {name}: no adapter_config.json there" in capsys.readouterr().err


def test_a_model_without_its_tokenizer_names_the_files(model_folders, tmp_path):
    folder = shutil.copytree(model_folders["llama"], tmp_path / "bare")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"bare: its files have no tokenizer \(tokenizer\.json, .* Copy those"):
        load_tokenizer(ModelArguments(model_name_or_path=str(folder)))


@pytest.mark.parametrize("has_model", [False, True])
def test_an_adapter_is_no_base_model(has_model, model_folders, tmp_path, recipe_file, capsys, monkeypatch, tokenizer):
    base = tiny_llama(len(tokenizer))
    folder = tmp_path / "lora"
    if has_model:
        shutil.copytree(model_folders["llama"], folder)
    add_adapter(base, prompt_config(base, 0, PromptArguments(method="lora"))).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "bea/tiny-llama"}))
    tokenizer.save_pretrained(folder)
    forbid_model_loading(monkeypatch)
    recipe = str(recipe_file(model_name_or_path=folder))
    commands = {
        "train": ["train", recipe],
        "hard prompt": ["train", recipe, "--method", "none"],
        "evaluate": ["evaluate", recipe],
        "rank": ["rank", recipe, "--output_dir", str(tmp_path / "ranked")],
        "check": ["check", recipe],
        "compare": ["compare", recipe, "--output_dir", str(tmp_path / "compared")],
    }
    for name, command in commands.items():
        assert main(command) == (2 if name == "rank" else 1), name  # No template could be ranked.
        errors = capsys.readouterr().err
        assert f"{folder}: an adapter (adapter_config.json), not a model. Set it to bea/tiny-llama" in errors, name


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig, DistilBertConfig])
def test_an_encoder_is_no_base_model(config, tmp_path, tokenizer, recipe_file, capsys, monkeypatch):
    config(vocab_size=len(tokenizer), num_hidden_layers=1).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    forbid_model_loading(monkeypatch)
    for method in ("prompt_tuning", "none"):
        assert main(["train", str(recipe_file(model_name_or_path=tmp_path / "encoder")), "--method", method]) == 1
        assert "is an encoder, which writes no text. Set a causal model" in capsys.readouterr().err


def test_decoders_are_base_models(tmp_path):
    """BERT can be a decoder; GPT-NeoX is one though its configuration says is_decoder: false."""
    for number, config in enumerate((BertConfig(is_decoder=True), GPTNeoXConfig())):
        config.save_pretrained(tmp_path / str(number))
        loaded = load_config(ModelArguments(model_name_or_path=str(tmp_path / str(number))))
        assert loaded.model_type == config.model_type


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_that_does_not_answer_is_reported_without_retries(offline, monkeypatch, tmp_path, recipe_file, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited {seconds} s to try again"))
    recipe = recipe_file(
        model_name_or_path="ann/none", train_file=None, validation_file=None, test_file=None, dataset_name="ann/rows"
    )
    assert main(["check", str(recipe)]) == 1
    errors = capsys.readouterr().err
    assert "model_name_or_path ann/none: not a folder here, and not found on the hub" in errors
    assert "dataset ann/rows, split train: Couldn't reach" in errors


def larger_tokenizer(folder, token, **special):
    """Save a tokenizer with one token more than the model of the folder has embeddings for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token])
    if special:
        tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return len(tokenizer) - 1


@pytest.fixture
def model_folder(model_folders, tmp_path):
    return shutil.copytree(model_folders["llama"], tmp_path / "larger")


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_tokens_beyond_the_embeddings_are_refused_with_their_rows(
    streaming, model_folder, recipe_file, tmp_path, capsys, monkeypatch
):
    number = larger_tokenizer(model_folder, "Zebra")
    forbid_model_loading(monkeypatch)
    recipe = str(recipe_file(model_name_or_path=model_folder, streaming=streaming))
    rows = question_rows(24)
    message = f"and none for {number} ('Zebra'); take the model's own tokenizer"
    for change in ({"context": "The Zebra."}, {"answers": {"text": ["Zebra"], "answer_start": [0]}}):
        write_jsonl(tmp_path / "train.jsonl", [*rows[:3], rows[3] | change])
        assert main(["train", recipe]) == 1
        errors = capsys.readouterr().err
        assert "train.jsonl, line 4: the model has embeddings" in errors and message in errors


def test_a_padding_token_or_an_initial_text_beyond_the_embeddings_is_refused(
    model_folder, recipe_file, capsys, monkeypatch
):
    number = larger_tokenizer(model_folder, "Zebra")
    init = {"init": "text", "init_text": "Zebra", "num_virtual_tokens": None}
    recipe = str(recipe_file(model_name_or_path=model_folder))
    assert main(["check", recipe]) == 0  # No row has the token.
    forbid_model_loading(monkeypatch)
    assert main(["train", str(recipe_file(model_name_or_path=model_folder, **init))]) == 2
    assert f"and none for {number} ('Zebra')" in capsys.readouterr().err
    larger_tokenizer(model_folder, "[PAD]", pad_token="[PAD]")
    assert main(["train", str(recipe_file(model_name_or_path=model_folder))]) == 2
    assert f"and none for {number + 1} ('[PAD]')" in capsys.readouterr().err


def test_predict_refuses_a_row_with_a_token_beyond_the_embeddings(recipe_file, model_folder, tmp_path, capsys):
    larger_tokenizer(model_folder, "Zebra")
    assert main(["train", str(recipe_file(model_name_or_path=model_folder, max_steps=1))]) == 0
    row = {"context": "A Zebra lives.", "question": "Where?"}
    rows = write_jsonl(tmp_path / "rows.jsonl", [row])
    assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(rows)]) == 1
    assert "rows.jsonl, line 1: the model has embeddings for the ids below" in capsys.readouterr().err
