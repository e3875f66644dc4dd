"""The commands as people run them: what they write, what they say, and how they end."""

import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers.cards import check_card
from helpers.models import forbid_model_loading
from helpers.rows import question_rows, write_jsonl
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, Cohere2Config, GenerationConfig, MarianConfig

import prompt_tuning as pt
from prompt_tuning import Predictor, Template
from prompt_tuning.cli.main import main

COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "inspect",
    "ensemble",
    "render",
    "check",
    "import-gguf",
    "show",
    "report",
    "card",
    "templates",
    "push",
    "compare",
    "rank",
    "sweep",
]


@pytest.fixture
def run(recipe_file, tmp_path):
    assert main(["train", str(recipe_file()), "--save_steps", "2", "--learning_rate", "0.3"]) == 0
    return tmp_path / "run"


def test_train_leaves_the_folder_that_the_design_says(run, recipe_file, model_folders, capsys):
    names = {path.name for path in run.iterdir()}
    assert names == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoint-2", "checkpoint-4",
        "initial_prompt.safetensors", "log_history.json", "predictions", "recipe.yaml", "report.html", "results.json",
        "template.yaml",
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
        "row", "source", "references", "source_tokens", "cut_tokens", "hard_prompt", "soft_prompt",
    }  # fmt: skip
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "hard prompt alone" in shown and "with soft prompt" in shown and shown.count("\nrow ") == 3
    assert f"prompt-tuning predict --adapter {run}" in shown and "192 trained parameters, 4 steps" in shown
    card = check_card(run / "README.md")
    assert card.data.library_name == "peft" and card.data.base_model is None  # a local folder is no hub id
    assert re.search(rf"\| with soft prompt +\| {results['soft_prompt']['exact_match']} +\|", card.text)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folders["llama"]), run)
    modes = {path.stat().st_mode for path in run.rglob("*") if path.is_file()}
    assert modes == {(run / "results.json").stat().st_mode}  # safetensors makes files that one user alone may read


def test_the_saved_recipe_runs_again_to_the_same_adapter(run, tmp_path):
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
    recipe, run = recipe_file(**settings), tmp_path / "run"
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


def test_training_goes_on_from_an_adapter_and_a_prompt_may_start_from_another(run, recipe_file, tmp_path):
    assert main(["train", str(recipe_file(adapter=run, output_dir=tmp_path / "longer", num_virtual_tokens=None))]) == 0
    assert json.loads((tmp_path / "longer" / "adapter_config.json").read_text())["num_virtual_tokens"] == 6
    transferred = recipe_file(init="adapter", init_adapter=run, num_virtual_tokens=9, output_dir=tmp_path / "spot")
    assert main(["train", str(transferred)]) == 0
    assert json.loads((tmp_path / "spot" / "adapter_config.json").read_text())["num_virtual_tokens"] == 9


def test_inspect_and_ensemble_on_the_command_line(run, recipe_file, tmp_path, capsys):
    assert main(["inspect", str(run), "-n", "2"]) == 0
    assert "moved" in capsys.readouterr().out
    assert {"inspection.json", "inspection.png"} <= {path.name for path in run.iterdir()}
    other = tmp_path / "other"
    assert main(["train", str(recipe_file(output_dir=other, seed=7))]) == 0
    assert main(["ensemble", str(recipe_file()), "--adapters", str(run), str(other)]) == 0
    assert "together, by vote" in capsys.readouterr().out
    assert main(["show", str(run / "evaluate-test-ensemble-vote")]) == 0
    assert main(["ensemble", str(recipe_file()), "--adapters", str(run)]) == 1
    assert "an ensemble needs at least two, found 1" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_encoder_decoder_models_take_the_same_path(architecture, recipe_file, model_folders, tmp_path, capsys):
    assert main(["train", str(recipe_file(model_name_or_path=model_folders[architecture]))]) == 0
    rows = tmp_path / "test.jsonl"
    capsys.readouterr()
    assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(rows)]) == 0
    predicted = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    saved = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    assert predicted == [row["soft_prompt"] for row in saved]


