"""A JSON file of a stranger costs megabytes at most, and cannot end a command with a traceback."""

import json
import shutil

import pytest
from helpers.paths import ROOT

from prompt_tuning.cli.main import main
from prompt_tuning.errors import DataError
from prompt_tuning.support import json_values
from prompt_tuning.support.files import read_json, read_json_lines
from prompt_tuning.support.json_types import Place
from prompt_tuning.support.tables import markdown_table, text_table

TOO_DEEP = "[" * 100_000 + "]" * 100_000
DEEP = "[" * 900 + "]" * 900  # Python's reader takes it, and what walks over it stops.
LONG = "9" * 5000


@pytest.mark.parametrize("text", [TOO_DEEP, DEEP, LONG, '{"a": ' * 100_000, '{"a": ' * 500 + "1" + "}" * 500])
def test_json_that_is_too_deep_or_too_long_is_an_error_with_the_file(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(f'{{"x": {text}}}\n')
    with pytest.raises(DataError, match=r"results\.json: not JSON"):
        read_json(path)
    with pytest.raises(DataError, match=r"results\.json, line 1: not JSON"):
        read_json_lines(path)


def test_no_more_of_a_file_is_read_than_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("prompt_tuning.support.files.MAX_BYTES", 100)
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"x": "y" * 100}))
    for read in (read_json, read_json_lines):
        with pytest.raises(DataError, match="larger than 100 bytes"):
            read(path)


def test_no_more_lists_and_objects_are_made_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("prompt_tuning.support.json_values.json.loads", None)
    path = tmp_path / "log_history.json"
    path.write_text(f"[{'[],' * 200_000}{'{},' * 100_000}1]")
    for read in (read_json, read_json_lines):
        with pytest.raises(DataError, match="more than 300,000 lists and objects"):
            read(path)


def test_a_value_that_is_not_a_text_is_not_parsed():
    with pytest.raises(TypeError):
        json_values.parse_json(3)


def test_nested_values_up_to_the_limit_are_read(tmp_path):
    depth = json_values.MAX_DEPTH - 1
    path = tmp_path / "results.json"
    path.write_text(f'{{"x": {"[" * depth}{"]" * depth}, "y": {[[1]] * 1000}}}')
    assert len(read_json(path)["y"]) == 1000


@pytest.mark.parametrize("file", ["results.json", "log_history.json", "predictions/test.jsonl"])
@pytest.mark.parametrize("text", [TOO_DEEP, LONG], ids=["deep", "long"])
def test_a_run_folder_with_such_json_is_an_error_of_one_line(file, text, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "fixtures" / "v0.1.0" / "runs" / "prompt_tuning", run)
    (run / file).write_text(f'{{"row": {text}}}\n')
    for command in ("show", "report", "card"):
        assert main([command, str(run)]) in (0, 1), command
    lines = capsys.readouterr().err.splitlines()
    assert any("not JSON" in line for line in lines)
    assert max(map(len, lines)) < 500


def test_a_long_name_is_copied_neither_for_each_of_its_entries_nor_for_each_row():
    name = "n" * 10**6
    assert len(Place("results.json", "adapters").within(name).within("f1").key) < 1000
    rows = [(str(number), "1.0") for number in range(100)]
    for table in (text_table, markdown_table):
        assert len(table((name, "F1"), rows)) < len(name)
