"""Show the flags of all settings, as `train --help` and `train --help_all` do."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.flags import read_flags, saved_flags
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.recipe.ranges import RANGES

PARTS = {"the base model": ModelArguments, "the rows": DataArguments, "the prompt": PromptArguments}
OF_TRAINER = "the training, as transformers' Seq2SeqTrainingArguments has it"
VALUES = {"bool": "true|false", "int": "N", "float": "X", "dict": "JSON"}
"""What stands for the value of a flag, by its type. Any other value is a text."""


def settings_help(*, with_trainer: bool) -> str:
    """Return the flag of every setting with its values, its default and its range, in the width of the terminal.

    Args:
        with_trainer: list the settings of Trainer, too.
    """
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    groups = {title: parser.add_argument_group(title) for title in (*PARTS, OF_TRAINER)}
    part_of = {field.name: title for title, block in PARTS.items() for field in fields(block)}
    for flag in read_flags() if with_trainer else saved_flags():
        part = part_of.get(flag["dest"], OF_TRAINER)
        is_negation = "action" in flag  # --no_NAME; a user sets NAME to false.
        if is_negation or (part == OF_TRAINER and not with_trainer):
            continue
        value = "NAME" if "choices" in flag else VALUES.get(flag["type"], "TEXT")
        nargs = "+" if flag.get("nargs") == "+" else None
        groups[part].add_argument(flag["names"][0], metavar=value, nargs=nargs, help=_with_facts(flag))
    return parser.format_help()


def _with_facts(flag: dict[str, Any]) -> str:
    """Return the help of a flag with its choices, its default and its range."""
    facts = [", ".join(flag["choices"])] if "choices" in flag else []
    default = flag["default"]
    if default not in (None, "") and default is not False:  # 0 equals False, and is shown.
        facts.append(f"default: {'true' if default is True else default}")
    if flag["dest"] in RANGES:
        facts.append(str(RANGES[flag["dest"]]))
    shown = "; ".join(facts).replace("%", "%%")
    return f"{flag['help']} ({shown})" if facts else flag["help"]
