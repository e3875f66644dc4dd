"""Words of messages: numbers and nouns that agree."""

import ast
import json

import pytest
from helpers.paths import ROOT
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.cli.main import main
from prompt_tuning.support.text import SINGULAR, agreed, counted, printable, printable_json


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1200, "1,200 rows")])
def test_a_noun_agrees_with_its_number(number, text):
    assert counted(number, "row") == text


@pytest.mark.parametrize("verb", SINGULAR)
def test_a_verb_agrees_with_its_number(verb):
    assert agreed(2, f"{verb} long") == f"{verb} long" and agreed(1, f"{verb} long") == f"{SINGULAR[verb]} long"
    assert counted(1, "row", f"{verb} long") == f"1 row {SINGULAR[verb]} long"


def test_no_command_counts_one_of_several(recipe_file, tmp_path, capsys):
    recipe = str(recipe_file(num_virtual_tokens=1, max_steps=1, eval_strategy="no"))
    for name, rows in (("train", question_rows(2)[:1]), ("validation", question_rows(1)), ("test", question_rows(1))):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    adapter = str(tmp_path / "run")
    texts = []
    for command in (
        ["check", recipe],
        ["render", recipe, "-n", "1"],
        ["train", recipe],
        ["show", adapter],
        ["inspect", adapter],
        ["predict", "--adapter", adapter, "--input", str(tmp_path / "test.jsonl"), "--output", str(tmp_path / "o")],
    ):
        assert main(command) == 0
        texts += capsys.readouterr()
    texts.append((tmp_path / "run" / "README.md").read_text())
    texts.append((tmp_path / "run" / "report.html").read_text())
    shown = "\n".join(texts)
    assert "1 row" in shown and "1 virtual token" in shown and "1 of 1 row is in the training split" in shown
    for noun in ("row", "step", "virtual token", "token", "training row", "demonstration"):
        assert f" 1 {noun}s" not in shown and f"\n1 {noun}s" not in shown, noun


HOSTILE = "\x1b[2J\x9b31m\x07\x7f\r\u202egnihton\u2066"


def test_control_characters_are_written_and_all_scripts_kept():
    assert printable(f"a\tb\n{HOSTILE}") == "a\tb\n\\x1b[2J\\x9b31m\\x07\\x7f\\r\\u202egnihton\\u2066"
    texts = "Zürich 渡船 दिल्ली עברית\u200f العربية \u200c\u200d 👩\u200d🚀\ufeff\xa0"
    assert printable(texts) == texts
    assert printable("\ud800") == "\\ud800"  # No terminal's encoding has a half character.


def test_json_keeps_its_value_without_control_characters():
    value = {"a\x9b": f"\ud800{HOSTILE}", "b": "渡船"}
    line = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(line) == value and printable(line) == line and "渡船" in line


def test_the_package_prints_only_by_the_function_that_escapes():
    places = []
    for path in (ROOT / "prompt_tuning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print":
                places.append(path.name)
    assert places == ["text.py"]
