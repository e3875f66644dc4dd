"""`prompt-tuning env`: print what a bug report needs."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import Commands, Result, add_command
from prompt_tuning.errors import without_secrets
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning env

It reads versions, processor, memory and GPUs, and imports no large library. Variables are shown with their values if
they are set; no token is among them.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    add_command(commands, "env", run, help="Print versions, devices and memory for a bug report.", examples=EXAMPLES)


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Print a line for each fact."""
    from prompt_tuning.runs.environment import describe_environment

    facts = {}
    for name, value in describe_environment().items():
        facts[name] = without_secrets(str(value))
        print_text(f"- {name}: {facts[name]}")
    return Result(facts)
