"""The flags of all settings with their types and defaults, as argparse takes them.

They are read from flags.json, so that a wrong recipe is refused before transformers and torch are imported. `python -m
prompt_tuning.arguments.flags` prints the file for the installed transformers. With another transformers than that of
the file the dataclasses themselves are read.
"""

from __future__ import annotations

import functools
import json
from argparse import Action, ArgumentTypeError
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prompt_tuning import arguments
from prompt_tuning.support.text import print_text

FILE = Path(__file__).with_name("flags.json")
TRUE = ("yes", "true", "t", "y", "1")
FALSE = ("no", "false", "f", "n", "0")

# The type of a flag by the name of its function in transformers. No text makes a mapping, nor an object of a class.
_TYPES = {"int": "int", "float": "float", "str": "str", "Path": "str", "string_to_bool": "bool"}


def truth_value(text: str) -> bool:
    """Return the truth value that a word means, in any case, as transformers' flags read it.

    Raises:
        ArgumentTypeError: the word means none.
    """
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ArgumentTypeError(
        f"Truthy value expected: got {text} but expected one of yes/no, true/false, t/f, y/n, 1/0 (case insensitive)."
    )


@functools.cache
def read_flags() -> list[dict[str, Any]]:
    """Return the options of `add_argument` for every flag, with the flag's spellings under `names`."""
    return saved_flags() if _saved()["transformers"] == version("transformers") else list_flags()


def saved_flags() -> list[dict[str, Any]]:
    """Return what `read_flags` returns, at once; the flags of Trainer may be those of another transformers."""
    return _saved()["flags"]


@functools.cache
def _saved() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))


def list_flags() -> list[dict[str, Any]]:
    """Return what `read_flags` returns, from the dataclasses."""
    from transformers import HfArgumentParser  # The file exists so that this takes no time.

    blocks = (
        arguments.ModelArguments,
        arguments.DataArguments,
        arguments.PromptArguments,
        arguments.PromptTuningArguments,
    )
    parser = HfArgumentParser(blocks, add_help=False)
    return [_options(action) for action in parser._actions]  # noqa: SLF001 - no public name


def _options(action: Action) -> dict[str, Any]:
    """Return a flag as JSON has it."""
    options = {"names": action.option_strings, "dest": action.dest, "default": action.default, "help": action.help}
    if action.nargs == 0:
        return options | {"action": "store_false"}
    choices = action.choices
    if isinstance(action.type, type) and issubclass(action.type, Enum):
        choices = [member.value for member in action.type]
    options["type"] = "str" if choices else _TYPES.get(getattr(action.type, "__name__", ""), "dict")
    options |= {"nargs": action.nargs, "const": action.const, "choices": list(choices) if choices else None}
    return {name: value for name, value in options.items() if value is not None or name == "default"}


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(flag) for flag in list_flags())
    print_text(f'{{"transformers": "{version("transformers")}", "flags": [\n{lines}\n]}}')
