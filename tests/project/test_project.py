"""Every public name has a docstring, every package offers what it lists, and citation and licence are right."""

import importlib
import inspect
import pkgutil
import tomllib
from itertools import chain

import pytest
import yaml
from helpers.paths import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

import prompt_tuning

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_RUN_LOWEST = ("bitsandbytes", "mkdocs-material", "mkdocstrings-python", "torchao", "types-tabulate")


@pytest.mark.parametrize("name", prompt_tuning.__all__)
def test_every_public_name_and_method_has_a_docstring(name):
    public = getattr(prompt_tuning, name)
    assert public.__doc__ and not public.__doc__.startswith(
        f"{name}("
    )  # A dataclass without a docstring gets its signature.
    members = vars(public).items() if inspect.isclass(public) else ()
    functions = {key: inspect.unwrap(getattr(public, key)) for key, value in members if not key.startswith("_")}
    undocumented = [key for key, value in functions.items() if inspect.isroutine(value) and not value.__doc__]
    assert undocumented == []


def test_the_package_lists_what_it_exports():
    listed = prompt_tuning.__doc__.split("\n\n")[1]
    assert [name for name in prompt_tuning.__all__ if name not in listed] == []


def test_every_package_offers_the_names_that_it_lists():
    for module in pkgutil.iter_modules(prompt_tuning.__path__, "prompt_tuning."):
        package = importlib.import_module(module.name) if module.ispkg else None
        for name in getattr(package, "__all__", ()):
            assert getattr(package, name) is not None, f"{module.name}.{name}"


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-latest.txt"])
def test_constraints_pin_the_versions_that_decide_results(name):
    # An empty file lets pip take any torch, such as a CUDA build of gigabytes.
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins.keys() == {"torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "huggingface_hub"}


def test_the_lowest_constraints_are_the_lower_bounds_of_the_requirements():
    pins = {}
    for line in (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            pins[name] = Version(version)
    bounds = {}
    for text in (*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())):
        requirement = Requirement(text)
        lower = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        if requirement.name not in NOT_RUN_LOWEST:
            assert bounds.setdefault(requirement.name, *lower) == lower[0], text
    assert pins == bounds


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # The format requires these.
    assert citation["cff-version"] == "1.2.0" and citation["authors"] == [{"name": "The prompt_tuning authors"}]
    assert citation["version"] == prompt_tuning.__version__ and citation["license"] == PROJECT["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_forms_of_issues_are_whole_and_a_bug_shows_its_environment():
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys(), path
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert fields and all(field["id"] and field["attributes"]["label"] for field in fields), path
    assert "`prompt-tuning env`" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
