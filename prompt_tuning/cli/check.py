"""`prompt-tuning check`: report every error of recipes, their data and templates, without loading a model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from prompt_tuning.cli.parsing import Commands, Result, add_command, load_recipe
from prompt_tuning.errors import PromptTuningError
from prompt_tuning.support.text import print_text

if TYPE_CHECKING:
    from prompt_tuning.runs.prepare import Prepared

EXAMPLES = """\
  prompt-tuning check recipes/quickstart/qa.yaml
  prompt-tuning check recipes/quickstart/*.yaml
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "check",
        run,
        help="Report every error of recipes, their data and templates.",
        examples=EXAMPLES,
        usage="RECIPE ...",
    )
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help="YAML files")


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Print a line about every recipe, or its errors; the exit code is the highest of the errors."""
    worst = 0
    facts: dict[str, Any] = {}
    for path in args.recipes:
        try:
            rows = _rows_of_recipe(path, overrides)
            facts[path] = {"ok": True, "rows": rows}
            print_text(f"{path}: ok, {rows}")
        except PromptTuningError as error:
            facts[path] = {"ok": False, "errors": str(error).splitlines()}
            for line in str(error).splitlines():
                print_text(f"error: {line}" if line.startswith(path) else f"error: {path}: {line}", file=sys.stderr)
            worst = max(worst, error.exit_code)
    return Result({"recipes": facts}, worst)


def _rows_of_recipe(path: str, overrides: list[str]) -> str:
    """Check a recipe and describe its rows in one line.

    Raises:
        PromptTuningError: names all that is wrong.
    """
    recipe = load_recipe(path, overrides)
    from prompt_tuning.runs.check import check

    tasks = check(recipe)
    return "; ".join(f"{name} ({_rows(task)})" if name else _rows(task) for name, task in tasks.items())


def _rows(prepared: Prepared) -> str:
    return "; ".join(f"{split}: {report}" for split, report in prepared.reports.items())
