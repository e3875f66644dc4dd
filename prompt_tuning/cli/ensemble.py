"""`prompt-tuning ensemble`: let several prompts of one model decide together."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import Commands, Result, add_command, add_recipe, add_split, load_recipe, output_folder
from prompt_tuning.cli.processes import is_first_process
from prompt_tuning.cli.train import run_result
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning ensemble recipes/quickstart/qa.yaml --adapters runs/seed1 runs/seed2 runs/seed3
  prompt-tuning ensemble recipes/quickstart/qa.yaml --adapters runs/seed1 runs/seed2 --combine logits

vote suits short answers: long texts seldom agree, and then the adapter named first decides. logits writes one text by
greedy search; the probability of a token is the mean of the adapters' log-probabilities.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "ensemble",
        run,
        help="Let several prompts of one model decide together.",
        examples=EXAMPLES,
        usage="RECIPE --adapters ADAPTER ... [options]",
    )
    add_recipe(parser)
    parser.add_argument("--adapters", metavar="ADAPTER", nargs="+", required=True, help="folders or hub ids")
    parser.add_argument(
        "--combine",
        default="vote",
        choices=("vote", "logits"),
        help="vote: the most frequent text; logits: the mean of the log-probabilities at every token (default: vote)",
    )
    add_split(parser, "test")


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Evaluate the ensemble, and print its table."""
    recipe = load_recipe(args.recipe, overrides, args.adapters)
    from prompt_tuning.studies.ensemble import ensemble, ensemble_text

    folder = ensemble(recipe, args.adapters, args.combine, args.split, output_folder(recipe, overrides))
    if is_first_process():
        print_text(ensemble_text(folder))
    return run_result(folder)
