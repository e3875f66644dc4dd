"""`prompt-tuning train`: train a prompt, evaluate it, save it."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, Result, add_command, load_recipe
from prompt_tuning.cli.processes import is_first_process
from prompt_tuning.cli.settings_help import settings_help
from prompt_tuning.errors import RecipeError
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning train recipes/quickstart/qa.yaml
  prompt-tuning train recipes/quickstart/qa.yaml --learning_rate 0.1 --output_dir runs/hot --seed 1
  prompt-tuning train mine.yaml --init text --init_text "Answer briefly." --output_dir runs/brief
  prompt-tuning train mine.yaml --num_demonstrations 2 --max_source_tokens 512 --output_dir runs/few-shot
  prompt-tuning train recipes/quickstart/qa.yaml --resume_from_checkpoint true
  prompt-tuning train mine.yaml --train_file large.jsonl --streaming true --max_steps 2000
  prompt-tuning train recipes/quickstart/qa.yaml --adapter runs/quickstart --output_dir runs/longer
  prompt-tuning train mine.yaml --method lora --init null --init_text null --output_dir runs/lora
  accelerate launch -m prompt_tuning train mine.yaml

Every key of a recipe is a flag, and every flag can be a key of a recipe, except --base_url, --api_key_env and
--trust_remote_code, which only the command line can set. A flag with the value null takes the key of the recipe back.
The flags of transformers' Trainer are those of Seq2SeqTrainingArguments. --help_all lists them; a few that would have
no effect here are refused. An evaluation batch holds as many rows as --per_device_eval_batch_tokens (8192) and
--per_device_eval_batch_size (128) allow, with free memory on CUDA up to 8 times as many.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "train", run, help="Train a prompt, evaluate it, save it.", examples=EXAMPLES, usage="RECIPE"
    )
    parser.further_help = partial(settings_help, with_trainer=False)
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a YAML file")
    parser.add_argument(
        "--help_all", "--help-all", action="store_true", help="list every flag, also the Trainer's, and exit"
    )
    parser.set_defaults(
        when_interrupted="; --resume_from_checkpoint true resumes from the last checkpoint, if there is one",
        resuming_command=resuming_command,
    )


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Train, and print the run's summary."""
    if args.help_all:
        print_text(settings_help(with_trainer=True))
        return Result({})
    if args.recipe is None:
        raise RecipeError("no recipe. Name one: `prompt-tuning train recipes/quickstart/qa.yaml`.")
    recipe = load_recipe(args.recipe, overrides, trains=True)
    from prompt_tuning.runs.train import train

    folder = train(recipe)
    print_summary(folder)
    return run_result(folder)


def run_result(folder: Path) -> Result:
    """Return results.json of a run with the run's folder, for --json."""
    from prompt_tuning.reports.run_files import read_results

    return Result({"folder": folder} | read_results(folder))


def print_summary(folder: Path) -> None:
    """Print the summary of a run, in the first process only."""
    from prompt_tuning.reports.summary import summarize

    if is_first_process():
        print_text(f"\n{summarize(folder)}")


def resuming_command(command: list[str], checkpoint: str) -> list[str]:
    """Return the command that resumes a stopped training.

    Args:
        command: the words of the command that was stopped.
        checkpoint: folder of the checkpoint that was saved last.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume_from_checkpoint", "--resume-from-checkpoint", default="")
    args, words = parser.parse_known_args(command)
    # A folder that was named may belong to another run, so that `true` would not find the checkpoint saved last.
    named_folder = Path(args.resume_from_checkpoint).is_dir() and args.resume_from_checkpoint != ""
    return [*words, "--resume_from_checkpoint", checkpoint if named_folder else "true"]