def test_evaluate_gives_the_numbers_that_train_gave(run, recipe_file, tmp_path):
    results = json.loads((run / "results.json").read_text())
    recipe = str(recipe_file())
    assert main(["evaluate", recipe, "--adapter", str(run), "--per_device_eval_batch_size", "2"]) == 0
    soft = json.loads((run / "evaluate-test-soft_prompt" / "results.json").read_text())
    assert soft["soft_prompt"] == results["soft_prompt"] and "hard_prompt" not in soft
    assert main(["evaluate", recipe, "--output_dir", str(tmp_path / "hard")]) == 0
    hard = json.loads((tmp_path / "hard" / "results.json").read_text())
    assert hard["hard_prompt"] == results["hard_prompt"] and hard["rows"] == 9
    assert json.loads((run / "results.json").read_text()) == results
    assert main(["evaluate", recipe, "--split", "validation", "--output_dir", str(tmp_path / "v")]) == 0
    assert (tmp_path / "v" / "predictions" / "validation.jsonl").is_file()
    evaluating = str(recipe_file(eval_strategy="steps", eval_steps=2))
    assert main(["evaluate", evaluating, "--split", "train", "--max_train_samples", "2"]) == 0


def test_what_a_models_own_generation_config_adds_is_told(recipe_file, tmp_path, model_folders, capsys):
    own = tmp_path / "own"
    shutil.copytree(model_folders["llama"], own)
    own_settings = dict(repetition_penalty=1.3, no_repeat_ngram_size=1, length_penalty=1.0, min_length=0)
    GenerationConfig(**own_settings, eos_token_id=1).save_pretrained(own)
    assert main(["train", str(recipe_file(model_name_or_path=own, method="none", num_virtual_tokens=None))]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["decoding"] == {
        "max_new_tokens": 12, "num_beams": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 1,
    }  # fmt: skip
    assert "greedy, up to 12 tokens, repetition_penalty 1.3" in (tmp_path / "run" / "report.html").read_text()


def test_an_evaluation_is_not_written_over_a_run(run, recipe_file, capsys):
    before = {file.name: file.read_bytes() for file in run.glob("*") if file.is_file()}
    flags = ["--split", "validation", "--output_dir", str(run)]
    assert main(["evaluate", str(recipe_file()), "--adapter", str(run), *flags]) == 2
    assert main(["ensemble", str(recipe_file()), "--adapters", str(run), f"{run}/.", *flags]) == 2
    assert capsys.readouterr().err.count(f"output_dir {run} holds a run of train") == 2
    assert before == {file.name: file.read_bytes() for file in run.glob("*") if file.is_file()}


def test_method_none_evaluates_a_hard_prompt_and_trains_nothing(recipe_file, tmp_path):
    assert main(["train", str(recipe_file(method="none", num_virtual_tokens=None))]) == 0
    assert "soft_prompt" not in json.loads((tmp_path / "run" / "results.json").read_text())
    assert not (tmp_path / "run" / "adapter_config.json").exists()


def test_predict_streams_rows_in_their_order(run, tmp_path, capsys, monkeypatch):
    capsys.readouterr()
    rows = write_jsonl(
        tmp_path / "rows.jsonl", [{key: row[key] for key in ("context", "question")} for row in question_rows(7)]
    )
    out = tmp_path / "out.jsonl"
    command = ["predict", "--adapter", str(run)]
    assert main([*command, "--input", str(rows), "--output", str(out), "--batch_size", "3"]) == 0
    predicted = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["question"] for row in predicted] == [row["question"] for row in question_rows(7)]
    assert all(isinstance(row["prediction"], str) for row in predicted)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(rows.read_bytes())))
    assert main([*command, "--batch_size", "1"]) == 0
    assert capsys.readouterr().out == out.read_text()


def test_a_predictor_writes_what_train_wrote(run, tmp_path):
    predictor = Predictor.load(run)
    saved = [json.loads(line)["soft_prompt"] for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert predictor(question_rows(9, 5)) == saved and predictor([]) == []


@pytest.mark.parametrize("architecture", ["cohere2", "marian"])
def test_threads_share_a_predictor(architecture, tokenizer):
    """PEFT's `generate` changes the model while it runs, and a hook scales what Marian reads."""
    torch.manual_seed(3)
    size, common = len(tokenizer), {"pad_token_id": 0, "eos_token_id": 1}
    config = {
        "cohere2": Cohere2Config(
            vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.3, **common,
        ),
        "marian": MarianConfig(
            vocab_size=size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=256,
            decoder_start_token_id=0, forced_eos_token_id=None, init_std=1.0, scale_embedding=True, **common,
        ),
    }[architecture]  # fmt: skip
    many = architecture == "marian"
    base = (AutoModelForSeq2SeqLM if many else AutoModelForCausalLM).from_config(config).requires_grad_(False).eval()
    model = pt.add_soft_prompt(base, pt.prompt_config(base, 4), torch.randn(4, 32)).eval()
    encoder = pt.Encoder(Template.load("question_answering/plain"), tokenizer, many, max_source_tokens=96)
    predictor = Predictor(model, encoder, {"max_new_tokens": 12})
    batches = [question_rows(24)[start : start + 3] for start in range(0, 24, 3)]
    expected = [predictor(batch) for batch in batches]
    assert len({text for texts in expected for text in texts}) > 2
    second = replace(predictor)  # of the same model
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(predictor, batches)) == expected
        together = threads.map(
            lambda pair: pair[0](pair[1]), zip([predictor, second] * len(batches), batches * 2, strict=True)
        )
        assert list(together) == expected * 2
    assert copy.deepcopy(predictor)(batches[0]) == expected[0]


