"""`prompt-tuning compare`: train several recipes on the same rows and compare their scores."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import SAME_COMMAND_RESUMES, Commands, add_command, add_output_folder, number_in
from prompt_tuning.cli.processes import is_first_process
from prompt_tuning.recipe.ranges import SEED
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning compare hard.yaml soft.yaml lora.yaml --seeds 42 43 44 --output_dir runs/compared
  prompt-tuning compare soft.yaml lora.yaml --max_steps 60 --test_file rows.jsonl

The other recipes are compared with the first. Every recipe is trained once with every seed, in RUNS/NAME-seedN. A
finished run is not repeated. --key value applies to all recipes. It writes compare.md, compare.json and compare.png.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "compare",
        run,
        help="Train several recipes on the same rows and say which is better.",
        examples=EXAMPLES,
        usage="RECIPE ... [options]",
    )
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help="YAML files")
    parser.add_argument("--seeds", metavar="N", nargs="+", type=number_in(SEED), default=[42], help="default: 42")
    parser.add_argument("--metric", metavar="NAME", help="default: the task's main metric")
    add_output_folder(parser, "RUNS", "runs/compare", "the runs and the comparison")
    parser.set_defaults(when_interrupted=SAME_COMMAND_RESUMES)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Train what is not finished, and print the table."""
    from prompt_tuning.studies.compare import compare, comparison_text

    text = comparison_text(compare(args.recipes, overrides, args.seeds, args.output_dir, args.metric))
    if is_first_process():
        print_text(text)
