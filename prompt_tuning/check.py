"""Every error of a recipe, its data and its template, without reading a model's weights."""

from __future__ import annotations

from prompt_tuning.config import load_recipe
from prompt_tuning.data import SPLITS
from prompt_tuning.prepare import prepare


def check(path: str, overrides: list[str] | None = None) -> str:
    """One line about the recipe's rows.

    Raises:
        PromptTuningError: with all that is wrong.
    """
    prepared = prepare(load_recipe(path, overrides), SPLITS)
    return "; ".join(f"{split}: {report}" for split, report in prepared.reports.items())
