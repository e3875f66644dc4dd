"""Parts that several commands' parsers share."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from prompt_tuning.arguments.data_args import SPLITS
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.other_names import FLAG_START, NEAR, flag_name, split_flags
from prompt_tuning.recipe.ranges import Range

if TYPE_CHECKING:
    from prompt_tuning.recipe.recipe import Recipe

# What `add_subparsers` returns; argparse does not export its name.
Commands = Any


@dataclass(frozen=True)
class Result:
    """What a command found out, for --json.

    Args:
        facts: what is printed as one JSON object.
        exit_code: that of the command.
    """

    facts: Mapping[str, Any]
    exit_code: int = 0


Handler = Callable[[argparse.Namespace, list[str]], Result | None]

SAME_COMMAND_RESUMES = "; run the same command again to resume"


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, whose help may end with a text that is written only when it is shown."""

    further_help: Callable[[], str] | None = None
    words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Leave the process with a message, that of a misspelt flag where argparse misses a required one."""
        missing = re.findall(r"--\w+", message) if "required" in message else []
        misspelt = [word for word in self.words if re.match(FLAG_START, word) and _nearest_flag(self, word) in missing]
        super().error("\n".join(_unknown_flag(self, word) for word in misspelt) or message)

    def format_help(self) -> str:
        """Return the help with the text at its end."""
        shown = super().format_help()
        return shown if self.further_help is None else f"{shown}\n{self.further_help()}"


def add_command(
    commands: Commands, name: str, run: Handler, *, help: str, examples: str, usage: str = ""
) -> CommandParser:
    """Add the parser of a command and return it.

    Args:
        commands: where it is added.
        name: the word that a user types.
        run: takes the parsed arguments and the flags that override a recipe, and returns what it found out.
        help: one sentence, for `prompt-tuning --help` and for the command's own help.
        examples: shown below the flags.
        usage: what follows the name in the usage line of a command that takes `--key value` for any recipe key. A
            command without it refuses unknown flags.
    """
    settings = "\n\n--key value sets any key of the recipe. `prompt-tuning train --help_all` lists the keys."
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help}{settings if usage else ''}",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage=f"%(prog)s {usage} [--key value ...]" if usage else None,
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the results as one JSON object; words for people go to standard error",
    )
    parser.set_defaults(
        run=run, parser=parser, takes_overrides=bool(usage), when_interrupted="", resuming_command=_same_command
    )
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the argument RECIPE."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")


def load_recipe(path: str, overrides: list[str], adapters: Sequence[str] = (), *, trains: bool = False) -> Recipe:
    """Load a recipe. What its text or a folder's files show to be wrong is reported before torch is imported.

    Args:
        path: the recipe.
        overrides: the flags of the command line.
        adapters: folders or hub ids that the command takes besides.
        trains: the command writes a new run into the recipe's output_dir, unless it resumes one.

    Raises:
        PromptTuningError: with all that is wrong with the recipe, or a folder that is not an adapter's or not free.
    """
    from prompt_tuning.hub.ids import check_local_adapter
    from prompt_tuning.recipe.drafts import checked_draft
    from prompt_tuning.runs.earlier_run import check_new_run

    draft = checked_draft(path, overrides)
    for adapter in adapters:
        check_local_adapter(adapter)
    if trains and not draft.training.resume_from_checkpoint:
        check_new_run(Path(draft.training.output_dir).expanduser())
    from prompt_tuning.recipe.loading import complete

    return complete(draft)


def add_moved_model(parser: argparse.ArgumentParser) -> None:
    """Add the flag for a base model that is not where the adapter was trained."""
    parser.add_argument(
        "--model_name_or_path", metavar="MODEL", help="the base model's folder or hub id, if it has moved"
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the flag that lets Python code of others run."""
    parser.add_argument(
        "--trust_remote_code",
        "--trust-remote-code",
        action="store_true",
        help="run Python code that is with the model, or a metric that is not shipped",
    )


