"""Compare one multitask prompt for questions and translation with a prompt for each task.

    python benchmarks/multitask.py QUESTIONS TRANSLATION

QUESTIONS holds train.jsonl and test.jsonl with SQuAD's columns, TRANSLATION with `translation: {fr: ..., en: ...}`.
1,000 training rows and 100 test rows of each are drawn (seed 0). The prompt has 20 virtual tokens from the
vocabulary, batches have 8 rows, the seed is 42. A single task takes 40 steps and both together 80, so that each task
has as many rows. A run in runs/multitask is not repeated.
"""

import argparse
import json
from pathlib import Path

import yaml
from common import MODEL, ROOT, describe_machine, drawn_rows, print_table

from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.train import train

RUNS = ROOT / "runs" / "multitask"
STEPS = 40
TRAINING = {"model_name_or_path": str(MODEL), "seed": 42, "per_device_train_batch_size": 8, "save_strategy": "no"}
TASKS = {
    "questions": {
        "task": "question_answering", "lang": "en", "template": "question_answering/instruction_last",
        "max_source_tokens": 256, "max_target_tokens": 32, "drop_overlong": "true", "max_train_samples": 1000,
    },
    "translation": {
        "task": "translation", "source_lang": "fr", "target_lang": "en", "template": "translation/plain",
        "max_source_tokens": 192, "max_target_tokens": 64, "drop_overlong": "true", "max_train_samples": 1000,
    },
}  # fmt: skip


def results(name: str, settings: dict) -> dict:
    """Return the results.json of a run, and train it first if that has not been done."""
    recipe = RUNS / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    if not (RUNS / name / "results.json").is_file():
        train(load_recipe(recipe, [f"--output_dir={RUNS / name}"]))
    return json.loads((RUNS / name / "results.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("questions", type=Path)
    parser.add_argument("translation", type=Path)
    args = parser.parse_args()
    counts = {"train": None, "test": 100}
    tasks = {name: TASKS[name] | drawn_rows(data, RUNS / f"{name}-rows", counts) for name, data in vars(args).items()}
    single = {name: results(name, TRAINING | settings | {"max_steps": STEPS}) for name, settings in tasks.items()}
    multitask = {"method": "multitask_prompt_tuning", "tasks": [str(RUNS / f"{name}.yaml") for name in tasks]}
    both = results("both", TRAINING | multitask | {"max_steps": STEPS * len(tasks)})["tasks"]
    rows = [("task", "metric", "hard prompt", "a prompt of its own", "multitask", "rows", "seconds alone", "of both")]
    for name, task in single.items():
        metric = MAIN_METRIC[task["task"]]
        prompt_scores = (task["hard_prompt"], task["soft_prompt"], both[name]["soft_prompt"])
        scores = (f"{values[metric]:.1f}" for values in prompt_scores)
        seconds = (f"{run['train_seconds']:.0f}" for run in (task, both[name]))
        rows.append((name, metric, *scores, str(task["rows"]), *seconds))
    print(f"{describe_machine()}\n")
    print_table(*rows)


if __name__ == "__main__":
    main()
