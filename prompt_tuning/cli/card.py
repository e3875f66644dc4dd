"""`prompt-tuning card`: write a run's model card again, also with an example row of the user's."""

from __future__ import annotations

import argparse
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, Result, add_command, add_trust
from prompt_tuning.errors import DataError
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning card runs/quickstart
  prompt-tuning card runs/quickstart --output model_cards/quickstart.json
  prompt-tuning card model_cards/quickstart.json
  prompt-tuning card runs/quickstart --example row.json

train writes RUN/README.md itself. A card holds only facts, needs no network and leaves out what is unknown. It shows
one row of the data as an example. If the data must not be shown, name a row of your own with --example: the model
reads it, and it replaces the other also in results.json. Then `push` uploads no row of the data except demonstrations.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(commands, "card", run, help="Write a run's model card again.", examples=EXAMPLES)
    parser.add_argument("source", metavar="RUN", type=Path, help="folder that train wrote, or a card's facts (.json)")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the card (.md), or its facts (.json) (default: RUN/README.md)"
    )
    parser.add_argument(
        "--example", metavar="FILE", type=Path, help="one row as JSON, shown instead of the data's first row"
    )
    add_trust(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Write the card, and print its path."""
    from prompt_tuning.reports.run_files import read_card_facts, read_trained

    if args.source.suffix == ".json" and args.example:
        raise DataError(
            f"{args.source}: --example needs the trained model, and this file holds only facts. Name the run's folder."
        )
    # A source that is neither a run nor facts is reported before torch is imported, and so is a missing example.
    read_card_facts(args.source) if args.source.suffix == ".json" else read_trained(args.source)
    example = None
    if args.example:
        row = _read_row(args.example)
        from prompt_tuning.runs.example_row import user_example

        origin = f"--example {args.example}"
        example = user_example(args.source, row, origin, trust_remote_code=args.trust_remote_code)
    from prompt_tuning.reports.model_card import write_card

    path = write_card(args.source, args.output, example)
    print_text(path)
    return Result({"card": path})


def _read_row(file: Path) -> str:
    from prompt_tuning.support.json_values import MAX_BYTES, read_bounded

    try:
        return read_bounded(file, MAX_BYTES).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        raise DataError(f"--example {file}: it cannot be read ({error}). Name a file with one row as JSON.") from error