def add_split(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the flag --split."""
    parser.add_argument("--split", default=default, choices=SPLITS, help=f"split of the rows (default: {default})")


def add_output_folder(parser: argparse.ArgumentParser, metavar: str, default: str, contents: str) -> None:
    """Add the flag --output_dir, for a command that does not take the recipe's.

    Args:
        parser: of the command.
        metavar: stands for the folder in the help.
        default: the folder without the flag.
        contents: what is written there, for the help.
    """
    parser.add_argument(
        "--output_dir",
        "--output-dir",
        metavar=metavar,
        type=_folder,
        default=Path(default),
        help=f"folder for {contents} (default: {default})",
    )


def _folder(name: str) -> Path:
    from prompt_tuning.support.files import name_problem  # It imports what `--help` should not wait for.

    problem = name_problem(name)
    if problem:
        raise argparse.ArgumentTypeError(f"{name!r}: {problem}")
    return Path(name)


def check_json_output(command: str, args: argparse.Namespace) -> None:
    """Raise a RecipeError if rows and the object of --json would both go to standard output."""
    if args.json and args.output == "-":
        raise RecipeError(f"{command}: --json needs --output FILE, since standard output is for its object. Name one.")


def output_folder(recipe: Recipe, overrides: list[str]) -> Path | None:
    """Return the recipe's output_dir if the command line names one.

    Without it `evaluate` and `ensemble` make a folder inside the recipe's output_dir.
    """
    for flag in overrides:
        if flag.split("=")[0] in ("--output_dir", "--output-dir"):
            return Path(recipe.training.output_dir)
    return None


@dataclass(frozen=True)
class WrongNumber:
    """The value of a flag that is not a number of its range. argparse would report only the first one."""

    message: str


def number_in(allowed: Range, kind: type[int] | type[float] = int) -> Callable[[str], float | WrongNumber]:
    """Return a function that parses a number of a range, by default a whole one, for argparse."""

    def number(text: str) -> float | WrongNumber:
        try:
            value = kind(text)
        except ValueError:
            return WrongNumber(f"expected a {'whole number' if kind is int else 'number'}, found {text!r}")
        return value if value in allowed else WrongNumber(f"it is {value}, and must be {allowed}")

    return number


def usage_errors(args: argparse.Namespace, rest: list[str]) -> list[str]:
    """Return what is wrong with a command line that argparse has read, a message for each flag.

    Args:
        args: what argparse read.
        rest: the words that it did not know.
    """
    errors = []
    for name, value in vars(args).items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, WrongNumber):
                errors.append(f"{'-' if len(name) == 1 else '--'}{name}: {item.message}")
    unknown = [word.split("=")[0] for word in rest if re.match(FLAG_START, word)]
    if not args.takes_overrides:
        return errors + [_unknown_flag(args.parser, flag) for flag in unknown or rest]
    if not errors and not any(_nearest_flag(args.parser, flag) for flag in unknown):
        return []  # The recipe's flags are checked together with the recipe.
    from prompt_tuning.recipe.parser import RecipeParser

    settings = RecipeParser()
    for words in split_flags(rest):
        is_setting = settings.has_setting(flag_name(words[0]))
        if is_setting or not _nearest_flag(args.parser, words[0]):
            errors += settings.flag_errors(words)
        else:
            errors.append(_unknown_flag(args.parser, words[0]))
    return errors


def _nearest_flag(parser: argparse.ArgumentParser, flag: str) -> str | None:
    """Return the flag of a command itself whose name is nearest to another one, if one is near."""
    flags = [word for action in parser._actions for word in action.option_strings if "-" not in word[2:]]  # noqa: SLF001 - no public name
    name = flag.split("=")[0].replace("-", "_").replace("__", "--", 1)
    nearest = difflib.get_close_matches(name, flags, n=1, cutoff=NEAR)
    return nearest[0] if nearest else None


def _unknown_flag(parser: argparse.ArgumentParser, flag: str) -> str:
    nearest = _nearest_flag(parser, flag)
    advice = f"Did you mean {nearest}?" if nearest else f"`{parser.prog} --help` lists its flags."
    return f"unrecognized arguments: {flag.split('=')[0]}. {advice}"


def _same_command(command: list[str], checkpoint: str) -> list[str]:
    return command
