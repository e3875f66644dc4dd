"""`prompt-tuning sweep`: train many prompts over one base model."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import (
    SAME_COMMAND_RESUMES,
    Commands,
    Result,
    add_command,
    add_output_folder,
    number_in,
)
from prompt_tuning.cli.processes import is_first_process
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.ranges import COUNT
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning sweep tasks.yaml
  prompt-tuning sweep tasks.yaml --max_steps 60 --output_dir runs/tasks
  prompt-tuning sweep rates.yaml --backend optuna --n_trials 30 --output_dir runs/rates

tasks.yaml:
  recipe: base.yaml
  runs:
    rivers: {train_file: rivers/train.jsonl, test_file: rivers/test.jsonl}
    ferries: {train_file: ferries/train.jsonl, test_file: ferries/test.jsonl, num_virtual_tokens: 40}
    notes: {recipe: notes.yaml}

A run is what `train` makes of the recipe and the run's settings, in RUNS/NAME. --key value applies to all runs. All
recipes are checked before the model is read. If a run fails, its error is reported, the others run, and the exit code
is 1. A finished run is not repeated, and a stopped one resumes from its checkpoint. It writes sweep.md and sweep.json.

rates.yaml:
  recipe: base.yaml
  ranges:
    learning_rate: {low: 1e-4, high: 1e-1, log: true}
    weight_decay: [0, 0.01]

With --backend optuna, Trainer's hyperparameter_search draws the settings of each trial from the ranges. The loss on
the validation rows judges a trial, or metric_for_best_model. It writes search.md, search.json and best.yaml, a recipe
for `train` and `compare`. optuna.jsonl keeps the trials: the same command resumes a stopped search, and a larger
--n_trials adds to it.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "sweep",
        run,
        help="Train many prompts over one base model, which is read once.",
        examples=EXAMPLES,
        usage="SWEEP [options]",
    )
    parser.add_argument(
        "sweep", metavar="SWEEP", help="a YAML file: `recipe`, and `runs` by name with their settings, or `ranges`"
    )
    parser.add_argument(
        "--backend", choices=("optuna",), help="search the `ranges` of the file with this library (pip install optuna)"
    )
    parser.add_argument(
        "--n_trials", "--n-trials", metavar="N", type=number_in(COUNT), help="trials of the search (default: 20)"
    )
    add_output_folder(parser, "RUNS", "runs/sweep", "the runs and their table")
    parser.set_defaults(when_interrupted=SAME_COMMAND_RESUMES)


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Train what is not finished, and print the table; the exit code is 1 if a run failed."""
    if args.backend:
        return _search(args, overrides)
    if args.n_trials:
        raise RecipeError("--n_trials: runs that a file lists need none. Add --backend optuna, or leave it out.")
    from prompt_tuning.studies.run_lists import runs_of_sweep

    # Wrong text is reported before torch is imported.
    runs_of_sweep(args.sweep, overrides, args.output_dir)
    from prompt_tuning.reports.styles import TERMINAL
    from prompt_tuning.studies.sweep import sweep, sweep_text

    runs = sweep(args.sweep, overrides, args.output_dir)
    if is_first_process():
        print_text(sweep_text(runs, TERMINAL))
    return Result({"runs": runs}, int(any("error" in facts for facts in runs.values())))


def _search(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Search the ranges of the file, and print the trials."""
    from prompt_tuning.studies.ranges import read_search

    read_search(args.sweep, overrides)  # Wrong text is reported before torch is imported.
    from prompt_tuning.reports.styles import TERMINAL
    from prompt_tuning.studies.search import BEST, search, search_text

    facts = search(args.sweep, overrides, args.output_dir, args.n_trials or 20)
    if is_first_process():
        print_text(f"{search_text(facts, TERMINAL)}\nwritten: {args.output_dir / BEST}")
    return Result(facts | {"recipe": args.output_dir / BEST})
