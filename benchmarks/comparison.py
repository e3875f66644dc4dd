"""Compare the methods of recipes/compare/methods.yaml on one task: four rates each, equal steps, equal time.

    python benchmarks/comparison.py DATA --task qa-newwiki [--seeds 42 43 44] [--key=value ...]
    python benchmarks/comparison.py DATA --task qa-newwiki --only lora prompt
    python benchmarks/comparison.py DATA --task qa-newwiki --train_rows 64      # or 16, which are part of the 64
    python benchmarks/comparison.py DATA --task qa-newwiki --short              # two steps on a few rows

DATA/TASK holds train.jsonl, validation.jsonl and test.jsonl. 100 validation and 200 test rows are drawn (seed 0), of
any length. Each run is a folder in runs/comparison, and a finished one is not repeated, so that the same command
resumes. The machine should do nothing else, because equal time is by the measured seconds of a step. With few training
rows the methods are compared at equal steps only.
"""

import argparse
import tempfile
from pathlib import Path

import yaml
from common import MODEL, ROOT, describe_machine, drawn_rows

from prompt_tuning.studies.compare import compare
from prompt_tuning.studies.compare_table import comparison_text

RECIPES = ROOT / "recipes" / "compare"
TASKS = ("qa-newwiki", "summarization-meqsum", "translation-tatoeba-en-fr")
FEW_ROWS = (64, 16)
SHORT_ROWS = {"train": 32, "validation": 6, "test": 6}
SHORT_FLAGS = ("--max_steps=2", "--per_device_train_batch_size=2", "--max_source_tokens=256", "--max_target_tokens=24")


def write_study(task: str, only: list[str], into: Path, num_rates: int | None = None) -> Path:
    """Write the methods, or some of them, with the recipe of a task, and return the file."""
    study = yaml.load((RECIPES / "methods.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)
    study["recipe"] = str(RECIPES / f"{task}.yaml")
    study["runs"] = {name: run for name, run in study["runs"].items() if name in only or not only}
    for run in study["runs"].values():
        if "learning_rates" in run:
            run["learning_rates"] = run["learning_rates"][:num_rates]
    into.mkdir(parents=True, exist_ok=True)
    path = into / "methods.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def compare_methods(args: argparse.Namespace, flags: list[str], into: Path) -> dict:
    """Run the comparison in a folder and return its results."""
    rows = {"train": max(FEW_ROWS) if args.train_rows else None, "validation": 100, "test": 200}
    if args.train_rows:
        flags = [*flags, f"--max_train_samples={args.train_rows}"]
    if args.short:
        rows, flags = SHORT_ROWS, [*SHORT_FLAGS, *flags]
    study = write_study(args.task, args.only, into, num_rates=2 if args.short else None)
    files = drawn_rows(args.data / args.task, into / "rows", rows)
    settings = {"model_name_or_path": str(MODEL), "save_strategy": "no", **files}
    overrides = [*(f"--{name}={value}" for name, value in settings.items()), *flags]
    return compare([str(study)], overrides, args.seeds, into, equal_time=not args.train_rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with a folder for each task")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0], help=f"default: {TASKS[0]}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="default: 42 43 44")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="names in methods.yaml")
    parser.add_argument("--train_rows", type=int, choices=FEW_ROWS, help="number of training rows; default: all")
    parser.add_argument("--short", action="store_true", help="two steps on a few rows, in a folder that is removed")
    args, flags = parser.parse_known_args(argv)
    print(f"{describe_machine()}\n", flush=True)
    if args.short:
        with tempfile.TemporaryDirectory() as folder:
            print(comparison_text(compare_methods(args, flags, Path(folder))))
        return
    name = f"{args.task}-rows{args.train_rows}" if args.train_rows else args.task
    print(comparison_text(compare_methods(args, flags, ROOT / "runs" / "comparison" / name)))


if __name__ == "__main__":
    main()
