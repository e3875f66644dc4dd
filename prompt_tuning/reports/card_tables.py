"""The tables of a model card."""

from __future__ import annotations

import math
from typing import Any

from prompt_tuning.metrics.scores import Scores
from prompt_tuning.reports.advice import difference_text
from prompt_tuning.reports.markdown import inline_code, plain_words
from prompt_tuning.reports.run_files import NAMES
from prompt_tuning.reports.summary import best_step, leakage_text, logged_steps

STEPS_SHOWN = 20

Table = tuple[list[str], list[list[Any]]]
"""The first row, and the others."""


def results_table(systems: dict[str, Scores], comparison: dict[str, dict[str, float]]) -> Table:
    """Return the scores of every system, and the difference of two with its 95 % interval.

    Args:
        systems: the scores by their keys in results.json.
        comparison: of results.json.
    """
    metrics = list(next(iter(systems.values())).values) if systems else []
    rows = []
    for name, scores in systems.items():
        rows.append([NAMES[name], *map(scores.values.__getitem__, metrics)])
    if comparison:
        rows.append(["difference", *map(difference_text, map(comparison.get, metrics))])
    return ["", *map(plain_words, metrics)], rows


def data_table(results: dict[str, Any], settings: dict[str, Any]) -> Table:
    """Return the rows of every split: their origin, their number, what was cut, and what is also elsewhere."""
    rows = []
    for split, size in results["splits"].items():
        read = read_split(settings, split)
        origin = inline_code(settings.get(f"{read}_file") or settings[f"{read}_split"])
        if read != split:
            origin += f", {plain_words(split)}_size {plain_words(settings[f'{split}_size'])}"
        count = f"{size['rows']:,}{' read of a stream' if split == 'train' and 'stream' in results else ''}"
        reasons = {"too long": size.get("dropped_rows"), "empty": size.get("empty_rows")}
        omitted = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items() if number)
        if omitted:
            count += f" (left out: {omitted})"
        leaked = leakage_text(results["leakage"][split]) if split in results["leakage"] else ""
        rows.append([origin, count, plain_words(size["longest"]), plain_words(size["cut_rows"]), plain_words(leaked)])
    return ["", "rows", "longest row, tokens", "cut to fit", "rows that are also elsewhere"], rows


def saved_step(results: dict[str, Any]) -> int:
    """Return the step whose weights were saved."""
    best = best_step(results)
    return results["train_steps"] if best is None else best


def steps_with_saved(facts: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Return what was logged by step, with the step whose weights were saved; nothing if nothing was logged."""
    steps = logged_steps(facts.get("log_history", []))
    if steps:
        steps.setdefault(saved_step(facts["results"]), {})
    return dict(sorted(steps.items()))


def steps_table(steps: dict[int, dict[str, float]], saved: int) -> Table | None:
    """Return at most about STEPS_SHOWN of the steps, evenly spaced, with the saved one."""
    if not steps:
        return None
    logged = set().union(*steps.values())
    labels = {"loss": "training loss", "eval_loss": "validation loss"}
    for key in sorted(logged - labels.keys()):
        if key.startswith("eval_"):
            labels[key] = f"validation {plain_words(key.removeprefix('eval_'))}"
    keys = [key for key in labels if key in logged]
    stride = math.ceil(len(steps) / STEPS_SHOWN)
    rows: list[list[Any]] = []
    for number, (step, values) in enumerate(steps.items(), 1):
        if number % stride == 0 or step == saved:
            numbers = [f"{values[key]:.4g}" if key in values else "" for key in keys]
            rows.append([f"**{step}, saved**" if step == saved else step, *numbers])
    return ["step", *map(labels.__getitem__, keys)], rows


def read_split(settings: dict[str, Any], split: str | None) -> str | None:
    """Return the split whose rows were read: the training split, if `split` is a share of it."""
    return "train" if f"{split}_size" in settings else split
