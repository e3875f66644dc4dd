"""The command predict: the formats it reads and writes, and bad rows."""

import copy
import io
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import pandas as pd
import pytest
import torch
from helpers.models import forbid_model_loading
from helpers.rows import question_rows, write_jsonl
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, Cohere2Config, MarianConfig

import prompt_tuning as pt
from prompt_tuning import Predictor, Template
from prompt_tuning.cli.main import main
from prompt_tuning.errors import AdapterError


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


def test_a_predictor_repeats_the_predictions_of_train(run, tmp_path):
    predictor = Predictor.load(run)
    saved = [json.loads(line)["soft_prompt"] for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert predictor(question_rows(9, 5)) == saved and predictor([]) == []


def test_a_saved_model_predicts_with_the_recipe_and_the_template_of_its_run(run, tmp_path):
    predictor = Predictor.load(run)
    predictor.model.save_pretrained(tmp_path / "saved")
    with pytest.raises(AdapterError, match=r"no recipe\.yaml and no template\.yaml there, so its template is unknown"):
        Predictor.load(tmp_path / "saved")
    shutil.copy(run / "recipe.yaml", tmp_path / "saved")
    with pytest.raises(AdapterError, match=r"no template\.yaml there.*copy recipe\.yaml and template\.yaml"):
        Predictor.load(tmp_path / "saved")
    shutil.copy(run / "template.yaml", tmp_path / "saved")
    assert Predictor.load(tmp_path / "saved")(question_rows(9, 5)) == predictor(question_rows(9, 5))


@pytest.mark.parametrize("architecture", ["cohere2", "marian"])
def test_threads_share_a_predictor(architecture, tokenizer):
    """Share it safely, although PEFT's `generate` changes the running model and a hook scales Marian's input."""
    torch.manual_seed(3)
    size = len(tokenizer)
    common = {"pad_token_id": 0, "eos_token_id": 1}
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
    assert len(set(chain(*expected))) > 2
    second = replace(predictor)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(predictor, batches)) == expected
        together = threads.map(
            lambda pair: pair[0](pair[1]), zip([predictor, second] * len(batches), batches * 2, strict=True)
        )
        assert list(together) == expected * 2
    assert copy.deepcopy(predictor)(batches[0]) == expected[0]


def test_a_run_predicts_without_the_hardware_and_services_of_its_training(run, monkeypatch):
    saved = [json.loads(line)["soft_prompt"] for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    recipe = (run / "recipe.yaml").read_text().replace("use_cpu: true\n", "")
    with (run / "recipe.yaml").open("w") as file:  # These are settings of a training on a GPU.
        file.write(recipe + "bf16: true\ntf32: true\nreport_to: wandb\ndeepspeed: gone.json\n")
    assert Predictor.load(run)(question_rows(9, 5)) == saved


def test_predict_refuses_tables_and_reports_a_replaced_column(run, tmp_path, capsys):
    table = tmp_path / "rows.xlsx"
    table.write_bytes(b"PK")
    assert main(["predict", "--adapter", str(run), "--input", str(table)]) == 1
    call = f'pandas.read_excel("{table}", dtype=str, keep_default_na=False).to_csv("{tmp_path}/rows.csv", index=False)'
    assert f"{table}: .xlsx is not read. Convert it in Python: `{call}`" in capsys.readouterr().err
    own = {"prediction": "x", "score": 5, "at_limit": 1}
    rows = write_jsonl(tmp_path / "rows.jsonl", [row | own for row in question_rows(2)])
    assert main(["predict", "--adapter", str(run), "--input", str(rows), "--score"]) == 0
    shown = capsys.readouterr()
    for name in ("prediction", "score"):
        assert f"2 of 2 rows had a column {name!r}, which is replaced" in shown.err
    assert "at_limit" not in shown.err and "NaN" not in shown.err
    assert json.loads(shown.out.splitlines()[0])["at_limit"] == 1


def test_predict_reads_patterns_and_a_pipe_with_the_name_of_a_file(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = question_rows(4)
    (tmp_path / "parts").mkdir()
    write_jsonl(tmp_path / "parts" / "1.jsonl", rows[:2])
    write_jsonl(tmp_path / "parts" / "2.jsonl", rows[2:])
    command = ["predict", "--adapter", str(run), "--input"]
    capsys.readouterr()
    assert main([*command, "~/parts/*.jsonl"]) == 0
    predicted = capsys.readouterr().out
    assert [json.loads(line)["id"] for line in predicted.splitlines()] == ["0", "1", "2", "3"]
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"cat {tmp_path}/parts/*.jsonl > {pipe}"]):
        assert main([*command, str(pipe)]) == 0
    assert capsys.readouterr().out == predicted
    for name in ("1.txt", "2.txt"):
        (tmp_path / "parts" / name).write_text("a text")
    assert main([*command, "~/parts"]) == 1 and "error: ~/parts: it is a folder. " in capsys.readouterr().err
    assert main([*command, "~/parts/*.txt"]) == 1
    assert "it matches 2 files of plain text. Name one of them." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"context": "\\ud800", "question": "b"}', "line 2: half a character"),
        ("null", "line 2: expected a JSON object, found null"),
        (f'{{"context": {"[" * 100_000}', "line 2: lists and objects inside each other"),
        (f'{{"context": {"9" * 5000}}}', "line 2: a number of more than 4300 digits"),
        ('{"context": "\0"}', "line 2: a NUL byte"),
    ],
)
def test_standard_input_is_read_as_files_are(run, capsys, monkeypatch, second, message):
    text = f'{{"context": "a", "question": "b"}}\n{second}\n'
    text = f"{text}{text.splitlines()[0]}\n"
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["predict", "--adapter", str(run)]) == 1
    printed = capsys.readouterr()
    assert f"error: standard input, {message}" in printed.err
    assert "standard input: 1 row without a prediction" in printed.err
    # The rows before and after it are answered.
    assert len(printed.out.splitlines()) == 2


