"""`prompt-tuning report`: write a run's HTML report again."""

from __future__ import annotations

import argparse
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, Result, add_command, add_trust
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning report runs/quickstart

train and evaluate write report.html themselves. It is one file that needs no network: results, curves, every row with
its score, lengths and the recipe. It holds rows of your data, so `push` does not upload it.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(commands, "report", run, help="Write a run's report.html again.", examples=EXAMPLES)
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder that train or evaluate wrote")
    add_trust(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Write the report, and print its path."""
    from prompt_tuning.reports.run_files import read_results

    read_results(args.folder)  # A folder that is not a run is reported before torch is imported.
    from prompt_tuning.reports.html import write_report

    path = write_report(args.folder, trust_remote_code=args.trust_remote_code)
    print_text(path)
    return Result({"report": path})
