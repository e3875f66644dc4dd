import sys
import tomllib
from importlib import import_module
from types import SimpleNamespace

from helpers.paths import ROOT
from transformers import AutoConfig

from prompt_tuning.models.layered_config import LayeredLlamaConfig


def test_the_entry_point_names_the_architecture_of_an_export_to_vllm(monkeypatch, tmp_path):
    """Hold the names only: vLLM is not in this environment. docs/how-to/serve.md has the commands that ran it."""
    registered = {}
    registry = SimpleNamespace(register_model=registered.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, name = project["entry-points"]["vllm.general_plugins"]["prompt_tuning"].split(":")
    getattr(import_module(module), name)()
    ((architecture, place),) = registered.items()
    file, class_name = place.split(":")
    assert architecture == class_name
    assert f"class {class_name}(" in (ROOT / f"{file.replace('.', '/')}.py").read_text("utf-8")
    LayeredLlamaConfig(first_layered_id=7).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).first_layered_id == 7
