"""The table of methods: complete, consistent with PEFT and with the settings, and asked by every other module."""

import ast
import re
from dataclasses import fields
from itertools import chain
from typing import get_args, get_type_hints

import pytest
from helpers.paths import ROOT
from peft import PeftType

from prompt_tuning.arguments.methods import METHODS, find_method, methods_of_setting
from prompt_tuning.arguments.prompt_args import Init, PromptArguments
from prompt_tuning.models.prompts import CONFIGS

ADAPTERS = [row.name for row in METHODS.values() if row.trains and not row.trains_whole_model]
# These names of methods are also values of other settings.
WORDS = {"none", "full"}


def test_a_recipe_takes_the_methods_of_the_table():
    assert get_args(get_type_hints(PromptArguments)["method"]) == ("auto", *METHODS)


def test_settings_and_inits_of_the_table_are_those_of_a_recipe():
    settings = set(chain(*(row.settings for row in METHODS.values())))
    assert settings <= {field.name for field in fields(PromptArguments)}
    assert all(set(row.refused_inits) < set(get_args(Init)) for row in METHODS.values())
    assert methods_of_setting("residual") == ["prompt_tuning"] and methods_of_setting("seed") == []
    assert METHODS["lora"].takes("lora_r") and METHODS["lora"].takes("seed") and not METHODS["lora"].takes("init")


def test_every_method_that_adds_something_has_a_type_and_a_configuration():
    assert list(CONFIGS) == ADAPTERS
    assert all(name.upper() in PeftType.__members__ for name in ADAPTERS)


@pytest.mark.parametrize("row", METHODS.values(), ids=METHODS)
def test_a_saved_adapter_continues_as_a_method_that_continues_as_itself(row):
    assert METHODS[row.continues_as].continues_as == row.continues_as


def test_a_type_of_peft_is_found_and_one_without_a_row_adds_layers():
    assert find_method(PeftType.P_TUNING) is METHODS["p_tuning"] and find_method("full") is METHODS["full"]
    other = find_method(PeftType.IA3)
    assert (other.name, other.trains_layers, other.card_description) == ("ia3", True, "PEFT's ia3")


def test_other_programs_load_embeddings_and_lora_but_no_prefix():
    servers = {name: row.servers({}) for name, row in METHODS.items()}
    assert servers["cpt"] == servers["prompt_tuning"] == "any engine, after export"
    assert servers["prefix_tuning"] == "PEFT" and servers["none"] == "any engine"
    assert METHODS["lora"].servers({"lora_use_rslora": True}) == "engines that load LoRA"
    assert METHODS["lora"].servers({"lora_use_dora": True}) == "PEFT"
    ending = {"trained_text": "ending"}
    assert METHODS["prompt_tuning"].servers(ending) == servers["prompt_tuning"]
    assert METHODS["prefix_tuning"].servers(ending) == "no other program"
    assert METHODS["prompt_tuning"].servers({**ending, "layer_vectors": True}).startswith("vLLM with a plug-in")


def names_compared(tree):
    """Yield each comparison with the name of a method, or with a type of PEFT."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "PeftType":
                yield node
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.lower() in METHODS:
                about_methods = any(word in ast.unparse(node) for word in ("method", "peft_type"))
                if part.value not in WORDS or about_methods:
                    yield node


def test_no_other_module_compares_the_name_of_a_method():
    compared = []
    for path in sorted((ROOT / "prompt_tuning").rglob("*.py")):
        for node in names_compared(ast.parse(path.read_text("utf-8"))):
            compared.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    for path in sorted((ROOT / "prompt_tuning" / "reports").glob("*.md")):
        compared += re.findall(r"method [!=]= .*", path.read_text("utf-8"))
    assert not compared
    for text in ('x.method == "none"', 'name in ("lora", "other")', "kind != PeftType.CPT", 'peft_type == "LORA"'):
        assert list(names_compared(ast.parse(text))), text
