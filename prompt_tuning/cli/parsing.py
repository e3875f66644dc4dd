"""Parts that several commands' parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_tuning.recipe.recipe import Recipe

# What `add_subparsers` returns; argparse does not export its name.
Commands = Any
Handler = Callable[[argparse.Namespace, list[str]], int | None]

SPLITS = ("train", "validation", "test")
SAME_COMMAND_RESUMES = "; run the same command again to resume"


def add_command(
    commands: Commands, name: str, run: Handler, *, help: str, examples: str, usage: str = ""
) -> argparse.ArgumentParser:
    """Add the parser of a command and return it.

    Args:
        commands: where it is added.
        name: the word that a user types.
        run: takes the parsed arguments and the flags that override a recipe, and returns an exit code (None: 0).
        help: one sentence, for `prompt-tuning --help` and for the command's own help.
        examples: shown below the flags.
        usage: what follows the name in the usage line of a command that takes `--key value` for any recipe key. A
            command without it refuses unknown flags.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage=f"%(prog)s {usage} [--key value ...]" if usage else None,
    )
    parser.set_defaults(run=run, takes_overrides=bool(usage), when_interrupted="", resuming_command=_same_command)
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the argument RECIPE."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")


def add_moved_model(parser: argparse.ArgumentParser) -> None:
    """Add the flag for a base model that is not where the adapter was trained."""
    parser.add_argument(
        "--model_name_or_path", metavar="MODEL", help="the base model's folder or hub id, if it has moved"
    )


def add_split(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the flag --split."""
    parser.add_argument("--split", default=default, choices=SPLITS, help=f"default: {default}")


def add_output_folder(parser: argparse.ArgumentParser, metavar: str, default: str, contents: str) -> None:
    """Add the flag --output_dir, for a command that does not take the recipe's."""
    parser.add_argument(
        "--output_dir",
        "--output-dir",
        metavar=metavar,
        type=Path,
        default=Path(default),
        help=f"folder for {contents} (default: {default})",
    )


def output_folder(recipe: Recipe, overrides: list[str]) -> Path | None:
    """Return the recipe's output_dir if the command line names one.

    Without it `evaluate` and `ensemble` make a folder inside the recipe's output_dir.
    """
    for flag in overrides:
        if flag.split("=")[0] in ("--output_dir", "--output-dir"):
            return Path(recipe.training.output_dir)
    return None


def positive(text: str) -> int:
    """Parse a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def not_negative(text: str) -> int:
    """Parse a number of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _same_command(command: list[str], checkpoint: str) -> list[str]:
    return command
