"""`prompt-tuning init`: write a recipe for a user's own rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, Result, add_command
from prompt_tuning.cli.processes import has_several_processes
from prompt_tuning.errors import PromptTuningError, RecipeError
from prompt_tuning.support.data_files import checked_path, file_format
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning init questions.csv
  prompt-tuning init rows/ --output summaries.yaml --yes
  prompt-tuning init pairs.tsv --source_lang fr --target_lang en --model_name_or_path models/SmolLM2-135M-Instruct
  prompt-tuning init questions.csv --question_column ask --context_column page --answer_column reply
  prompt-tuning train recipe.yaml

DATA is a json, jsonl, csv, tsv or parquet file, a pattern, a folder of such files (train, validation, test), a folder
of save_to_disk, or a hub id. The command recognises the task, the columns and the languages, and counts tokens. It
trains a few steps to measure seconds and memory, and keeps nothing of them. The recipe says why it proposes a setting.
A setting that you name is taken as it is.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "init",
        run,
        help="Write a recipe for your own rows.",
        examples=EXAMPLES,
        usage="DATA [options]",
    )
    parser.add_argument("data", metavar="DATA", help="a file, a folder or a hub id")
    parser.add_argument(
        "--output", metavar="FILE", default=RunFolder.RECIPE, help="the recipe to write (default: recipe.yaml)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parser.add_argument("--yes", action="store_true", help="ask nothing and take the proposals, as without a terminal")
    parser.add_argument(
        "--no_measurement", "--no-measurement", action="store_true", help="do not load the model to measure the costs"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Write the recipe, and print what was recognised and the next commands.

    Raises:
        RecipeError: the file is there already, or the command was started in several processes.
        PromptTuningError: the rows cannot be read or recognised; or the recipe that was written does not run.
    """
    path = Path(args.output)
    if path.exists() and not args.overwrite:
        raise RecipeError(f"{path}: the file is there already. Name another --output, or add --overwrite.")
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{path}: a recipe is a YAML file. Name an --output that ends in .yaml.")
    if has_several_processes():
        raise RecipeError("init: it runs in one process. Start it without accelerate launch.")
    data = Path(args.data).expanduser()
    if data.is_file() or (file_format(data) and not data.is_dir()):
        checked_path(args.data, args.output)  # A misspelt name is reported before torch is imported.
    from prompt_tuning.recipe.parser import RecipeParser
    from prompt_tuning.runs.measure import measure
    from prompt_tuning.studies.propose import propose
    from prompt_tuning.studies.proposed_recipe import next_commands, recipe_text
    from prompt_tuning.support.files import write_text
    from prompt_tuning.support.trust import FLAG

    asks = sys.stdin.isatty() and not args.yes
    proposal = propose(args.data, RecipeParser().typed_flags(overrides), _ask if asks else None)
    costs = None
    for is_measured in (False, True):
        write_text(path, recipe_text(args.data, path, proposal, costs), named_by_user=True)
        if args.no_measurement or is_measured:
            break
        args.when_interrupted = f"; {path} is written, without measured costs"
        try:
            costs = measure(path, trust_remote_code=bool(proposal[FLAG]))
        except PromptTuningError as error:
            advice = f"{path} is written. Correct it, and run `prompt-tuning check {path}`."
            raise type(error)(f"{error}\n{advice}") from error
    print_text(recipe_text(args.data, path, proposal, costs))
    commands = next_commands(path, proposal)
    print_text(f"written: {path}. Next: `{commands['Train']}`")
    settings = proposal.settings | proposal.set_by_user
    return Result({"recipe": path, "settings": settings, "reasons": proposal.reasons, "next": commands})


def _ask(question: str, answers: Sequence[str]) -> str:
    """Return what the user answers on the terminal; the first answer for an empty line."""
    print_text(f"{question} [{answers[0]}]{''.join(f' or {answer}' for answer in answers[1:])}: ", file=sys.stderr)
    return sys.stdin.readline().strip() or answers[0]
