"""`prompt-tuning show`: print the results of a run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, Result, add_command, number_in
from prompt_tuning.cli.train import run_result
from prompt_tuning.recipe.ranges import NOT_NEGATIVE
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning show runs/quickstart
  prompt-tuning show runs/quickstart -n 20
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(commands, "show", run, help="Print the results of a run again.", examples=EXAMPLES)
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder that train or evaluate wrote")
    parser.add_argument("-n", metavar="N", type=number_in(NOT_NEGATIVE), default=3, help="example rows (default: 3)")


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Print the summary of a run."""
    from prompt_tuning.reports.summary import summarize

    print_text(summarize(args.folder, args.n))
    return run_result(args.folder)
