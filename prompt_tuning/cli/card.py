"""`prompt-tuning card`: write a run's model card again, also with an example row of the user's."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.cli.parsing import Commands, Result, add_command, add_trust
from prompt_tuning.errors import DataError, TemplateError
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
    example = None
    # A source that is neither a run nor facts is reported before torch is imported.
    if args.example:
        example = user_example(args.source, args.example, trust_remote_code=args.trust_remote_code)
    else:
        read_card_facts(args.source) if args.source.suffix == ".json" else read_trained(args.source)
    from prompt_tuning.reports.model_card import write_card

    path = write_card(args.source, args.output, example)
    print_text(path)
    return Result({"card": path})


def user_example(folder: Path, file: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Predict for a user's row, and return what results.json keeps of it.

    Returns:
        `example`, the columns that the template reads, and `own_example`, the encoded row with its predictions.

    Raises:
        DataError: the file is not one row that the run's template can read.
    """
    from prompt_tuning.reports.run_files import read_trained
    from prompt_tuning.support.json_values import MAX_BYTES, read_bounded

    results = read_trained(folder)
    try:
        text = read_bounded(file, MAX_BYTES).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        raise DataError(f"--example {file}: it cannot be read ({error}). Name a file with one row as JSON.") from error
    from prompt_tuning.data.formats import parse_object
    from prompt_tuning.data.loading import with_standard_columns
    from prompt_tuning.runs.predictor import Predictor

    predictor = Predictor.load(folder, trust_remote_code=trust_remote_code)
    try:
        row = parse_object(text, f"--example {file}", 1)
        row = with_standard_columns(row, predictor.data)
        encoded = predictor.encoder.row(row)
    except (ValueError, TypeError, TemplateError) as error:
        raise DataError(f"--example {file}: expected one row as JSON, with the template's columns: {error}") from error
    method = find_method(results["method"])
    tuned = method.results_key
    example = {"source": encoded["source"], "references": encoded["references"], "cut_tokens": encoded["cut_tokens"]}
    example[tuned] = predictor([row])[0]
    if "hard_prompt" in results and not method.trains_whole_model:
        hard_prompt = replace(predictor, encoder=replace(predictor.encoder, trained_text=None))
        with predictor.model.disable_adapter():
            example["hard_prompt"] = hard_prompt([row])[0]
    columns = sorted(predictor.encoder.template.source_columns)
    return {"example": {name: row[name] for name in columns if name in row}, "own_example": example}
