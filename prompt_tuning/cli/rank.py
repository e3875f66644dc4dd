"""`prompt-tuning rank`: find the best template and number of demonstrations without training."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import (
    SAME_COMMAND_RESUMES,
    Commands,
    Result,
    add_command,
    add_output_folder,
    add_recipe,
    number_in,
)
from prompt_tuning.cli.processes import is_first_process
from prompt_tuning.recipe.ranges import COUNT, NOT_NEGATIVE, SEED
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning rank recipes/quickstart/qa.yaml
  prompt-tuning rank recipes/quickstart/qa.yaml --num_demonstrations 0 2 4 --seeds 1 2 --max_source_tokens 512
  prompt-tuning rank recipes/quickstart/qa.yaml --templates question_answering mine.yaml my_templates/ --rows 40
  prompt-tuning train runs/rank/winner.yaml

All candidates are scored by the likelihood of the targets on a few validation rows. The better half is scored on twice
as many rows, and so on. The finalists are scored by the task's metric. The same command resumes a stopped ranking. It
writes rank.md, rank.json and the recipe winner.yaml.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "rank",
        run,
        help="Find the best template and number of demonstrations, without training.",
        examples=EXAMPLES,
        usage="RECIPE [options]",
    )
    add_recipe(parser)
    parser.add_argument(
        "--templates",
        metavar="TEMPLATE",
        nargs="+",
        help="shipped templates, YAML files, FILE:NAME or folders (default: the recipe's and all that are shipped for "
        "its task in English and in the language of the rows, except those that are answered by choosing)",
    )
    parser.add_argument(
        "--num_demonstrations",
        "--num-demonstrations",
        metavar="N",
        nargs="+",
        type=number_in(NOT_NEGATIVE),
        help="training rows shown before a source (default: the recipe's)",
    )
    parser.add_argument(
        "--seeds", metavar="N", nargs="+", type=number_in(SEED), help="to draw these with (default: the recipe's)"
    )
    parser.add_argument(
        "--rows", metavar="N", type=number_in(COUNT), help="the first N validation rows (default: all)"
    )
    parser.add_argument(
        "--finalists",
        metavar="N",
        type=number_in(COUNT),
        default=3,
        help="candidates that write predictions (default: 3)",
    )
    add_output_folder(parser, "DIR", "runs/rank", "the table, the scores and winner.yaml")
    parser.set_defaults(when_interrupted=SAME_COMMAND_RESUMES)


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Rank the candidates, and print the table."""
    from prompt_tuning.recipe.drafts import checked_draft
    from prompt_tuning.studies.run_lists import flags_of_ranking

    # Wrong text is reported before torch is imported.
    checked_draft(args.recipe, [*overrides, *flags_of_ranking(args.num_demonstrations)])
    from prompt_tuning.reports.styles import TERMINAL
    from prompt_tuning.studies.rank import WINNER, rank
    from prompt_tuning.studies.rank_table import rank_text

    folder = args.output_dir
    ranked = rank(
        args.recipe,
        overrides,
        folder,
        templates=args.templates,
        counts=args.num_demonstrations,
        seeds=args.seeds,
        rows=args.rows,
        finalists=args.finalists,
    )
    if is_first_process():
        print_text(f"{rank_text(ranked, TERMINAL)}\nwritten: {folder / WINNER}")
    return Result(ranked | {"recipe": folder / WINNER})
