"""`prompt-tuning completion`: print a script with which a shell completes commands, flags and settings."""

from __future__ import annotations

import argparse
import contextlib

from prompt_tuning.cli.parsing import Commands, Result, add_command
from prompt_tuning.errors import RecipeError
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning completion bash > ~/.local/share/bash-completion/completions/prompt-tuning
  prompt-tuning completion zsh > ~/.zfunc/_prompt-tuning

The script needs no program when a key is pressed, so it answers at once. Write it again after an update. It is made by
shtab, which prompt-tuning[completion] installs. zsh looks into the folder after `fpath+=~/.zfunc` in ~/.zshrc.
"""
SHELLS = ("bash", "zsh")
FILES = ("recipe", "recipes", "folder", "runs", "adapter", "adapters", "input", "output", "data", "sweep")
"""The arguments of commands that are files or folders."""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "completion", run, help="Print a script that completes commands in a shell.", examples=EXAMPLES
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Print the script.

    Raises:
        RecipeError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise RecipeError("completion: shtab is not installed. Install prompt-tuning[completion].") from None
    for command in args.commands.choices.values():
        if command.get_default("takes_overrides"):
            _add_settings(command)
        for action in command._actions:  # noqa: SLF001 - no public name
            if action.dest in FILES or action.dest.endswith(("_file", "_dir")):
                action.complete = shtab.FILE
    script = shtab.complete(args.root, shell=args.shell)
    if not args.json:
        print_text(script)
    return Result({"shell": args.shell, "script": script})


def _add_settings(command: argparse.ArgumentParser) -> None:
    """Add the settings of recipes as flags. They are read from flags.json, so that torch is not imported."""
    from prompt_tuning.arguments.flags import read_flags

    for flag in read_flags():
        # A flag of the command itself, such as --learning_rates of compare, keeps its own meaning.
        with contextlib.suppress(argparse.ArgumentError):
            command.add_argument(
                flag["names"][0], dest=flag["dest"], choices=flag.get("choices"), help=flag["help"].partition(".")[0]
            )
