"""--json prints one object for programs on standard output, and words for people on standard error."""

import json
import logging

import pytest
from helpers.rows import write_jsonl

from prompt_tuning.cli.main import COMMANDS, _parser, main


@pytest.fixture
def answer(capsys):
    """Return a function that runs a command with --json, and returns its exit code, its object and its words."""

    def run_command(*words):
        capsys.readouterr()
        code = main([*map(str, words), "--json"])
        captured = capsys.readouterr()
        assert captured.out.count("\n") == 1
        return code, json.loads(captured.out), captured.err

    yield run_command
    logging.getLogger("prompt_tuning").handlers[:] = []


def test_every_command_takes_json():
    commands = _parser().get_default("commands").choices
    assert len(commands) == len(COMMANDS)
    assert all("--json" in parser.format_help() for parser in commands.values())


def test_commands_of_a_run_print_what_the_run_holds(run, recipe_file, tmp_path, answer):
    results = json.loads((run / "results.json").read_text())
    expected = {"folder": str(run)} | results
    assert answer("show", run)[:2] == (0, expected)
    words = answer("show", run)[2]
    assert "hard prompt alone" in words and "next: prompt-tuning predict" in words
    assert answer("report", run)[1] == {"report": str(run / "report.html")}
    assert answer("card", run)[1] == {"card": str(run / "README.md")}
    files = answer("push", run, "--repo_id", "me/x", "--base_model", "me/base", "--dry_run")[1]["files"]
    assert "adapter_model.safetensors" in files
    assert answer("inspect", run)[1]["virtual_tokens"] == 6
    output = tmp_path / "predicted.jsonl"
    facts = answer("predict", "--adapter", run, "--input", tmp_path / "test.jsonl", "--output", output)[1]
    assert facts["rows"] == 9 and facts["output"] == str(output) and len(output.read_text().splitlines()) == 9
    facts = answer("evaluate", recipe_file(), "--output_dir", tmp_path / "hard")[1]
    assert facts["folder"] == str(tmp_path / "hard") and facts["hard_prompt"] == results["hard_prompt"]


def test_a_training_prints_its_log_on_standard_error(recipe_file, tmp_path, answer):
    code, facts, words = answer("train", recipe_file(method="none", num_virtual_tokens=None))
    assert code == 0 and facts["rows"] == 9 and "written to" in words
    assert facts["folder"] == str(tmp_path / "run")


def test_commands_without_a_run_print_their_facts(recipe_file, tmp_path, answer):
    recipe = str(recipe_file())
    assert answer("check", recipe)[1]["recipes"][recipe]["ok"]
    (tmp_path / "wrong.yaml").write_text("task: nothing\n")
    code, facts, words = answer("check", tmp_path / "wrong.yaml")
    assert code == 2 and "nothing" in facts["recipes"][str(tmp_path / "wrong.yaml")]["errors"][0]
    assert "error: " in words
    assert len(answer("render", recipe, "-n", "2")[1]["rows"]) == 2
    assert answer("schema")[1]["$schema"].startswith("https://json-schema.org")
    assert answer("env")[1]["prompt-tuning"]
    assert "question_answering/plain" in answer("templates", "question_answering")[1]["templates"]


def test_rows_and_the_object_do_not_share_standard_output(tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}]) or tmp_path / "rows.jsonl"
    assert main(["predict", "--adapter", "none", "--input", str(rows), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "--json needs --output FILE" in captured.err
