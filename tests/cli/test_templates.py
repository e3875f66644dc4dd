"""The command templates."""

import json
import re

import pytest
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.cli.main import main


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
def test_languages_come_from_the_row_or_from_flags(row, flags, source, capsys):
    assert main(["templates", "translation/t5", "--row", json.dumps(row), *flags]) == 0
    assert f"translate {source}\n" in capsys.readouterr().out


def test_templates_that_are_left_out_are_named_and_recipes_take_the_rest(recipe_file, tmp_path, capsys):
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
        (["summarization/t5", "--row", '{"document": '], 1, "--row, line 1: not JSON"),
        (["summarization/t5", "--row", "{}"], 2, "needs the column 'document', and the row has none. Choose"),
        (["summarization/t5", "--row", '{"text": "a"}'], 2, "needs the column 'document', and the row has 'text'"),
        (
            ["summarization/t5", "--row", '{"a": "b"}', "--text_column", "c"],
            1,
            "the row has no column 'c'. It has 'a'",
        ),
        (["summarization/t5", "--row", '{"document": null}'], 2, "a value it prints is null"),
    ],
)
def test_wrong_names_and_rows_are_reported(words, code, message, capsys):
    assert main(["templates", *words]) == code
    assert message in capsys.readouterr().err


def test_what_a_terminal_does_not_show_is_written_out(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text('source: "{{ text }}\\tA: "\ntarget: x\n')
    (tmp_path / "plain.yaml").write_text("source: '{{ text }}:'\ntarget: x\n")
    assert main(["templates", str(tmp_path), "--row", '{"text": "Tea?"}']) == 0
    own, plain = capsys.readouterr().out.split("== ")[1:]
    assert "-- as it is written: 'Tea?\\tA: '\n" in own and "a space stands" not in own
    assert "as it is written" not in plain and "-- a space stands between source and target\n" in plain
    assert main(["templates", "summarization/chat", "--row", '{"document": "Tea.", "summary": "T."}']) == 0
    assert "a tokenizer's chat template writes its own tokens around the messages" in capsys.readouterr().out
