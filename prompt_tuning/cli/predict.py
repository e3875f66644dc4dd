"""`prompt-tuning predict`: predict for the rows of a file or of standard input."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import Commands, add_command, add_moved_model, add_trust, number_in
from prompt_tuning.cli.processes import has_several_processes
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.ranges import COUNT

EXAMPLES = """\
  prompt-tuning predict --adapter runs/quickstart --input rows.jsonl --output predicted.jsonl
  echo '{"context": "Ada lives in Turin.", "question": "Where?"}' | prompt-tuning predict --adapter runs/quickstart
  prompt-tuning predict --adapter runs/fr-en --input sentences.txt --batch_size 32
  prompt-tuning predict --adapter somebody/squad-prompt@main --input rows.jsonl
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "predict", run, help="Predict for the rows of a file or of standard input.", examples=EXAMPLES
    )
    parser.add_argument("--adapter", metavar="ADAPTER", required=True, help="folder or hub id of a trained run")
    parser.add_argument(
        "--input",
        metavar="FILE",
        default="-",
        help="a file that train reads, or JSON Lines or plain text with one source a line (default: standard input)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="-",
        help="JSON Lines: the rows, with their `prediction` (default: standard output)",
    )
    parser.add_argument(
        "--batch_size", "--batch-size", metavar="N", type=number_in(COUNT), default=8, help="default: 8"
    )
    add_moved_model(parser)
    add_trust(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Predict, row by row in their order."""
    if has_several_processes():
        raise RecipeError("predict: it runs in one process. Start it without accelerate launch.")
    from prompt_tuning.hub.ids import check_local_adapter
    from prompt_tuning.support.data_files import checked_path

    checked_path(args.input, args.output)
    check_local_adapter(args.adapter, or_model=True)
    from prompt_tuning.runs.predict import predict

    predict(
        args.adapter,
        args.input,
        args.output,
        args.batch_size,
        args.model_name_or_path,
        trust_remote_code=args.trust_remote_code,
    )
