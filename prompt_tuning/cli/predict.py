"""`prompt-tuning predict`: predict for the rows of a file or of standard input."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.cli.parsing import (
    Commands,
    Result,
    add_command,
    add_moved_model,
    add_trust,
    check_json_output,
    load_recipe,
    number_in,
)
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.ranges import COUNT, PERCENT

OF_API = {"base_url": "URL", "api_key_env": "NAME", "tokenizer_name": "TOKENIZER", "max_cost": "COST"}
"""The flags of a model behind an API, which are settings of its recipe."""

EXAMPLES = """\
  prompt-tuning predict --adapter runs/quickstart --input rows.jsonl --output predicted.jsonl
  echo '{"context": "Ada lives in Turin.", "question": "Where?"}' | prompt-tuning predict --adapter runs/quickstart
  prompt-tuning predict --adapter runs/fr-en --input sentences.txt --batch_size 32
  prompt-tuning predict --adapter somebody/squad-prompt@main --input rows.jsonl
  prompt-tuning predict --adapter qa=runs/quickstart runs/fr-en --input mixed.jsonl --output predicted.parquet
  prompt-tuning predict --recipe api.yaml --base_url http://localhost:8000/v1 --input rows.jsonl --output out.jsonl
  prompt-tuning predict --recipe api.yaml --base_url http://localhost:8000/v1 --input train.jsonl \\
    --output taught.jsonl --as_targets --agree question_answering/instruction
  accelerate launch --num_processes 2 -m prompt_tuning predict --adapter runs/mine --input rows.jsonl --output out.csv
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "predict", run, help="Predict for the rows of a file or of standard input.", examples=EXAMPLES
    )
    predicts = parser.add_mutually_exclusive_group(required=True)
    predicts.add_argument(
        "--adapter",
        metavar="ADAPTER",
        nargs="+",
        help="folder or hub id of a trained run; or of several on one base model, each also as NAME=ADAPTER, for rows "
        "whose column `task` names one",
    )
    predicts.add_argument("--recipe", metavar="RECIPE", help="a recipe whose model is openai:NAME, behind an API")
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
        "--batch_size",
        "--batch-size",
        metavar="N",
        type=number_in(COUNT),
        default=8,
        help="the most rows of a batch (default: 8)",
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
    _add_api_flags(parser)


def _add_api_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that only a model behind an API has."""
    group = parser.add_argument_group("a model behind an API (--recipe)")
    for field in dataclasses.fields(ModelArguments):
        if field.name in OF_API:
            group.add_argument(
                f"--{field.name}",
                f"--{field.name.replace('_', '-')}",
                metavar=OF_API[field.name],
                help=field.metadata["help"].removeprefix("openai:NAME: "),
            )
    group.add_argument(
        "--as_targets",
        "--as-targets",
        action="store_true",
        help="write training rows, with the answers as their targets. Rows whose answer is refused, empty, "
        "at its limit or none of the choices are left out and counted",
    )
    group.add_argument(
        "--agree",
        metavar="TEMPLATE",
        nargs="+",
        help="--as_targets: ask with these templates, too, and leave out rows whose answers do not agree",
    )
    group.add_argument(
        "--agreement",
        metavar="SCORE",
        type=number_in(PERCENT, float),
        default=100,
        help="--agree: the least score of two answers against each other, by the task's main metric (default: 100)",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Predict, row by row in their order."""
    from prompt_tuning.hub.ids import check_local_adapter
    from prompt_tuning.support.data_files import checked_path

    check_json_output("predict", args)
    checked_path(args.input, args.output)
    if args.recipe is not None:
        return _run_api(args)
    api_flags = [name for name in OF_API if getattr(args, name) is not None]
    if api_flags:
        raise RecipeError(f"--{api_flags[0]}: it is for a model behind an API. Name --recipe, or leave it out.")
    if args.as_targets:
        raise RecipeError("--as_targets: it is for a model behind an API. Name --recipe, or leave it out.")
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


def _run_api(args: argparse.Namespace) -> Result:
    """Predict by the hard prompt of a recipe, whose model is behind an API."""
    if args.score:
        raise RecipeError("--score: a model behind an API has no scores. Leave it out.")
    if args.agree and not args.as_targets:
        raise RecipeError("--agree: it has no effect without --as_targets. Add that, or leave it out.")
    flags = []
    for name in ("model_name_or_path", *OF_API):
        if getattr(args, name) is not None:
            flags.append(f"--{name}={getattr(args, name)}")
    recipe = load_recipe(args.recipe, flags)
    if recipe.prompt.template in (args.agree or ()):
        raise RecipeError(f"--agree {recipe.prompt.template}: it is the recipe's own template. Name others.")
    from prompt_tuning.runs.api_predict import predict_by_api
    from prompt_tuning.runs.teacher import Targets

    targets = Targets(recipe.data, args.agree or (), args.agreement) if args.as_targets else None
    counts = predict_by_api(recipe, args.input, args.output, with_truncated=args.truncated, targets=targets)
    return Result({"output": args.output} | counts)
