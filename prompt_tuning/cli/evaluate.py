"""`prompt-tuning evaluate`: evaluate a split with an adapter or with the hard prompt alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, Result, add_command, add_recipe, add_split, load_recipe, output_folder
from prompt_tuning.cli.train import print_summary, run_result
from prompt_tuning.errors import RecipeError
from prompt_tuning.support.data_files import checked_path

EXAMPLES = """\
  prompt-tuning evaluate recipes/quickstart/qa.yaml                                    the hard prompt alone
  prompt-tuning evaluate recipes/quickstart/qa.yaml --adapter runs/quickstart          with the soft prompt
  prompt-tuning evaluate recipes/quickstart/qa.yaml --num_demonstrations 1 --demonstration_selection bm25
  prompt-tuning evaluate recipes/quickstart/qa.yaml --predictions predicted.jsonl
  prompt-tuning evaluate recipes/quickstart/qa.yaml --split validation --template question_answering/instruction

It writes results.json, predictions/ and report.html to --output_dir. The default is a folder evaluate-SPLIT-NAME in
the recipe's output_dir.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        help="Evaluate a split with an adapter, or with the hard prompt alone.",
        examples=EXAMPLES,
        usage="RECIPE [options]",
    )
    add_recipe(parser)
    parser.add_argument(
        "--adapter", metavar="ADAPTER", help="folder or hub id of a trained run (default: the hard prompt alone)"
    )
    parser.add_argument(
        "--predictions", metavar="FILE", help="score the rows that `predict` or `requests` wrote, without a model"
    )
    add_split(parser, "test")


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Evaluate, and print the summary."""
    if args.predictions is not None and args.adapter:
        raise RecipeError("--predictions: they are written already. Leave --adapter or --predictions out.")
    if args.predictions is not None:
        checked_path(args.predictions, "-")  # A misspelt name is reported before torch is imported.
    recipe = load_recipe(args.recipe, overrides, [args.adapter] if args.adapter else [])
    from prompt_tuning.runs.evaluate import evaluate, evaluate_predictions

    folder = output_folder(recipe, overrides)
    if args.predictions is not None:
        folder = evaluate_predictions(recipe, Path(args.predictions), args.split, folder)
    else:
        folder = evaluate(recipe, args.adapter, args.split, folder)
    print_summary(folder)
    return run_result(folder)