def test_a_run_predicts_where_what_it_was_trained_with_is_not(run, monkeypatch):
    saved = [json.loads(line)["soft_prompt"] for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    recipe = (run / "recipe.yaml").read_text().replace("use_cpu: true\n", "")
    with (run / "recipe.yaml").open("w") as file:  # as of a GPU
        file.write(recipe + "bf16: true\ntf32: true\nreport_to: wandb\ndeepspeed: gone.json\n")
    assert Predictor.load(run)(question_rows(9, 5)) == saved


def test_predict_reads_no_table_as_plain_text_and_says_what_it_replaces(run, tmp_path, capsys):
    for name in ("rows.tsv", "rows.CSV"):
        (tmp_path / name).write_text("context,question\na,b\n")
        assert main(["predict", "--adapter", str(run), "--input", str(tmp_path / name)]) == 1
        assert f"{name}: not read; save it as one of .csv, .json, .jsonl, .parquet" in capsys.readouterr().err
    rows = write_jsonl(tmp_path / "rows.jsonl", [row | {"prediction": "x"} for row in question_rows(2)])
    assert main(["predict", "--adapter", str(run), "--input", str(rows)]) == 0
    assert "2 of 2 rows had a column 'prediction', which is replaced" in capsys.readouterr().err


def test_an_evaluation_is_not_written_over_that_of_another_adapter(run, recipe_file, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "second")
    recipe = str(recipe_file(output_dir=tmp_path / "evaluated"))
    assert main(["evaluate", recipe, "--adapter", str(run)]) == main(["evaluate", recipe, "--adapter", str(run)]) == 0
    assert main(["evaluate", recipe]) == 0  # beside it
    assert main(["evaluate", recipe, "--adapter", f"{run}/"]) == 0  # the same in another spelling
    assert main(["evaluate", recipe, "--adapter", str(tmp_path / "second")]) == 2
    assert re.search(rf"holds the evaluation of {run}/?; name another --output_dir", capsys.readouterr().err)


def test_predict_says_what_is_missing(run, tmp_path, capsys):
    assert main(["predict", "--adapter", str(run), "--input", "none.jsonl"]) == 1
    assert "--input none.jsonl: no such file" in capsys.readouterr().err
    (run / "template.yaml").unlink()
    assert main(["predict", "--adapter", str(run), "--input", str(tmp_path / "test.jsonl")]) == 1
    assert "no template.yaml there, so its template is unknown" in capsys.readouterr().err
    assert main(["show", str(tmp_path)]) == 1
    assert "no results.json there" in capsys.readouterr().err


def test_predict_reads_plain_text_for_a_template_of_one_column(recipe_file, tmp_path, capsys):
    rows = [{"document": f"Text of {row['context']}", "summary": "Short."} for row in question_rows(4)]
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    recipe = recipe_file()
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    assert (
        main(
            ["train", str(recipe), "--task", "summarization", "--template", "summarization/plain", "--max_steps", "1"]
        )
        == 0
    )
    capsys.readouterr()
    (tmp_path / "lines.txt").write_text("One text.\nAnother text.\n")
    assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "lines.txt")]) == 0
    assert [json.loads(line)["document"] for line in capsys.readouterr().out.splitlines()] == [
        "One text.",
        "Another text.",
    ]
    for text, line in (("One text.\n\nAnother text.\n", 2), ("\n\nOne text.\n", 1)):
        (tmp_path / "lines.txt").write_text(text)
        assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "lines.txt")]) == 1
        assert f"line {line}: empty; plain text needs one source on every line" in capsys.readouterr().err


