"""All code that can run Python of others is called in support/trust.py, which takes the caller's word for it."""

import ast
import functools
import inspect

import pytest
from datasets import load_dataset
from helpers.paths import ROOT

from prompt_tuning.errors import RecipeError
from prompt_tuning.metrics.loading import load_metrics

TRUST = ROOT / "prompt_tuning" / "support" / "trust.py"
# PEFT's configurations and adapters are JSON and safetensors.
WITHOUT_CODE = {"PeftConfig", "EncoderDecoderPrefixConfig", "TrainedTokensConfig"}
LOADERS = {"from_pretrained", "from_config"}
READERS_OF_ROWS = {"data/files.py", "data/loading.py", "data/saved.py"}


@functools.cache
def calls():
    """Return the module, the called object, the called name and the keywords of every call in the package."""
    found = []
    for path in sorted((ROOT / "prompt_tuning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
                owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
                found.append((path, owner, name, {keyword.arg for keyword in node.keywords}))
    return found


def test_every_load_that_can_run_code_is_in_one_module():
    places = set()
    for path, owner, name, _ in calls():
        if name in LOADERS or (owner, name) == ("evaluate", "load"):
            places.add((path, owner, name))
    elsewhere = {place for place in places if place[0] != TRUST and place[1] not in WITHOUT_CODE}
    assert elsewhere == set()
    assert len(places - elsewhere) >= 3 + len(WITHOUT_CODE)


def test_rows_are_read_by_a_library_that_runs_no_script():
    readers = set()
    for path, _, name, keywords in calls():
        if name == "load_dataset":
            readers.add(path.relative_to(ROOT / "prompt_tuning").as_posix())
            assert "trust_remote_code" not in keywords
    assert readers == READERS_OF_ROWS and "trust_remote_code" not in inspect.signature(load_dataset).parameters


def test_no_file_is_unpickled():
    loads = [keywords for _, owner, name, keywords in calls() if (owner, name) == ("torch", "load")]
    assert loads and all("weights_only" in keywords for keywords in loads)
    assert not [path for path, owner, name, _ in calls() if "pickle" in owner and name in ("load", "loads")]


@pytest.mark.parametrize("name", ["mine.py", "folder/mine", "someone/length"])
def test_a_metric_that_is_not_shipped_needs_trust(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for script in ("mine.py", "folder/mine/mine.py", "squad/squad.py"):
        (tmp_path / script).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / script).write_text("raise RuntimeError('it ran')")
    with pytest.raises(RecipeError, match=f"metric '{name}': it is Python code .* --trust_remote_code"):
        load_metrics(["squad", name])
    assert load_metrics(["squad"])(["a"], [["a"]])["f1"] == 100
