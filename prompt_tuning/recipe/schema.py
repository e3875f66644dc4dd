"""Describe recipes by a JSON schema, with which editors complete and check them."""

from __future__ import annotations

import argparse
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.recipe.parser import RecipeParser
from prompt_tuning.recipe.ranges import RANGES, Range

DIALECT = "https://json-schema.org/draft/2020-12/schema"
OWN_BLOCKS = (ModelArguments, DataArguments, PromptArguments)
JSON_TYPES = {bool: ("boolean",), int: ("integer",), float: ("number",), dict: ("object",)}
TEXT = ("string", "number", "boolean")
"""A setting that is a text takes every scalar as it is written, such as `model_revision: 1871`."""


def recipe_schema() -> dict[str, Any]:
    """Return a JSON schema of a recipe: the type, the values and the help text of every setting.

    A recipe that fits it may still contradict itself, which `check` reports. It is stricter than the commands in one
    thing: a switch is `true` or `false`, not `yes` or `no`.
    """
    hints: dict[str, Any] = {}
    for block in (*OWN_BLOCKS, PromptTuningArguments):
        hints |= get_type_hints(block)
    own_names = {name for block in OWN_BLOCKS for name in get_type_hints(block)}
    properties = {}
    for action in RecipeParser()._actions:  # noqa: SLF001 - no public name
        if action.nargs == 0:
            continue  # It is the flag --no_NAME, and a recipe sets NAME.
        properties[action.dest] = _setting_schema(action, hints[action.dest])
        if action.dest in own_names and action.default is not None:
            # The defaults of Trainer's settings depend on other settings, such as learning_rate on method.
            properties[action.dest]["default"] = action.default
    return {
        "$schema": DIALECT,
        "title": "A recipe of prompt-tuning",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _setting_schema(action: argparse.Action, hint: Any) -> dict[str, Any]:
    """Return the schema of one setting, whose flag has the choices and whose field has the type."""
    schema: dict[str, Any] = {"description": " ".join((action.help or "").split())}
    if action.choices is not None and action.nargs is None:
        return schema | {"enum": [*action.choices]}
    names = list(dict.fromkeys(_type_names(hint)))
    schema["type"] = names[0] if len(names) == 1 else names
    if "array" in names:
        schema["items"] = {"type": [*TEXT]}
    return schema | _limits(action.dest)


def _type_names(hint: Any) -> list[str]:
    """Return the names that JSON has for a type, or for every type of a union except None."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        names: list[str] = []
        for member in get_args(hint):
            names += [] if member is type(None) else _type_names(member)
        return names
    if origin is list:
        return ["array", *TEXT]  # A list of one item may be written as the item.
    return [*JSON_TYPES.get(origin or hint, TEXT)]


def _limits(name: str) -> dict[str, Any]:
    """Return the limits of a setting that is a number."""
    allowed = RANGES.get(name)
    if allowed is None:
        return {}
    limits = _limits_of_range(allowed)
    return limits if allowed.besides is None else {"anyOf": [limits, {"const": allowed.besides}]}


def _limits_of_range(allowed: Range) -> dict[str, Any]:
    limits = {"exclusiveMinimum" if allowed.above else "minimum": allowed.low}
    if allowed.high is not None:
        limits["exclusiveMaximum" if allowed.below else "maximum"] = allowed.high
    return limits
