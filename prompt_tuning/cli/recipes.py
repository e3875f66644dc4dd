"""`prompt-tuning recipes`: list the recipes of this package, or copy one with its files."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import Commands, Result, add_command
from prompt_tuning.recipe.shipped import FOLDER, copy_recipe, description, shipped_recipes
from prompt_tuning.support.tables import text_table
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning recipes
  prompt-tuning recipes copy quickstart/qa
  prompt-tuning recipes copy compare/methods mine

A copy brings the templates, rows and recipes that it names. FOLDER takes the place of recipes/ in their text, and is
looked for in the folder where a later command starts. No file is overwritten. What a recipe needs besides, such as a
model or rows of the hub, is in its first lines. The files of accelerate/ are for `accelerate launch --config_file`.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "recipes", run, help="List the recipes of this package, or copy one.", examples=EXAMPLES
    )
    parser.add_argument("action", metavar="copy", nargs="?", choices=("copy",), help="copy a recipe (default: list)")
    parser.add_argument("name", metavar="NAME", nargs="?", help="a recipe of the list")
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", default=FOLDER, help=f"where to copy it (default: {FOLDER})"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Print the table of recipes, or copy one and print its files."""
    if args.action is None:
        recipes = {name: description(file) for name, file in shipped_recipes().items()}
        print_text(text_table(("name", "what it does"), list(recipes.items())))
        return Result({"recipes": recipes})
    if args.name is None:
        args.parser.error("NAME: it is missing. Name a recipe that `prompt-tuning recipes` lists.")
    files = copy_recipe(args.name, args.folder)
    for path, is_new in files.items():
        print_text(path if is_new else f"{path}: it was there already")
    return Result({"files": list(files), "written": [path for path, is_new in files.items() if is_new]})