def test_predict_reads_a_file_before_it_loads_a_model(run, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    rows = write_jsonl(tmp_path / "rows.jsonl", question_rows(20))
    rows.write_text(rows.read_text() + "[]\n")
    assert main(["predict", "--adapter", str(run), "--input", str(rows)]) == 1
    assert "rows.jsonl, line 21: expected a JSON object, found list" in capsys.readouterr().err


def test_predict_names_a_missing_file(run, tmp_path, capsys):
    assert main(["predict", "--adapter", str(run), "--input", "none.jsonl"]) == 1
    assert "error: none.jsonl: no such file (looked in " in capsys.readouterr().err
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
    errors = capsys.readouterr().err
    assert "reads the column 'context', and " in errors and "rows.csv, line 2, has 'question'" in errors
    (tmp_path / "lines.txt").write_text("Where is Ada?\n")
    assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "lines.txt")]) == 1
    assert "plain text has one column" in capsys.readouterr().err


def test_predict_writes_to_a_pipe_or_a_link_and_keeps_it(run, tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", question_rows(2))
    command = ["predict", "--adapter", str(run), "--input", str(rows), "--output"]
    (tmp_path / "kept.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to("kept.jsonl")
    assert main([*command, str(tmp_path / "link.jsonl")]) == 0 and (tmp_path / "link.jsonl").is_symlink()
    written = (tmp_path / "kept.jsonl").read_text()
    assert len(written) > 10
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        assert main([*command, str(pipe)]) == 0
        assert reader.communicate()[0] == written and pipe.is_fifo()
    assert main([*command, str(tmp_path)]) == 1 and f"{tmp_path}: it is a folder" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "kept.jsonl" / "x")]) == 1
    assert "no partial file was left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"context": "a", "question": "b"}\n{"context": "a"}\n', "line 2: template"),
        ('{"context": "a"}\n', "line 1, has 'context'"),
        ('{"context": "a", "question": "b"}\n{"context": \n', "line 2: not JSON"),
        ('{"context": "a", "question": null}\n', "line 1: template"),
        ("Where is Ada?\n", "line 1: not JSON"),
        ("", "the file is empty"),
        ('[\n{"context": "a", "question": "b"}]', "line 1: not JSON"),
        ('{"context": "\\ud800", "question": "b"}', "line 1: half a character, '\\ud800', is not text"),
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
    assert not out.exists() and not list(tmp_path.glob(".partial-*"))
