"""What the text of a command line and its files show to be wrong is reported before a large library is imported."""

import importlib
import io
import json
import subprocess
import sys
import time

import pytest

from prompt_tuning.cli.main import main
from prompt_tuning.cli.processes import announce_imports

LARGE = {"accelerate", "datasets", "evaluate", "huggingface_hub", "numpy", "peft", "torch", "transformers"}
# Run each command line of standard input in one process, and print its exit code, its errors and what it imported.
RUN = f"""
import contextlib, io, json, sys
from prompt_tuning.cli.main import main
for command in json.load(sys.stdin):
    errors, imported = io.StringIO(), set(sys.modules)
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(command)
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, errors.getvalue(), sorted({LARGE!r} & (set(sys.modules) - imported))]))
"""


@pytest.fixture(scope="module")
def run_commands():
    def run(commands):
        words = json.dumps([list(map(str, command)) for command in commands])
        done = subprocess.run([sys.executable, "-c", RUN], input=words, capture_output=True, text=True, check=True)
        return list(map(json.loads, done.stdout.splitlines()))

    return run


def test_a_wrong_recipe_is_refused_before_a_large_import(run_commands, recipe_file, tmp_path):
    broken, empty = tmp_path / "broken.yaml", tmp_path / "empty.jsonl"
    empty.touch()
    broken.write_text("source: '{{ question }} {% if'\ntarget: '{{ answers[0] }}'\n", encoding="utf-8")
    wrong = [
        ({}, ["--lerning_rate", "1"], "command line: unknown setting lerning_rate. Did you mean learning_rate?"),
        ({"learning_rat": 1}, [], "unknown setting learning_rat. Did you mean learning_rate?"),
        ({"learning_rate": "high"}, [], "invalid float value: 'high'"),
        ({"learning_rate": -1}, [], "learning_rate is -1.0; it must be at least 0"),
        ({"optim": "best"}, [], "invalid choice: 'best' (choose from "),
        ({"debug": "[all]"}, [], "invalid choice: 'all' (choose from "),
        ({"bf16": "maybe"}, [], "Truthy value expected: got maybe"),
        ({"init": "text"}, [], "init is text but init_text is missing"),
        ({"save_strategy": "best"}, [], "save_strategy best needs evaluations to choose by"),
        ({"streaming": "true"}, [], "streaming: a stream has no known length. Set max_steps."),
        ({"train_file": "gone.jsonl"}, [], "gone.jsonl: no such file (looked in "),
        ({"train_file": empty}, [], "empty.jsonl: the file is empty. Name a file with rows."),
        ({"adapter": "gone"}, [], "adapter gone: no adapter_config.json there"),
        ({"template": broken}, [], "broken.yaml: unexpected 'end of template'"),
        ({"loss": "kl", "teacher_template": broken}, [], "broken.yaml: unexpected 'end of template'"),
        ({"template": "question_answering/plane"}, [], "question_answering/plane"),
    ]
    commands = []
    for number, (changes, flags, _) in enumerate(wrong):
        settings = {"max_steps": -1} | changes
        path = recipe_file(**settings).rename(tmp_path / f"{number}.yaml")
        commands.append(["train", path, *flags])
    path = recipe_file(train_file="gone.jsonl")
    for command in ("check", "evaluate", "render"):
        commands.append([command, path])
    commands.append(["ensemble", path, "--adapters", "a", "b"])
    messages = [message for _, _, message in wrong] + ["gone.jsonl: no such file"] * 4
    for command, message, (code, errors, imported) in zip(commands, messages, run_commands(commands), strict=True):
        assert (code, imported) == (2, []) and message in errors, (command, errors)


def test_a_folder_or_file_that_is_not_there_is_reported_before_a_large_import(run_commands, recipe_file, tmp_path):
    recipe, gone = recipe_file(), tmp_path / "gone"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "table.xlsx").touch()
    (tmp_path / "empty.jsonl").touch()
    commands = [
        (["predict", "--adapter", gone], "gone: no adapter_config.json there"),
        (["predict", "--adapter", gone, "--input", "gone.jsonl"], "error: gone.jsonl: no such file (looked in "),
        (["init", tmp_path / "empty.jsonl"], "empty.jsonl: the file is empty. Name a file with rows."),
        (["init", "gone.csv"], "error: gone.csv: no such file (looked in "),
        (["init", "gone/*.jsonl"], "error: gone/*.jsonl: no such file (looked in "),
        (["init", tmp_path / "table.xlsx"], "table.xlsx: .xlsx is not read. Convert it in Python"),
        (["evaluate", recipe, "--predictions", "gone.jsonl"], "error: gone.jsonl: no such file (looked in "),
        (["inspect", gone], "gone: no adapter_config.json there"),
        (["inspect", tmp_path / "model"], "model: it is a whole model"),
        (["evaluate", recipe, "--adapter", gone], "gone: no adapter_config.json there"),
        (["ensemble", recipe, "--adapters", gone, gone], "gone: no adapter_config.json there"),
        (["show", gone], "gone: no results.json there"),
        (["report", gone], "gone: no results.json there"),
    ]
    results = run_commands([command for command, _ in commands])
    for (command, message), (code, errors, imported) in zip(commands, results, strict=True):
        assert (code, imported) == (1, []) and message in errors, (command, errors)


