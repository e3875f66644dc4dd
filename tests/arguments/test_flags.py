"""The file of flags says what the dataclasses say."""

import json
from importlib.metadata import version

import pytest
from transformers.hf_argparser import string_to_bool

from prompt_tuning.arguments import flags
from prompt_tuning.arguments.flags import FALSE, FILE, TRUE, list_flags, read_flags, truth_value


def test_the_file_is_that_of_the_dataclasses():
    saved = json.loads(FILE.read_text("utf-8"))
    if saved["transformers"] != version("transformers"):
        pytest.skip(f"the file is for transformers {saved['transformers']}")
    advice = "run `python -m prompt_tuning.arguments.flags > prompt_tuning/arguments/flags.json`"
    assert saved["flags"] == list_flags(), advice


def test_another_transformers_is_read_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(flags, "FILE", tmp_path / "flags.json")
    (tmp_path / "flags.json").write_text('{"transformers": "0", "flags": []}')
    assert read_flags.__wrapped__() == list_flags() != []


def test_truth_values_are_those_of_transformers():
    for word in (*TRUE, *FALSE, "No", "TRUE"):
        assert truth_value(word) == string_to_bool(word)
    errors = []
    for parse in (truth_value, string_to_bool):
        with pytest.raises(Exception, match="Truthy") as caught:
            parse("maybe")
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
