"""Compare every method and every start of a prompt at equal steps: scores, trained numbers and seconds.

    python benchmarks/methods.py                     # on the quickstart's rows
    python benchmarks/methods.py --data FOLDER       # on a folder's train.jsonl and test.jsonl, with SQuAD's columns
    python benchmarks/methods.py --only NAME ... --against NAME        # some of them, compared with one

A run has seed 42, 40 steps of 8 rows, and the template question_answering/instruction_last. A folder's rows are used
if their passage and question have at most 160 tokens: all of train.jsonl, and 200 of test.jsonl at random. "text" is
the quickstart's text: two demonstrations with their instruction, 131 tokens. A run in runs/methods is not repeated. A
run takes some four minutes.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import yaml
from common import ROOT, describe_machine, drawn_rows, print_table

from prompt_tuning.metrics.loading import load_metrics
from prompt_tuning.metrics.significance import difference, interval, row_scores
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.train import train
from prompt_tuning.support.files import read_json_lines

QUICKSTART = ROOT / "recipes" / "quickstart"
# All methods have these in place of the quickstart's, which not every method takes.
OTHER_SETTINGS = {"group_shared": None, "max_steps": 40}
SHORT = {"init": None, "init_text": None, "num_virtual_tokens": "20"}
PLAIN = {"init": None, "init_text": None}
METHODS = {
    "prompt_tuning, text": {},
    "lora, r=8": PLAIN | {"method": "lora", "learning_rate": "1e-3"},
    "prompt_tuning, 20 sampled tokens": SHORT,
    "prefix_tuning, text": {"method": "prefix_tuning", "learning_rate": "2e-3"},
    "prefix_tuning, text, 1e-2": {"method": "prefix_tuning", "learning_rate": "1e-2"},
    "p_tuning, 20 tokens": SHORT | {"method": "p_tuning", "learning_rate": "3e-3"},
    "p_tuning, 20 tokens, 1e-3": SHORT | {"method": "p_tuning", "learning_rate": "1e-3"},
    "cpt, text": {"method": "cpt", "init": None, "learning_rate": "3e-3"},
    "cpt, text, 3e-2": {"method": "cpt", "init": None, "learning_rate": "3e-2"},
    "few-shot, the same text": PLAIN
    | {"method": "none", "template": str(QUICKSTART / "templates/two_examples.yaml"), "max_source_tokens": "512"},
    "prompt_tuning, 20 random": SHORT | {"init": "random"},
    "prompt_tuning, 20 frequent": SHORT | {"init": "frequent"},
    "prompt_tuning, 2 demonstrations of the data": {"init": "demonstrations", "init_text": None},
    "prompt_tuning, text, residual": {"residual": "true", "encoder_hidden_size": "128"},
    "prompt_tuning, class labels": {
        "init": "class_labels", "init_text": None, "init_labels": ["person", "place", "date", "number"],
    },
    "prefix_tuning, 20 random": SHORT | {"method": "prefix_tuning", "learning_rate": "1e-2", "init": "random"},
    "prefix_tuning, 20 projected": SHORT
    | {"method": "prefix_tuning", "prefix_projection": "true", "learning_rate": "2e-3"},
    "prefix_tuning, 20 projected, 3e-4": SHORT
    | {"method": "prefix_tuning", "prefix_projection": "true", "learning_rate": "3e-4"},
    "prefix_tuning, 2 demonstrations of the data": {
        "method": "prefix_tuning", "init": "demonstrations", "init_text": None, "learning_rate": "1e-2",
    },
    "prompt_tuning, another adapter": {"init": "adapter", "init_text": None, "init_adapter": "runs/soft_prompt"},
    "full": PLAIN | {"method": "full", "learning_rate": "2e-5"},
}  # fmt: skip


def folder_of(name: str, runs: Path) -> Path:
    """Return the folder of a method's run."""
    return runs / name.replace(", ", "_").replace(" ", "-").replace("=", "")


def results(name: str, changes: dict, files: dict, runs: Path) -> dict:
    """Return a method's results.json with its learning rate, and train it first if that has not been done."""
    folder = folder_of(name, runs)
    if not (folder / "results.json").is_file():
        quickstart = yaml.load((QUICKSTART / "qa.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)
        settings = quickstart | OTHER_SETTINGS | files | changes | {"output_dir": str(folder), "save_strategy": "no"}
        recipe = runs / f"{folder.name}.yaml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value}), encoding="utf-8")
        recipe = load_recipe(recipe)
        train(recipe, evaluate_hard_prompt=not changes or recipe.prompt.method == "none")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text()) if (folder / "recipe.yaml").is_file() else {}
    return json.loads((folder / "results.json").read_text(encoding="utf-8")) | {"rate": recipe.get("learning_rate")}


def scores_by_row(folder: Path, key: str) -> np.ndarray:
    """Return the F1 of each test row, `[1, rows]`."""
    rows = read_json_lines(folder / "predictions" / "test.jsonl")
    squad = load_metrics(["squad"], language="en")
    return row_scores(squad, "f1", [row[key] for row in rows], [row["references"] for row in rows])[None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    parser.add_argument("--against", default="lora, r=8", help="compare the later ones with this one, row by row")
    args = parser.parse_args()
    runs = ROOT / "runs" / "methods" / (args.data.name if args.data else "quickstart")
    files = {}
    if args.data:
        files = drawn_rows(args.data, runs, {"train": None, "test": 200}, longest=160)
        files |= {"validation_file": None, "max_target_tokens": "32", "drop_overlong": "true"}
    head = ("method, start", "EM", "F1", "95 % interval", f"F1 less that of {args.against}", "p")
    rows = [(*head, "trained numbers", "learning rate", "training, s")]
    first = None
    for name in args.only:
        run_results = results(name, METHODS[name], files, runs)
        scored = [key for key in ("hard_prompt", "soft_prompt", "lora", "full") if key in run_results]
        for key in scored:
            scores = run_results[key]
            hard = key == "hard_prompt"
            by_row = scores_by_row(folder_of(name, runs), key)
            first = by_row if name == args.against else first
            less = difference(by_row, first) if first is not None and name != args.against else None
            rows.append(
                (
                    "hard prompt, zero-shot" if hard and len(scored) > 1 else name,
                    f"{scores['exact_match']:.1f}",
                    f"{scores['f1']:.1f}",
                    "{:.1f} to {:.1f}".format(*interval(by_row)),
                    "{difference:+.1f} ({low:+.1f} to {high:+.1f})".format(**less) if less else "",
                    f"{less['p']:.4f}" if less else "",
                    "0" if hard else f"{run_results['trainable_parameters']:,}",
                    "" if hard else run_results["rate"],
                    "" if hard else f"{run_results['train_seconds']:.0f}",
                )
            )
    print(f"{describe_machine()}\n")
    print_table(*rows)


if __name__ == "__main__":
    main()