def test_an_output_folder_that_is_not_free_is_refused_before_a_large_import(run_commands, recipe_file, tmp_path):
    resumable, finished, of_others = (tmp_path / name for name in ("resumable", "finished", "of_others"))
    (resumable / "checkpoint-4").mkdir(parents=True)
    finished.mkdir()
    (finished / "results.json").write_text('{"seed": 1, "task": "question_answering"}')
    of_others.mkdir()
    (of_others / "README.md").touch()
    messages = {
        resumable: "holds checkpoint-4 already; continue it with --resume_from_checkpoint true",
        finished: "holds a finished run already; name another --output_dir",
        of_others: "it holds README.md, which would be replaced, and is not a run of prompt-tuning",
    }
    results = run_commands([["train", recipe_file(), "--output_dir", folder] for folder in messages])
    for message, (code, errors, imported) in zip(messages.values(), results, strict=True):
        assert (code, imported) == (2, []) and message in errors, errors


def test_a_misspelt_run_is_reported_before_the_hub_is_asked(run_commands, recipe_file, tmp_path, monkeypatch):
    recipe = recipe_file(adapter="runs/mnie")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "recipe.yaml").touch()
    monkeypatch.chdir(tmp_path)
    commands = [["predict", "--adapter", "runs/mnie"], ["inspect", "runs/mnie"], ["train", recipe]]
    for code, errors, imported in run_commands(commands):
        assert code in (1, 2) and imported == [] and "runs/mnie: no adapter_config.json there" in errors


def test_commands_that_share_a_run_report_a_wrong_line_before_torch(run_commands, tmp_path):
    gone, out = tmp_path / "gone", tmp_path / "out"
    out.mkdir()
    entry = {"ids": [1], "text_ids": [], "template": "", "stop": [], "max_tokens": 1, "score": None}
    prompts = {"num_embeddings": 9, "tasks": {"qa": entry | {"source_checksum": 64 * "0"}}}
    (out / "prompts.json").write_text(json.dumps(prompts))
    rows = tmp_path / "facts.json"
    rows.write_text("{}")
    send = ["requests", out, "--task", "qa", "--url", "http://localhost:9/v1"]
    commands = [
        (["card", gone], 1, "gone: no results.json there"),
        (["card", rows, "--example", "row.json"], 1, "--example needs the trained model"),
        (["push", gone, "--repo_id", "me/x"], 1, "gone: no adapter_config.json"),
        (["push", gone, "--repo_id", "me/x/y"], 1, "--repo_id me/x/y: not a name that the hub takes"),
        (["export", gone, tmp_path / "new"], 1, "gone: no adapter_config.json there"),
        (["export", gone, out], 2, "out: it exists already"),
        (["import-gguf", gone, out], 2, "out: it exists already"),
        (["export", f"a={gone}", f"a={out}", tmp_path / "new"], 2, "another run has the name a"),
        (["requests", gone, "--task", "qa", "--input", rows], 1, "gone: no prompts.json there"),
        (["requests", out, "--task", "qb", "--input", rows], 1, "no task 'qb'. It has qa."),
        (["requests", out, "--task", "qa", "--input", "gone.jsonl"], 1, "gone.jsonl: no such file"),
        ([*send, "--input", rows], 2, "--output: sent requests need a file"),
    ]
    results = run_commands([command for command, _, _ in commands])
    for (command, expected, message), (code, errors, imported) in zip(commands, results, strict=True):
        assert code == expected and message in errors, (command, errors)
        # `push` lets the hub's library check the name of the repository.
        assert imported == (["huggingface_hub"] if command == commands[2][0] else []), command


def test_commands_that_read_no_rows_import_no_large_library(run_commands, tmp_path):
    commands = [["--version"], ["train", "--help_all"], ["env"], ["templates"], ["train"], ["train", "none.yaml"]]
    commands += [["show", tmp_path], ["predict", "--adapter"]]
    codes = [0, 0, 0, 0, 2, 2, 1, 2]
    for command, expected, (code, _, imported) in zip(commands, codes, run_commands(commands), strict=True):
        assert (code or 0, imported) == (expected, []), command


def test_the_package_imports_no_large_library():
    code = f"import sys, prompt_tuning; assert not {LARGE!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_terminal_says_that_libraries_are_loaded_if_that_takes_long(monkeypatch, tmp_path):
    (tmp_path / "slow_library.py").write_text("import time\ntime.sleep(0.5)\n")
    monkeypatch.syspath_prepend(tmp_path)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with announce_imports(0.1):
        time.sleep(0.3)
    with announce_imports(0.1):
        importlib.import_module("slow_library")
    assert shown.getvalue() == ""
    shown.isatty = lambda: True
    with announce_imports(0.1):
        time.sleep(0.3)
    assert shown.getvalue() == ""
    del sys.modules["slow_library"]
    with announce_imports(0.1):
        importlib.import_module("slow_library")
    assert shown.getvalue() == "loading libraries ...\n"


def test_env_names_versions_memory_and_devices_and_no_token(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_AbCdEfGh12")
    monkeypatch.setenv("HF_ENDPOINT", "https://ann:secret@hub.example")
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert "- torch: " in shown and " GiB" in shown and "- GPU: " in shown
    assert "- HF_ENDPOINT: https://***@hub.example" in shown and "AbCdEfGh12" not in shown
