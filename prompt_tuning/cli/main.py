"""The command line. Each command imports what it needs when it runs, so that --help answers at once."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import io
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.arguments.arguments import DataArguments
from prompt_tuning.cli.help import EXAMPLES, our_flags
from prompt_tuning.errors import DataError, PromptTuningError, RecipeError, Stopped

if TYPE_CHECKING:
    from prompt_tuning.recipe.recipe import Recipe


# Errors of a disk or of a path that the user named.
DISK_ERRORS = (
    errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG,
)  # fmt: skip
GOES_ON = "; the same command goes on from here"


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 done, 1 failed, 2 bad usage or recipe, 130 interrupted, 143 terminated."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    _set_up_messages()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # rows are of any language, whatever the terminal's is
    try:
        with _lost_process_told():
            return args.run(args, rest) or 0
    except PromptTuningError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        if _is_first_process():
            print(f"\n{stopped}; {_goes_on(args, argv, stopped)}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print(f"\ninterrupted{args.when_interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # else Python complains once more when it flushes standard output
        return 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(
            f"error: {error.filename or 'writing'}: {error.strerror}; nothing half-written was left", file=sys.stderr
        )
        return 1


def _goes_on(args: argparse.Namespace, argv: list[str] | None, stopped: Stopped) -> str:
    """What a run that saved a checkpoint is gone on with."""
    command = ["prompt-tuning", *(sys.argv[1:] if argv is None else argv)]
    if args.run is _train:
        flag = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        flag.add_argument("--resume_from_checkpoint", "--resume-from-checkpoint")
        resumed, command = flag.parse_known_args(command)
        named = Path(resumed.resume_from_checkpoint or "").is_dir() and resumed.resume_from_checkpoint
        # Behind a checkpoint that was named the last one is perhaps not that of this run.
        command += ["--resume_from_checkpoint", stopped.checkpoint if named else "true"]
    launch = ", by the same launch" if _has_several_processes() else ""  # one alone would take fewer rows a step
    return f"to go on{launch}: {shlex.join(command)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prompt-tuning",
        description="Adapt a frozen language model to a task by its prompt alone.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable, help: str, usage: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=EXAMPLES[name] + (our_flags() if name == "train" else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            usage=f"%(prog)s {usage} [--key value ...]" if usage else None,
        )
        added.set_defaults(run=run, takes_overrides=bool(usage), when_interrupted="")
        return added

    train = command("train", _train, "Train a soft prompt, evaluate it, save it.", "RECIPE")
    train.add_argument("recipe", metavar="RECIPE", nargs="?", help="a YAML file")
    train.add_argument(
        "--help_all", "--help-all", action="store_true", help="list every flag, the Trainer's too, and exit"
    )
    train.set_defaults(
        when_interrupted="; --resume_from_checkpoint true goes on from the last checkpoint, if one was saved"
    )

    evaluate = command(
        "evaluate", _evaluate, "Evaluate a split with an adapter, or the hard prompt alone.", "RECIPE [options]"
    )
    evaluate.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    evaluate.add_argument(
        "--adapter", metavar="ADAPTER", help="folder or hub id of a trained run; without it the hard prompt alone"
    )
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"), help="default: test")

    _add_ensemble(command)
    _add_commands_without_recipe(command)

    render = command("render", _render, "Show exactly what the model sees.", "RECIPE [options]")
    render.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    render.add_argument("-n", metavar="N", type=_positive, default=3, help="rows to show (default: 3)")
    render.add_argument("--split", default="train", choices=("train", "validation", "test"), help="default: train")

    compare = command(
        "compare", _compare, "Train several recipes on the same rows and say which is better.", "RECIPE ... [options]"
    )
    compare.add_argument("recipes", metavar="RECIPE", nargs="+", help="YAML files")
    compare.add_argument("--seeds", metavar="N", nargs="+", type=int, default=[42], help="default: 42")
    compare.add_argument("--metric", metavar="NAME", help="default: the task's main one")
    compare.add_argument(
        "--output_dir",
        "--output-dir",
        metavar="RUNS",
        type=Path,
        default=Path("runs/compare"),
        help="where the runs and the comparison go (default: runs/compare)",
    )
    compare.set_defaults(when_interrupted=GOES_ON)

    _add_sweep(command)
    _add_rank(command)

    check = command("check", _check, "Report every error of recipes, their data and templates.", "RECIPE ...")
    check.add_argument("recipes", metavar="RECIPE", nargs="+", help="YAML files")
    return parser


def _add_commands_without_recipe(command: Callable[..., argparse.ArgumentParser]) -> None:
    predict = command("predict", _predict, "Predict for rows of a file or of standard input.")
    predict.add_argument("--adapter", metavar="ADAPTER", required=True, help="folder or hub id of a trained run")
    predict.add_argument(
        "--input",
        metavar="FILE",
        default="-",
        help="JSON Lines, plain text with one source a line, or a json, csv or parquet file (default: standard input)",
    )
    predict.add_argument(
        "--output",
        metavar="FILE",
        default="-",
        help="JSON Lines: each row with its `prediction` (default: standard output)",
    )
    predict.add_argument("--batch_size", "--batch-size", metavar="N", type=_positive, default=8, help="default: 8")
    predict.add_argument("--model_name_or_path", metavar="MODEL", help="where the base model lies, if it has moved")

    inspect = command("inspect", _inspect, "Nearest tokens, norms and moves of a trained prompt.")
    inspect.add_argument("adapter", metavar="ADAPTER", help="folder or hub id of a trained run")
    inspect.add_argument("--model_name_or_path", metavar="MODEL", help="where the base model lies, if it has moved")
    inspect.add_argument("-n", metavar="N", type=_positive, default=5, help="nearest tokens of each (default: 5)")
    inspect.add_argument("--output", metavar="DIR", help="for inspection.json and inspection.png; default: ADAPTER")

    convert = command("import-gguf", _import_gguf, "Turn a GGUF file into a trainable model folder.")
    convert.add_argument("source", metavar="SOURCE", help="a .gguf file, or an installed package that holds one")
    convert.add_argument("output", metavar="OUT", help="the folder to make")

    _add_templates(command)

    show = command("show", _show, "Print the results of a run again.")
    show.add_argument("folder", metavar="RUN", type=Path, help="folder that train or evaluate wrote")
    show.add_argument("-n", metavar="N", type=int, default=3, help="example rows (default: 3)")

    report = command("report", _report, "Write a run's report.html again.")
    report.add_argument("folder", metavar="RUN", type=Path, help="folder that train or evaluate wrote")

    card = command("card", _card, "Write a run's model card again.")
    card.add_argument("source", metavar="RUN", type=Path, help="folder that train wrote, or a card's facts (.json)")
    card.add_argument(
        "--output", metavar="FILE", type=Path, help="the card (.md), or its facts (.json); default: RUN/README.md"
    )
    card.add_argument(
        "--example", metavar="FILE", type=Path, help="one row as JSON, shown in place of the first one of the data"
    )

    push = command("push", _push, "Share a run on the Hugging Face hub.")
    push.add_argument("folder", metavar="RUN", help="folder of a finished train")
    push.add_argument("--repo_id", "--repo-id", metavar="NAME", required=True, help="NAME or USER/NAME; made if new")
    push.add_argument("--private", action="store_true", help="make it a private repository")
    push.add_argument("--revision", metavar="BRANCH", help="branch to push to; made if new (default: main)")
    push.add_argument(
        "--base_model", "--base-model", metavar="ID", help="the base model's hub id, if it was trained from a folder"
    )
    push.add_argument("--overwrite", action="store_true", help="replace an adapter of another base model")
    push.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="list what would be uploaded; asks no network"
    )


def _add_templates(command: Callable[..., argparse.ArgumentParser]) -> None:
    templates = command("templates", _templates, "List templates, show one, or render them on a row.")
    templates.add_argument(
        "names",
        metavar="TEMPLATE",
        nargs="*",
        help="a task, a shipped template, a YAML file, one of its templates as FILE:NAME, or a folder; default: all "
        "that are shipped",
    )
    templates.add_argument("--show", action="store_true", help="each whole; without it several are listed")
    templates.add_argument(
        "--row", metavar="ROW", help="render each on a row, written as JSON, or the first of a json or jsonl file"
    )
    for field in dataclasses.fields(DataArguments):
        if field.name.endswith("_column") or field.name in ("source_lang", "target_lang"):
            templates.add_argument(f"--{field.name}", metavar="NAME", help=field.metadata["help"])


def _add_sweep(command: Callable[..., argparse.ArgumentParser]) -> None:
    sweep = command("sweep", _sweep, "Train many prompts over one base model, which is read once.", "SWEEP [options]")
    sweep.add_argument("sweep", metavar="SWEEP", help="a YAML file: `recipe`, and `runs` by name with their settings")
    sweep.add_argument(
        "--output_dir", "--output-dir", metavar="RUNS", type=Path, default=Path("runs/sweep"),
        help="where the runs and their table go (default: runs/sweep)",
    )  # fmt: skip
    sweep.set_defaults(when_interrupted=GOES_ON)


def _add_rank(command: Callable[..., argparse.ArgumentParser]) -> None:
    rank = command(
        "rank", _rank, "Find the best template and number of demonstrations, without training.", "RECIPE [options]"
    )
    rank.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    rank.add_argument(
        "--templates",
        metavar="TEMPLATE",
        nargs="+",
        help="shipped, YAML files, FILE:NAME or folders (default: the recipe's and all that are shipped for its task, "
        "but those that are answered by choosing)",
    )
    rank.add_argument(
        "--num_demonstrations",
        "--num-demonstrations",
        metavar="N",
        nargs="+",
        type=_not_negative,
        help="training rows shown before each source (default: the recipe's)",
    )
    rank.add_argument("--seeds", metavar="N", nargs="+", type=int, help="to draw these with (default: the recipe's)")
    rank.add_argument("--rows", metavar="N", type=_positive, help="the first N validation rows (default: all)")
    rank.add_argument(
        "--finalists", metavar="N", type=_positive, default=3, help="candidates that write predictions (default: 3)"
    )
    rank.add_argument(
        "--output_dir",
        "--output-dir",
        metavar="DIR",
        type=Path,
        default=Path("runs/rank"),
        help="where the table, the scores and winner.yaml go (default: runs/rank)",
    )
    rank.set_defaults(when_interrupted=GOES_ON)


def _add_ensemble(command: Callable[..., argparse.ArgumentParser]) -> None:
    ensemble = command(
        "ensemble",
        _ensemble,
        "Let several prompts of one model decide together.",
        "RECIPE --adapters ADAPTER ... [options]",
    )
    ensemble.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    ensemble.add_argument("--adapters", metavar="ADAPTER", nargs="+", required=True, help="folders or hub ids")
    ensemble.add_argument(
        "--combine",
        default="vote",
        choices=("vote", "logits"),
        help="vote: the most frequent text; logits: the mean of the log-probabilities at each token (default: vote)",
    )
    ensemble.add_argument("--split", default="test", choices=("train", "validation", "test"), help="default: test")


def _train(args: argparse.Namespace, overrides: list[str]) -> None:
    from prompt_tuning.recipe.loading import load_recipe, print_all_flags

    if args.help_all:
        print_all_flags()
        return
    if args.recipe is None:
        raise RecipeError("no recipe; name one, as `prompt-tuning train recipes/quickstart/qa.yaml`")
    recipe = load_recipe(args.recipe, overrides)
    from prompt_tuning.runs.train import train

    _print_summary(train(recipe))


def _evaluate(args: argparse.Namespace, overrides: list[str]) -> None:
    from prompt_tuning.recipe.loading import load_recipe

    recipe = load_recipe(args.recipe, overrides)
    from prompt_tuning.runs.evaluate import evaluate

    _print_summary(evaluate(recipe, args.adapter, args.split, _chosen_folder(recipe, overrides)))


def _predict(args: argparse.Namespace, _: list[str]) -> None:
    if _has_several_processes():
        raise RecipeError("predict runs in one process; start it without accelerate launch")
    from prompt_tuning.runs.predict import predict

    predict(args.adapter, args.input, args.output, args.batch_size, args.model_name_or_path)


def _render(args: argparse.Namespace, overrides: list[str]) -> None:
    from prompt_tuning.recipe.loading import load_recipe

    recipe = load_recipe(args.recipe, overrides)
    from prompt_tuning.cli.render import render
    from prompt_tuning.runs.prepare import prepare

    for text in render(prepare(recipe, (args.split,)), args.split, args.n):
        print(text)


def _templates(args: argparse.Namespace, _: list[str]) -> int:
    from prompt_tuning.templates import preview as library
    from prompt_tuning.templates.template import Template, load_templates

    found = {}
    for where in args.names or [None]:
        found |= load_templates(where)
    templates = {name: template for name, template in found.items() if isinstance(template, Template)}
    problems = [str(error) for error in found.values() if not isinstance(error, Template)]
    if args.row and templates:
        row, languages = library.row_of_template(
            library.read_row(args.row), vars(args), args.source_lang, args.target_lang
        )
        texts, unrendered = library.on_row(templates, row, languages)
        problems += unrendered
    elif args.show or len(templates) == 1:
        texts = [library.whole(name, template) for name, template in templates.items()]
    else:
        texts = [library.table(templates)] if templates else []
    for text in texts:
        print(text)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0 if templates else 2


def _check(args: argparse.Namespace, overrides: list[str]) -> int:
    from prompt_tuning.cli.check import check

    worst = 0
    for path in args.recipes:
        try:
            print(f"{path}: ok, {check(path, overrides)}")
        except PromptTuningError as error:
            for line in str(error).splitlines():
                print(f"error: {line}" if line.startswith(path) else f"error: {path}: {line}", file=sys.stderr)
            worst = max(worst, error.exit_code)
    return worst


def _compare(args: argparse.Namespace, overrides: list[str]) -> None:
    from prompt_tuning.studies.compare import compare, comparison_text

    text = comparison_text(compare(args.recipes, overrides, args.seeds, args.output_dir, args.metric))
    if _is_first_process():
        print(text)


def _sweep(args: argparse.Namespace, overrides: list[str]) -> int:
    from prompt_tuning.studies.sweep import sweep, sweep_text

    swept = sweep(args.sweep, overrides, args.output_dir)
    if _is_first_process():
        print(sweep_text(swept))
    return 1 if any("error" in run for run in swept.values()) else 0


def _rank(args: argparse.Namespace, overrides: list[str]) -> None:
    from prompt_tuning.studies.rank import rank
    from prompt_tuning.studies.rank_table import rank_text

    counts, folder = args.num_demonstrations, args.output_dir
    ranked = rank(args.recipe, overrides, folder, args.templates, counts, args.seeds, args.rows, args.finalists)
    if _is_first_process():
        print(f"{rank_text(ranked)}\nwritten: {folder / 'winner.yaml'}")


def _inspect(args: argparse.Namespace, _: list[str]) -> None:
    from prompt_tuning.studies.inspect import inspect, inspection_text

    print(inspection_text(inspect(args.adapter, args.model_name_or_path, args.n, args.output)))


def _ensemble(args: argparse.Namespace, overrides: list[str]) -> None:
    from prompt_tuning.recipe.loading import load_recipe

    recipe = load_recipe(args.recipe, overrides)
    from prompt_tuning.studies.ensemble import ensemble, ensemble_text

    folder = ensemble(recipe, args.adapters, args.combine, args.split, _chosen_folder(recipe, overrides))
    if _is_first_process():
        print(ensemble_text(folder))


def _import_gguf(args: argparse.Namespace, _: list[str]) -> None:
    from prompt_tuning.models.gguf import import_gguf

    print(import_gguf(args.source, args.output))


def _push(args: argparse.Namespace, _: list[str]) -> None:
    from prompt_tuning.hub.upload import list_upload, plan_upload, push

    if args.dry_run:
        print(list_upload(plan_upload(args.folder, args.repo_id, args.base_model)))
        return
    options = {"revision": args.revision, "base_model": args.base_model, "overwrite": args.overwrite}
    print(push(args.folder, args.repo_id, private=args.private or None, **options))


def _show(args: argparse.Namespace, _: list[str]) -> None:
    from prompt_tuning.reports.summary import summarize

    print(summarize(args.folder, args.n))


def _report(args: argparse.Namespace, _: list[str]) -> None:
    from prompt_tuning.reports.html import write_report

    print(write_report(args.folder))


def _card(args: argparse.Namespace, _: list[str]) -> None:
    from prompt_tuning.reports.model_card import write_card

    own = None
    if args.example:
        if args.source.suffix == ".json":
            raise DataError(f"{args.source}: an example is read by what was trained; name the run's folder")
        from prompt_tuning.cli.card import own_example

        own = own_example(args.source, args.example)
    print(write_card(args.source, args.output, own))


def _chosen_folder(recipe: Recipe, overrides: list[str]) -> Path | None:
    """output_dir, if the command line names one; else these commands make a folder in the run's."""
    chosen = any(item.split("=")[0] in ("--output_dir", "--output-dir") for item in overrides)
    return Path(recipe.training.output_dir) if chosen else None


def _print_summary(folder: Path) -> None:
    from prompt_tuning.reports.summary import summarize

    if _is_first_process():
        print(f"\n{summarize(folder)}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _lost_process_told() -> AbstractContextManager:
    if "WORLD_SIZE" not in os.environ:
        return nullcontext()
    from prompt_tuning.training.distributed import explain_lost_process  # which imports torch

    return explain_lost_process()


def _has_several_processes() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _set_up_messages() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("prompt_tuning")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    if not _is_first_process():  # of several processes the first speaks, and the others of errors alone
        logger.setLevel(logging.ERROR)
        os.environ |= {
            "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
    # peft 0.21 asks transformers 5.23 for a name it has renamed; nothing that a user could mend
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
