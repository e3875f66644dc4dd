"""Say what rows and predictions lost: rows left out, answers and references cut, predictions at their limit."""

from __future__ import annotations

from itertools import compress, repeat
from typing import Any

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.support.text import REPLACEMENT, agreed, counted

ROW_LOSSES = {
    "dropped_rows": "were left out as too long",
    "cut_answers": "have lost the answer in a source that was cut to fit max_source_tokens",
    "unreachable_targets": "have a target that no prediction can be",
    "untrained_rows": "have tokens of the trained text that no training row has",
    "long_references": "have references longer than a prediction may be (generation_max_length)",
}
"""The counts of a split in results.json, under `splits`, with what they say of its rows."""

PREDICTION_LOSSES = {
    "at_limit": "are at the limit of new tokens (generation_max_length)",
    "within_character": "are cut within a character, U+FFFD at the end",
    "empty": "are empty",
    "refused": "are refused by the server or the model",
    "no_choice": "are none of the row's choices",
    "uncertain": "are the likeliest listed choice, and the server does not list all",
    "disagree": "are different from those of another template",
    "left_out": "are no target, and their rows are left out",
}
"""The counts of a system in results.json, under `prediction_counts`, with what they say of its predictions."""


def prediction_counts(texts: list[str], limited: list[bool]) -> dict[str, int]:
    """Count predictions that only the limit of new tokens ended, those of them cut within a character, and empty ones.

    Args:
        texts: the predictions.
        limited: for each whether only the limit ended it.
    """
    return {
        "at_limit": sum(limited),
        "within_character": sum(map(str.endswith, compress(texts, limited), repeat(REPLACEMENT))),
        "empty": texts.count(""),
    }


def losses_text(results: dict[str, Any]) -> list[str] | None:
    """Return a line for everything that a run lost; None if the run counted nothing, as older versions did.

    Args:
        results: of one task, as results.json has them.
    """
    splits = results.get("splits", {})
    if not any("cut_answers" in size for size in splits.values()):
        return None
    lines = []
    for split, size in splits.items():
        for name, what in ROW_LOSSES.items():
            # References matter only in the evaluated split.
            if size.get(name) and (name != "long_references" or split == results["split"]):
                rows = counted(size[name], "row")
                lines.append(f"{rows} of {split} {agreed(size[name], what)}{_of_targets(size, name)}")
    labels = {method.results_key: method.label for method in METHODS.values()}
    for system, counts in results.get("prediction_counts", {}).items():
        for name, what in PREDICTION_LOSSES.items():
            if counts.get(name):
                predictions = counted(counts[name], "prediction")
                lines.append(f"{labels.get(system, system)}: {predictions} {agreed(counts[name], what)}")
    return lines


def _of_targets(size: dict[str, Any], name: str) -> str:
    if name != "dropped_rows" or not size.get("dropped_targets"):
        return ""
    return f", {size['dropped_targets']} of them for their target"
