"""`prompt-tuning predict`: predict for the rows of a file or of standard input."""

from __future__ import annotations

import argparse
from pathlib import Path

from prompt_tuning.cli.parsing import (
    Commands,
    Result,
    add_command,
    add_moved_model,
    add_trust,
    check_json_output,
    number_in,
)
from prompt_tuning.recipe.ranges import COUNT

EXAMPLES = """\
  prompt-tuning predict --adapter runs/quickstart --input rows.jsonl --output predicted.jsonl
  echo '{"context": "Ada lives in Turin.", "question": "Where?"}' | prompt-tuning predict --adapter runs/quickstart
  prompt-tuning predict --adapter runs/fr-en --input sentences.txt --batch_size 32
  prompt-tuning predict --adapter somebody/squad-prompt@main --input rows.jsonl
  prompt-tuning predict --adapter qa=runs/quickstart runs/fr-en --input mixed.jsonl --output predicted.parquet
  accelerate launch --num_processes 2 -m prompt_tuning predict --adapter runs/mine --input rows.jsonl --output out.csv
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "predict", run, help="Predict for the rows of a file or of standard input.", examples=EXAMPLES
    )
    parser.add_argument(
        "--adapter",
        metavar="ADAPTER",
        nargs="+",
        required=True,
        help="folder or hub id of a trained run; or of several on one base model, each also as NAME=ADAPTER, for rows "
        "whose column `task` names one",
    )
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
        help="the rows with their `prediction`: csv, tsv, parquet or a JSON array if its name ends so, else JSON "
        "Lines (default: standard output)",
    )
    parser.add_argument(
        "--batch_size", "--batch-size", metavar="N", type=number_in(COUNT), default=8, help="default: 8"
    )
    parser.add_argument(
        "--batch_tokens",
        "--batch-tokens",
        metavar="N",
        type=number_in(COUNT),
        default=float("inf"),
        help="the most tokens of a batch, padding and new tokens included (default: no limit)",
    )
    parser.add_argument(
        "--truncated",
        action="store_true",
        help="also write the columns `truncated` (the row was cut to fit max_source_tokens) and `at_limit` (only the "
        "limit of new tokens ended the prediction)",
    )
    parser.add_argument(
        "--score",
        action="store_true",
        help="also write the column `score`, the mean log-probability of the prediction's tokens",
    )
    add_moved_model(parser)
    add_trust(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Predict, row by row in their order."""
    from prompt_tuning.hub.ids import check_local_adapter
    from prompt_tuning.support.data_files import checked_path

    check_json_output("predict", args)
    checked_path(args.input, args.output)
    for word in args.adapter:
        is_named = len(args.adapter) > 1 and not Path(word).is_dir()
        check_local_adapter(word.rpartition("=")[2] if is_named else word, or_model=True)
    from prompt_tuning.runs.predict import PredictSettings, predict

    settings = PredictSettings(
        args.batch_size,
        args.batch_tokens,
        with_truncated=args.truncated,
        with_scores=args.score,
        trust_remote_code=args.trust_remote_code,
    )
    counts = predict(args.adapter, args.input, args.output, args.model_name_or_path, settings)
    return Result({"output": args.output} | counts)
