"""`prompt-tuning inspect`: nearest tokens, norms and moves of a trained prompt."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import Commands, Result, add_command, add_moved_model, add_trust, number_in
from prompt_tuning.recipe.ranges import COUNT
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning inspect runs/quickstart
  prompt-tuning inspect runs/quickstart -n 10 --output inspected

piece 'x' is a token that is only part of a character. Special tokens have no quotes. These readings do not explain
what a prompt does; the text printed with them says why.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "inspect",
        run,
        help="Show the nearest tokens, norms and moves of a trained prompt.",
        examples=EXAMPLES,
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or hub id of a trained run")
    add_moved_model(parser)
    add_trust(parser)
    parser.add_argument(
        "-n", metavar="N", type=number_in(COUNT), default=5, help="nearest tokens of a virtual token (default: 5)"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder for inspection.json and inspection.png (default: ADAPTER)"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Print the readings of a prompt."""
    from prompt_tuning.hub.ids import check_local_adapter

    check_local_adapter(args.adapter)
    from prompt_tuning.studies.inspect import inspect, inspection_text

    report = inspect(
        args.adapter, args.model_name_or_path, args.n, args.output, trust_remote_code=args.trust_remote_code
    )
    print_text(inspection_text(report))
    return Result(report)
