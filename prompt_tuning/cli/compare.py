"""`prompt-tuning compare`: train several recipes on the same rows and compare their scores."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import SAME_COMMAND_RESUMES, Commands, Result, add_command, add_output_folder, number_in
from prompt_tuning.cli.processes import is_first_process
from prompt_tuning.recipe.ranges import RATE, SEED
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning compare hard.yaml soft.yaml lora.yaml --seeds 42 43 44 --output_dir runs/compared
  prompt-tuning compare soft.yaml lora.yaml --max_steps 60 --test_file rows.jsonl
  prompt-tuning compare methods.yaml --seeds 42 43 44 --equal_time

methods.yaml:
  recipe: base.yaml
  runs:
    lora: {method: lora, learning_rates: [1e-3, 3e-3, 1e-2]}
    soft: {init: demonstrations, learning_rates: [1e-2, 3e-2, 1e-1]}

The other recipes are compared with the first. Every recipe is trained once with every seed, in RUNS/NAME-seedN. A
finished run is not repeated. --key value applies to all recipes. It writes compare.md, compare.json and compare.png.

With learning_rates each rate is tried with the first seed, and the best by the metric on the validation rows is taken.
Only its runs are evaluated on the test rows. Each recipe has to try as many rates.
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
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help="YAML files, of one recipe or of several")
    parser.add_argument(
        "--seeds",
        metavar="N",
        nargs="+",
        type=number_in(SEED),
        default=[42],
        help="each trains every recipe (default: 42)",
    )
    parser.add_argument("--metric", metavar="NAME", help="metric to compare (default: the task's main metric)")
    parser.add_argument(
        "--learning_rates",
        "--learning-rates",
        metavar="RATE",
        nargs="+",
        type=number_in(RATE, float),
        default=[],
        help="rates to try for each recipe without its own",
    )
    parser.add_argument(
        "--equal_time",
        "--equal-time",
        action="store_true",
        help="also train the others for as many steps as fit in the time of the first recipe, by the seconds a step",
    )
    add_output_folder(parser, "RUNS", "runs/compare", "the runs and the comparison")
    parser.set_defaults(when_interrupted=SAME_COMMAND_RESUMES)


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Train what is not finished, and print the table."""
    from prompt_tuning.studies.run_lists import runs_of_comparison

    # Wrong text is reported before torch is imported.
    runs_of_comparison(args.recipes, overrides, args.learning_rates)
    from prompt_tuning.reports.styles import TERMINAL
    from prompt_tuning.studies.compare import compare
    from prompt_tuning.studies.compare_table import comparison_text

    compared = compare(
        args.recipes,
        overrides,
        args.seeds,
        args.output_dir,
        args.metric,
        learning_rates=args.learning_rates,
        equal_time=args.equal_time,
    )
    if is_first_process():
        print_text(comparison_text(compared, TERMINAL))
    return Result(compared)