def test_predict_reads_files_in_the_formats_and_columns_of_training(recipe_file, tmp_path, capsys):
    theirs = [
        {"passage": row["context"], "question": row["question"], "answers": row["answers"]} for row in question_rows(4)
    ]
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"own_{split}.jsonl", theirs)
    files = {f"{split}_file": tmp_path / f"own_{split}.jsonl" for split in ("train", "validation", "test")}
    recipe = recipe_file(context_column="passage", max_steps=1, **files)
    assert main(["train", str(recipe)]) == 0
    written = [
        json.loads(line)["soft_prompt"] for line in (tmp_path / "run/predictions/test.jsonl").read_text().splitlines()
    ]
    frame = pd.DataFrame([{"passage": row["passage"], "question": row["question"]} for row in theirs])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.json", orient="records", indent=1)
    frame.to_json(tmp_path / "usual.jsonl", orient="records", lines=True)
    marked = b"\xef\xbb\xbf" + (tmp_path / "usual.jsonl").read_bytes()
    (tmp_path / "marked.jsonl").write_bytes(marked)
    for name in ("rows.csv", "rows.parquet", "rows.json", "usual.jsonl", "marked.jsonl"):
        capsys.readouterr()
        assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / name)]) == 0, name
        predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["prediction"] for row in predicted] == written, name
        assert set(predicted[0]) == {*frame, "prediction"}
    frame.drop(columns="passage").to_csv(tmp_path / "rows.csv", index=False)
    assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "rows.csv")]) == 1
    said = capsys.readouterr().err
    assert "reads the column 'context', and " in said and "rows.csv, row 1, has 'question'" in said
    (tmp_path / "lines.txt").write_text("Where is Ada?\n")
    assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "lines.txt")]) == 1
    assert "plain text has one column" in capsys.readouterr().err


def test_a_pipe_or_link_that_is_named_as_output_is_written_and_stays_one(run, tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", question_rows(2))
    command = ["predict", "--adapter", str(run), "--input", str(rows), "--output"]
    (tmp_path / "kept.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to("kept.jsonl")
    assert main([*command, str(tmp_path / "link.jsonl")]) == 0 and (tmp_path / "link.jsonl").is_symlink()
    assert len(written := (tmp_path / "kept.jsonl").read_text()) > 10
    os.mkfifo(pipe := tmp_path / "pipe")
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        assert main([*command, str(pipe)]) == 0
        assert reader.communicate()[0] == written and pipe.is_fifo()
    assert main([*command, str(tmp_path)]) == 1 and f"--output {tmp_path}: a folder" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "kept.jsonl" / "x")]) == 1
    assert "no partial file was left" in capsys.readouterr().err


def test_an_adapter_of_another_method_is_not_gone_on_with(recipe_file, tmp_path, capsys, monkeypatch):
    """LoRA's layers stayed in the base model, whose score was then theirs."""
    recipe = str(recipe_file(method="lora", num_virtual_tokens=None, max_steps=1, output_dir=tmp_path / "lora"))
    assert main(["train", recipe]) == 0
    forbid_model_loading(monkeypatch)
    assert main(["train", str(recipe_file(num_virtual_tokens=None)), "--adapter", str(tmp_path / "lora")]) == 2
    assert "lora is of method lora, which is continued as lora; set method: lora" in capsys.readouterr().err


def test_the_last_step_is_the_saved_one_unless_the_best_is_loaded(recipe_file, tmp_path):
    """Trainer notes a best checkpoint as soon as a metric is named."""
    flags = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.3, "max_steps": 3}
    flags |= {"metric_for_best_model": "loss", "greater_is_better": "true"}
    assert main(["train", str(recipe_file(**flags))]) == 0
    assert "best_checkpoint" not in json.loads((tmp_path / "run/results.json").read_text())
    assert "| **3, saved** " in (tmp_path / "run/README.md").read_text()


