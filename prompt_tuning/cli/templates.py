"""`prompt-tuning templates`: list templates, show one, or render them on a row."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.cli.parsing import Commands, Result, add_command
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning templates
  prompt-tuning templates translation
  prompt-tuning templates question_answering/few_shot
  prompt-tuning templates summarization --row '{"document": "The ferry is late because of the storm."}'
  prompt-tuning templates translation/chat --row '{"translation": {"fr": "Bonjour.", "en": "Good morning."}}'
  prompt-tuning templates mine.yaml my_templates/ --row rows.jsonl --question_column query
  prompt-tuning templates templates.yaml "templates.yaml:Its Name" --show

A file holds the fields of one template, or several templates by name, or is a file of promptsource. `render` also
shows the tokens, with the chat template and the token limits of a recipe.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "templates", run, help="List templates, show one, or render them on a row.", examples=EXAMPLES
    )
    parser.add_argument(
        "names",
        metavar="TEMPLATE",
        nargs="*",
        help="a task, a shipped template, a YAML file, one of its templates as FILE:NAME, or a folder (default: all "
        "shipped templates)",
    )
    parser.add_argument("--show", action="store_true", help="print templates in full instead of a table")
    parser.add_argument(
        "--row",
        metavar="ROW",
        help="render them on a row: written as JSON, or the first of a file that train reads",
    )
    for field in dataclasses.fields(DataArguments):
        if field.name.endswith("_column") or field.name in ("source_lang", "target_lang"):
            parser.add_argument(f"--{field.name}", metavar="NAME", help=field.metadata["help"])


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Print the templates. Those that cannot be read or rendered are named on standard error.

    The exit code is 2 if no template could be read.
    """
    from prompt_tuning.templates import preview
    from prompt_tuning.templates.template import Template, load_templates

    templates: dict[str, Template] = {}
    problems: list[str] = []
    for where in args.names or [None]:
        readable, unreadable = load_templates(where)
        templates |= readable
        problems += unreadable.values()
    if args.row and templates:
        from prompt_tuning.data.rows import read_row

        row, languages = preview.rename_columns(read_row(args.row), vars(args), args.source_lang, args.target_lang)
        texts, unrendered = preview.render_on_row(templates, row, languages)
        problems += unrendered
    elif args.show or len(templates) == 1:
        texts = [preview.template_file(name, template) for name, template in templates.items()]
    else:
        texts = [preview.template_table(templates)] if templates else []
    for text in texts:
        print_text(text)
    for problem in problems:
        print_text(f"left out: {problem}", file=sys.stderr)
    facts = {"templates": {name: template.to_yaml() for name, template in templates.items()}, "left_out": problems}
    return Result(facts | ({"rendered": texts} if args.row else {}), 0 if templates else 2)
