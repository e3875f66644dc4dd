"""`prompt-tuning schema`: print a JSON schema of recipes."""

from __future__ import annotations

import argparse
import json

from prompt_tuning.cli.parsing import Commands, Result, add_command
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning schema > recipe.schema.json

An editor that knows JSON schemas completes the settings of a recipe with it, explains them and marks wrong names and
values. With the YAML extension of VS Code and with other clients of yaml-language-server, begin a recipe with the line

  # yaml-language-server: $schema=recipe.schema.json

Settings that contradict each other are reported by `prompt-tuning check`.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    add_command(
        commands, "schema", run, help="Print a JSON schema of recipes, for completion in editors.", examples=EXAMPLES
    )


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Print the schema."""
    from prompt_tuning.recipe.schema import recipe_schema

    schema = recipe_schema()
    if not args.json:
        print_text(json.dumps(schema, indent=2, ensure_ascii=False))
    return Result(schema)