def test_files_that_are_not_whole_or_no_adapters_are_said(run, recipe_file, model_folders, tmp_path, capsys):
    recipe = str(recipe_file())
    for name, message in (("adapter_model.safetensors", "not whole"), ("adapter_config.json", "not whole")):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 2])
        for command in (["evaluate", recipe, "--adapter", str(run)], ["inspect", str(run)]):
            assert main(command) == 1 and message in capsys.readouterr().err
        (run / name).write_bytes(whole)
    (run / "results.json").write_text("{")
    for command in ("show", "card", "report"):
        assert main([command, str(run)]) == 1 and "results.json: not JSON" in capsys.readouterr().err
    shutil.copytree(model_folders["llama"], tmp_path / "whole")
    assert main(["evaluate", recipe, "--adapter", str(tmp_path / "whole")]) == 1
    assert "is a whole model, as method: full trains" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"context": "a", "question": "b"}\n{"context": "a"}\n', "line 2, has 'context'"),
        ('{"context": "a", "question": "b"}\n{"context": \n', "line 2: not JSON"),
        ('{"context": "a", "question": null}\n', "line 1: template"),
        ("Where is Ada?\n", "line 1: not JSON"),
        ("", "no rows"),
        ('[\n{"context": "a", "question": "b"}]', "line 1: not JSON"),
        ('{"context": "\\ud800", "question": "b"}', "line 1: half a character, '\\ud800', is no text"),
        ('{"context": "a", "question": "b"}\n[1]\n', "line 2: expected a JSON object, found list"),
        ('{"context": "a", "question": "b"}\n{"context": "\udcff"}\n', "line 2: not UTF-8 text (byte 13 of the line)"),
        ('{"context": "a", "question": "' + "why " * 120 + '"}', "nothing left to cut, max_source_tokens is 96"),
    ],
)
def test_predict_names_a_bad_row_and_leaves_no_file(run, tmp_path, capsys, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content.encode("utf-8", "surrogateescape"))
    out = tmp_path / "out.jsonl"
    arguments = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(out), "--batch_size", "1"]
    assert main(["predict", "--adapter", str(run), *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_render_shows_text_tokens_loss_and_cuts(recipe_file, capsys):
    assert main(["render", str(recipe_file()), "-n", "2", "--max_source_tokens", "30"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("== ") == 2 and "train.jsonl, line 1" in shown
    assert "6 virtual tokens, then 30 source tokens" in shown and "cut to fit max_source_tokens" in shown
    assert "tokens that carry loss:" in shown and "'<eos>'" in shown


def test_templates_are_listed_shown_and_rendered_on_a_row(tmp_path, capsys):
    assert main(["templates"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "kind", "columns", "first", "words"] and len(lines) > 30
    assert any(
        re.match(r"translation/few_shot_chat +few-shot, chat +translation +You translate from", line) for line in lines
    )
    assert main(["templates", "summarization/tldr"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    row = {"dialogue": "A: Tea? B: Yes.", "summary": ["Tea.", "They have tea."]}
    rows = write_jsonl(tmp_path / "rows.jsonl", [row, {}])
    assert main(["templates", str(tmp_path), "--row", str(rows), "--text_column", "dialogue"]) == 0
    shown = capsys.readouterr().out
    assert f"== {tmp_path}/mine.yaml\nA: Tea? B: Yes.\n\nTL;DR:\n-- target: 'Tea.'\n" in shown
    assert "-- references: 'Tea.' / 'They have tea.'\n" in shown
    assert main(["templates", str(tmp_path / "mine.yaml"), "translation/t5", "--show"]) == 0
    assert capsys.readouterr().out.count("source: ") == 2
    assert main(["templates", "--row", '{"document": "Tea."}']) == 0
    shown = capsys.readouterr()
    assert "== summarization/chat\n[system]\nYou summarize" in shown.out and "needs the column 'summary'" in shown.out
    assert "templates, which read columns that the row does not have" in shown.err


@pytest.mark.parametrize(
    ("row", "flags", "source"),
    [
        ({"translation": {"fr": "Oui.", "en": "Yes."}}, [], "French to English: Oui."),
        ({"translation": {"fr": "Oui.", "en": "Yes."}}, ["--source_lang", "en"], "English to French: Yes."),
        ({"fr": "Oui.", "en": "Yes."}, ["--source_lang", "fr", "--target_lang", "en"], "French to English: Oui."),
    ],
)
def test_templates_take_the_languages_from_the_row_or_from_flags(row, flags, source, capsys):
    assert main(["templates", "translation/t5", "--row", json.dumps(row), *flags]) == 0
    assert f"translate {source}\n" in capsys.readouterr().out


def test_templates_names_what_it_leaves_out_and_recipes_take_the_rest(recipe_file, tmp_path, capsys):
    entries = {
        "1": {"name": "Where?", "jinja": "{{context}} {{question}} ||| {{answers.text[0]}}"},
        "2": {"name": "drawn", "jinja": "{{ [question] | choice }} ||| {{answers.text[0]}}"},
    }
    path = tmp_path / "templates.yaml"
    path.write_text(json.dumps({"dataset": "mine", "templates": entries}))
    assert main(["templates", str(path), "--row", json.dumps(question_rows(2)[1])]) == 0
    shown = capsys.readouterr()
    assert f"== {path}:Where?\nBruno was born" in shown.out and "-- target: 'Oslo'" in shown.out
    assert f"left out: template {path}:drawn: its filter choice draws at random" in shown.err
    assert main(["templates", f"{path}:drawn"]) == 2
    assert main(["check", str(recipe_file(template=f"{path}:Where?"))]) == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["translation/nothing"], 2, "Did you mean translation/"),
        (["none.yaml"], 2, "none.yaml: no such file"),
        (["summarization/t5", "--row", "none.jsonl"], 1, "--row none.jsonl: no such file"),
        (["summarization/t5", "--row", '{"document": '], 1, "--row: not JSON"),
        (["summarization/t5", "--row", '{"text": "a"}'], 2, "needs the column 'document', and the row has 'text'"),
        (
            ["summarization/t5", "--row", '{"a": "b"}', "--text_column", "c"],
            1,
            "the row has no column 'c'. It has 'a'",
        ),
        (["summarization/t5", "--row", '{"document": null}'], 2, "a value it prints is null"),
    ],
)
def test_templates_says_what_is_wrong(words, code, message, capsys):
    assert main(["templates", *words]) == code
    assert message in capsys.readouterr().err


def test_check_names_every_error_at_once_and_reads_no_weights(recipe_file, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    good = recipe_file()
    assert main(["check", str(good)]) == 0
    assert "ok, train: 24 rows, none cut" in capsys.readouterr().out
    for left_out, message in (
        (("test_file", "validation_file"), "no rows to evaluate on; set test_file or validation_file"),
        (("train_file",), "no training rows; set train_file"),
    ):
        assert main(["check", str(recipe_file(**dict.fromkeys(left_out)))]) == 1
        assert message in capsys.readouterr().err
    good = recipe_file()
    rows = question_rows(6)
    rows[2]["answers"] = {"text": [], "answer_start": []}
    write_jsonl(tmp_path / "train.jsonl", rows)
    (tmp_path / "test.jsonl").write_text("")
    assert main(["check", str(good), "--template", "question_answering/none", "--metrics", "squat"]) == 2
    errors = capsys.readouterr().err
    for message in (
        "template question_answering/none is not",
        "test.jsonl: the file is empty",
        "did you mean 'squad'",
    ):
        assert message in errors
    write_jsonl(tmp_path / "test.jsonl", question_rows(2))
    assert main(["check", str(good)]) == 1
    assert (
        "train.jsonl, line 3: template question_answering/plain: list object has no element 0"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"model_name_or_path": "/no/such/model"}, 1, "model_name_or_path /no/such/model: no such folder"),
        ({"model_name_or_path": "nobody/nothing"}, 1, "not a folder here, and not found on the hub"),
        ({"template": "summarization/plain"}, 2, "needs the column 'document'"),
        ({"metrics": "[squad, exact_match]"}, 2, "both give 'exact_match', with different values"),
        ({"metric_for_best_model": "bleu"}, 2, "metric_for_best_model bleu: the metrics give exact_match, f1"),
        ({"metrics": "[ter]", "metric_for_best_model": "ter", "greater_is_better": "true"}, 2, "when it is lower"),
        ({"template": "mine.yaml"}, 2, "template mine.yaml: no such file"),
        ({"max_source_tokens": 4}, 1, "train.jsonl, line 1: the source has"),
        ({"max_source_tokens": 600}, 1, "make 618 positions, the model has 512"),
        ({"init": "text", "init_text": "Ada lives in Turin.", "num_virtual_tokens": 2}, 2, "num_virtual_tokens is 2"),
        ({"eval_strategy": "steps", "validation_file": None}, 1, "there are no validation rows"),
        ({"train_file": None}, 1, "no training rows; set train_file"),
        ({"resume_from_checkpoint": "true"}, 2, "no checkpoint in"),
        ({"resume_from_checkpoint": "True"}, 2, "no checkpoint in"),
        ({"resume_from_checkpoint": "gone"}, 2, "resume_from_checkpoint gone: no such folder"),
        ({"resume_from_checkpoint": "{folder}"}, 2, "no checkpoint; name a folder checkpoint-N, or true"),
        ({"dataloader_drop_last": "true", "per_device_train_batch_size": 25}, 1, "leaves out all 24 training rows"),
        ({"validation_file": None, "test_file": None}, 1, "no rows to evaluate on; set test_file"),
        ({"max_source_tokens": 4, "drop_overlong": "true"}, 1, "train.jsonl: all rows were left out as too long"),
        ({"max_source_tokens": 5, "max_target_tokens": 1}, 1, "train.jsonl: 19 more rows have problems"),
    ],
)  # fmt: skip
def test_bad_input_stops_before_the_model_loads(recipe_file, tmp_path, capsys, monkeypatch, changes, code, message):
    forbid_model_loading(monkeypatch)
    changes = {name: tmp_path if value == "{folder}" else value for name, value in changes.items()}
    assert main(["train", str(recipe_file(**changes))]) == code
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            {"method": "lora", "num_virtual_tokens": None, "lora_target_modules": "[nowhere]"},
            2,
            "lora_target_modules: Target modules",
        ),
        (
            {"generation_max_length": 450},
            1,
            "max_source_tokens 96 and generation_max_length 450 make 552 positions, the model has 512",
        ),
        (
            {"loss": "kl", "teacher_template": "{folder}/long.yaml", "max_teacher_tokens": 4000},
            1,
            "the longest row in teacher_template has",
        ),
    ],
)
def test_what_would_end_in_a_traceback_is_said(recipe_file, tmp_path, capsys, changes, code, message):
    plain = Template.load("question_answering/plain")
    (tmp_path / "long.yaml").write_text(Template("Read this. " * 300 + plain.source, plain.target).to_yaml())
    changes = {name: value.format(folder=tmp_path) if name == "teacher_template" else value
               for name, value in changes.items()}  # fmt: skip
    assert main(["train", str(recipe_file(**changes))]) == code
    assert message in capsys.readouterr().err


