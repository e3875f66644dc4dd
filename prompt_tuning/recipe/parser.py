"""The parser of recipes and of command lines, which types both."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any, NoReturn

from prompt_tuning.arguments.flags import read_flags, truth_value
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.old_settings import GONE
from prompt_tuning.recipe.other_names import flag_name, hint, split_flags
from prompt_tuning.recipe.ranges import RANGES, range_error
from prompt_tuning.support.json_values import parse_json

TYPES = {"bool": truth_value, "dict": dict, "float": float, "int": int, "str": str}
TRUTH_VALUES = {"True": True, "TRUE": True, "False": False, "FALSE": False}  # JSON has them in lower case


class RecipeParser(argparse.ArgumentParser):
    """Types the settings of all four blocks, and raises an error instead of leaving the process."""

    def __init__(self) -> None:
        """Add a flag for every setting, without abbreviations."""
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for flag in read_flags():
            options = {name: value for name, value in flag.items() if name != "names"}
            if "type" in options:
                options["type"] = TYPES[options["type"]]
            if options["dest"] in RANGES:
                options["help"] += f" It is {RANGES[options['dest']]}."
            self.add_argument(*flag["names"], **options)

    def error(self, message: str) -> NoReturn:
        """Raise RecipeError with argparse's message.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(message)

    def has_setting(self, name: str) -> bool:
        """Return whether a name is that of a setting."""
        return f"--{name}" in self._option_string_actions

    def settings_of(self, words: Iterable[str]) -> frozenset[str]:
        """Return the settings that the flags among the words of a command line set: bf16 for --no-bf16=true."""
        actions = [self._option_string_actions.get(word.split("=")[0]) for word in words]
        return frozenset(action.dest for action in actions if action)

    def take_back(self, flags: list[str]) -> tuple[set[str], list[str]]:
        """Return the settings that flags take back by `null`, and the other flags."""
        taken_back = set()
        kept: list[list[str]] = []
        for words in split_flags(flags):
            name = flag_name(words[0])
            if _is_null(words) and self.has_setting(name):
                taken_back.add(name)
                kept = [earlier for earlier in kept if flag_name(earlier[0]) != name]
            else:
                kept.append(words)
        return taken_back, list(chain.from_iterable(kept))

    def pair_error(self, key: str, value: Any) -> str | None:
        """Return what is wrong with one setting of a recipe, or None.

        Args:
            key: the name of the setting.
            value: its value with every scalar as text.
        """
        if not self.has_setting(key):
            return self._unknown(key)
        error = list_error(key, value)
        if error:
            return error
        try:
            values, rest = self.parse_known_args(to_argv(key, value))
        except RecipeError as error:
            return str(error)
        if rest:
            return f"{key}: expected one value, found a list of {len(value)}. Set one value."
        return range_error(key, vars(values).get(key))

    def flag_errors(self, flags: list[str]) -> list[str]:
        """Return what is wrong with the flags of a command line, a message for each flag."""
        errors = []
        for words in split_flags(flags):
            error = self._flag_error(words)
            if error:
                errors.append(f"command line: {error}")
        return errors

    def typed_flags(self, flags: list[str]) -> dict[str, Any]:
        """Return the typed value of every setting that the flags of a command line set.

        Raises:
            RecipeError: with all that is wrong with the flags.
        """
        errors = self.flag_errors(flags)
        if errors:
            raise RecipeError("\n".join(errors))
        words: list[str] = []
        for group in split_flags(flags):
            words += _joined(group)
        for action in self._actions:
            action.default = argparse.SUPPRESS
        return vars(self.parse_args(words))

    def _flag_error(self, words: list[str]) -> str | None:
        """Return what is wrong with one flag and its values."""
        name = flag_name(words[0])
        if not words[0].startswith("-"):
            return f"{words[0]} belongs to no flag. Write --name before it."
        if words[0].split("=")[0] not in self._option_string_actions:
            return self._unknown(words[0].lstrip("-").split("=")[0])
        if _is_null(words):
            return None
        try:
            values, rest = self.parse_known_args(_joined(words))
        except RecipeError as error:
            return str(error)
        if rest:
            return f"{name}: expected one value, found {len(words) - 1}. Set one value."
        return range_error(name, vars(values).get(name))

    def _unknown(self, name: str) -> str:
        """Return the message for a setting that does not exist, with what to write instead."""
        usual = name.replace("-", "_")
        if usual in GONE:
            return f"{name} is not a setting any more. Set {GONE[usual]}."
        names = [option.removeprefix("--") for option in self._option_string_actions if "-" not in option[2:]]
        return f"unknown setting {name}. {hint(name, names, '`prompt-tuning train --help_all` lists all settings.')}"


def _is_null(words: list[str]) -> bool:
    return words[1:] == ["null"] or (len(words) == 1 and words[0].endswith("=null"))


def _joined(words: list[str]) -> list[str]:
    """Return a flag with its one value as one word. argparse takes -1e-3 for a flag, unless it follows "="."""
    return ["=".join(words)] if len(words) == 2 and "=" not in words[0] else words


def list_error(key: str, value: Any) -> str | None:
    """Return what is wrong with a list whose item the parser would take for a flag, or None."""
    for item in value if isinstance(value, list) else ():
        if re.match(r"--?[A-Za-z]\S*$|--$", str(item)):
            return f"{key}: the item {item!r} looks like a flag. Word it in another way."
    return None


def to_argv(key: str, value: Any) -> list[str]:
    """Return one setting as flags: a list as several arguments, a mapping as one argument of JSON.

    Args:
        key: the name of the setting.
        value: a text, a list or a mapping, with every scalar as text.
    """
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(_typed(value)) if isinstance(value, dict) else value}"]


def _typed(value: Any) -> Any:
    """Return a value of a mapping with its numbers and truth values typed; no flag types them.

    JSON's reader takes `1e-5` for a number, unlike YAML's.
    """
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if value in TRUTH_VALUES:
        return TRUTH_VALUES[value]
    try:
        return parse_json(value)
    except (TypeError, ValueError):
        return value
