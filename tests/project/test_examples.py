"""The examples in docstrings print what they say. Those of the Python functions run in a folder with a tiny model."""

import doctest
import importlib

import pytest
from helpers.paths import ROOT

import prompt_tuning as pt

PACKAGE = ROOT / "prompt_tuning"
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in WITH_EXAMPLES]
WITH_A_MODEL = ("prompt_tuning.api",)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITH_A_MODEL])
def test_the_examples_of_a_module_print_what_they_say(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted and not results.failed


def test_the_examples_with_a_model_print_what_they_say(recipe_file, model_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(model_folders["llama"])
    pt.train(recipe_file(metrics="squad"), output_dir="runs/mine", max_steps=1)
    for name in WITH_A_MODEL:
        results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        assert results.attempted and not results.failed