def test_resume_from_checkpoint_false_starts_anew(recipe_file, tmp_path):
    assert main(["train", str(recipe_file(max_steps=1)), "--resume_from_checkpoint", "false"]) == 0


def test_a_start_that_an_encoder_decoders_prefix_does_not_take_is_said(recipe_file, model_folders, capsys):
    prefix = {"model_name_or_path": model_folders["t5"], "method": "prefix_tuning", "init": "text"}
    recipe = recipe_file(**prefix, init_text="Answer.", num_virtual_tokens=None, template="question_answering/t5")
    assert main(["check", str(recipe)]) == 2
    assert "init text has no effect: an encoder-decoder's prefix starts from noise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "source", "target", "message"),
    [
        ("prompt_tuning", 236, 256, None),  # each side of the model counts its own
        ("prefix_tuning", 256, 256, None),
        (
            "prompt_tuning",
            237,
            12,
            "20 virtual tokens and max_source_tokens 237 make 257 positions",
        ),
        ("prefix_tuning", 257, 12, "max_source_tokens 257 make 257 positions, the model has 256"),
        ("prompt_tuning", 96, 257, "max_target_tokens 257 make 257 positions, the model has 256"),
    ],
)
def test_an_encoder_and_a_decoder_have_positions_of_their_own(
    method, source, target, message, recipe_file, model_folders, capsys
):
    settings = {"model_name_or_path": model_folders["bart"], "num_virtual_tokens": 20, "method": method}
    recipe = recipe_file(**settings, max_source_tokens=source, max_target_tokens=target)
    assert main(["check", str(recipe)]) == (1 if message else 0)
    assert (message or "") in capsys.readouterr().err


