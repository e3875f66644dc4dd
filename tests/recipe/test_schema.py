"""The JSON schema of recipes: every recipe of this project fits it, and wrong names, types and values do not."""

import json
import re

import pytest
from helpers.paths import ROOT
from ruamel.yaml import YAML

from prompt_tuning.cli.main import main
from prompt_tuning.recipe.parser import RecipeParser
from prompt_tuning.recipe.schema import recipe_schema

OTHER = ("templates", "accelerate")
STUDY = ROOT / "recipes" / "compare" / "methods.yaml"
RECIPES = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in OTHER and path != STUDY
)
KINDS = {"boolean": bool, "integer": int, "number": (int, float), "string": str, "object": dict, "array": list}


@pytest.fixture(scope="module")
def schema():
    return recipe_schema()


def is_valid(value, schema):
    """Validate a value by the keywords that the schema has; an unknown keyword is a KeyError."""
    checks = {
        "type": lambda names: any(has_type(value, name) for name in ([names] if isinstance(names, str) else names)),
        "enum": lambda values: value in values,
        "const": lambda other: value == other,
        "anyOf": lambda schemas: any(is_valid(value, other) for other in schemas),
        "minimum": lambda low: value >= low,
        "exclusiveMinimum": lambda low: value > low,
        "maximum": lambda high: value <= high,
        "exclusiveMaximum": lambda high: value < high,
        "items": lambda items: not isinstance(value, list) or all(is_valid(item, items) for item in value),
        "properties": lambda settings: all(is_valid(value[name], settings[name]) for name in {*value} & {*settings}),
        "additionalProperties": lambda allowed: allowed or set(value) <= set(schema["properties"]),
    }
    notes = ("$schema", "title", "description", "default")
    return all(checks[word](content) for word, content in schema.items() if word not in notes)


def has_type(value, name):
    return isinstance(value, KINDS[name]) and isinstance(value, bool) <= (name == "boolean")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_this_project_fits(path, schema):
    assert is_valid(YAML(typ="safe", pure=True).load(path), schema)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rat": 0.1},
        {"learning_rate": "fast"},
        {"max_steps": 0},
        {"max_steps": 1.5},
        {"max_steps": True},
        {"task": "translate"},
        {"lang": ["en"]},
        {"streaming": "maybe"},
        {"lora_dropout": 1},
        {"metrics": [{"bleu": 1}]},
        {"quantization_config": ["4 bits"]},
        {"no_prefix_encoder": True},
    ],
    ids=str,
)
def test_a_wrong_name_type_or_value_does_not_fit(settings, schema):
    assert not is_valid(settings, schema)


def test_what_the_parser_takes_fits(schema):
    settings = {
        "max_steps": -1,
        "validation_size": 0.1,
        "metrics": "squad",
        "truncate": ["context"],
        "model_revision": 1871,
        "resume_from_checkpoint": True,
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }
    assert is_valid(settings, schema)
    parser = RecipeParser()
    for name, value in settings.items():
        assert parser.pair_error(name, value if isinstance(value, list | dict) else str(value)) is None


def test_the_command_prints_every_setting_with_its_help(schema, capsys):
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == schema
    assert all(setting["description"] for setting in printed["properties"].values())
    assert printed["properties"]["max_source_tokens"]["default"] == 512
    main(["train", "--help_all"])
    flags = set(re.findall(r"(?m)^  --(\w+)", capsys.readouterr().out))
    assert {name for name in flags if not name.startswith("no_")} == set(printed["properties"])