def test_a_place_that_a_causal_prefix_does_not_have_is_said(recipe_file, capsys):
    assert main(["check", str(recipe_file(method="prefix_tuning", prefix_cross="false"))]) == 2
    assert "prefix_cross false has no effect: llama has no encoder" in capsys.readouterr().err


def test_rows_that_a_metric_would_refuse_after_generation_are_refused_before(recipe_file, tmp_path, capsys):
    rows = [{"document": f"The boat left at {hour}.", "summary": "It left.", "right": []} for hour in range(3)]
    files = {
        f"{split}_file": write_jsonl(tmp_path / f"{split}.jsonl", rows) for split in ("train", "validation", "test")
    }
    template = tmp_path / "own.yaml"
    template.write_text("source: '{{ document }}'\ntarget: '{{ summary }}'\nreferences: right\n")
    recipe = str(recipe_file(task="summarization", template=template, **files))
    assert main(["check", recipe]) == 1
    assert "test.jsonl, line 1: row has no reference answer; 2 more rows have none either" in (capsys.readouterr().err)
    assert main(["check", recipe, "--truncate", "documents"]) == 2
    assert "truncate names 'documents', and its source reads 'document'" in capsys.readouterr().err


def test_an_adapter_of_another_model_is_refused(run, recipe_file, tmp_path, capsys, tokenizer, monkeypatch):
    from helpers.models import tiny_llama

    tiny_llama(len(tokenizer), hidden_size=64).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    forbid_model_loading(monkeypatch)
    recipe = str(recipe_file(model_name_or_path=tmp_path / "other"))
    assert main(["evaluate", recipe, "--adapter", str(run)]) == 1
    assert "was trained on" in (errors := capsys.readouterr().err) and "(hidden size 64)" in errors
    assert main(["evaluate", recipe, "--adapter", str(tmp_path)]) == 1
    assert "no adapter_config.json there" in capsys.readouterr().err


def test_a_split_that_the_recipe_does_not_have_is_said(recipe_file, capsys):
    recipe = str(recipe_file(test_file=None))
    assert main(["evaluate", recipe]) == main(["render", recipe, "--split", "test"]) == 1
    assert capsys.readouterr().err.count("no test rows; set test_file") == 2


def test_an_earlier_run_is_not_written_over(run, recipe_file, capsys):
    assert main(["train", str(recipe_file())]) == 2
    assert "holds checkpoint-4 already; continue it with --resume_from_checkpoint true" in capsys.readouterr().err


def test_an_interrupted_run_ends_with_130_and_goes_on(recipe_file, tmp_path, capsys, monkeypatch):
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
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-2", "recipe.yaml"}
    monkeypatch.setattr(PromptTuningTrainer, "training_step", step)
    assert main(["train", recipe, "--save_steps", "2", "--resume_from_checkpoint", "true"]) == 0
    whole = tmp_path / "whole"
    assert main(["train", recipe, "--save_steps", "2", "--output_dir", str(whole)]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == (
        whole / "adapter_model.safetensors"
    ).read_bytes()
    assert "other settings" not in capsys.readouterr().err
    again = ["--save_steps", "2", "--resume_from_checkpoint", "true", "--seed", "7"]
    assert main(["train", recipe, *again, "--output_dir", str(whole)]) == 0
    assert "is continued with other settings than the run in its folder had: seed" in capsys.readouterr().err


def test_a_failed_save_leaves_nothing_under_a_final_name(recipe_file, tmp_path, capsys, monkeypatch):
    def full(self, folder, **kwargs):
        (folder / "adapter_config.json").write_text("half")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("prompt_tuning.engine.shared_prefix.SharedPrefixModel.save_pretrained", full)
    assert main(["train", str(recipe_file()), "--save_strategy", "no"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_a_checkpoint_that_fails_half_way_is_removed_and_the_one_before_is_kept(
    recipe_file, tmp_path, capsys, monkeypatch
):
    from prompt_tuning.training.trainer import PromptTuningTrainer

    save = PromptTuningTrainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 4:
            raise RuntimeError("unexpected pos 64 vs 0")  # what torch.save says of a full disk
        save(self, folder)

    monkeypatch.setattr(PromptTuningTrainer, "_save_optimizer_and_scheduler", full)
    # While what was written is still there; afterwards there is room again.
    monkeypatch.setattr("shutil.disk_usage", lambda run: SimpleNamespace(free=0 if [*run.glob(".*")] else 2**30))
    assert main(["train", str(recipe_file()), "--save_steps", "2"]) == 1
    assert "run: No space left on device; no partial file was left" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-2", "recipe.yaml"}


def test_usage_errors_end_with_2(capsys):
    for command in (["predict"], ["evaluate"], ["nonsense"], ["predict", "--adapter", "x", "--unknown", "1"]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2
    assert main(["train"]) == 2 and "no recipe. Name one" in capsys.readouterr().err
    assert main(["train", "none.yaml"]) == 2
    assert "none.yaml: no such recipe" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"prompt-tuning {pt.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_torch_and_has_examples(command):
    code = (
        "import sys; from prompt_tuning.cli.main import main\n"
        f"try: main({[command, '--help'] if command else ['--help']})\n"
        "finally: assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "prompt-tuning" in shown.stdout and ("examples:" in shown.stdout or not command)
    examples = shown.stdout.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert all(re.match(r"  (prompt-tuning|accelerate launch|echo) ", line) for line in examples)
