"""Every error of a recipe, its data and its template, without reading a model's weights."""

from __future__ import annotations

from prompt_tuning.arguments.arguments import MULTITASK
from prompt_tuning.data.loading import SPLITS
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.checks import check_splits
from prompt_tuning.runs.multitask import prepare_tasks
from prompt_tuning.runs.prepare import Prepared, prepare


def check(path: str, overrides: list[str] | None = None) -> str:
    """One line about the recipe's rows.

    Raises:
        PromptTuningError: with all that is wrong.
    """
    recipe = load_recipe(path, overrides)
    if recipe.prompt.method == MULTITASK:
        return "; ".join(f"{name} ({_rows(each)})" for name, each in prepare_tasks(recipe).items())
    prepared = prepare(recipe, SPLITS)
    check_splits(recipe, prepared.encoded)
    return _rows(prepared)


def _rows(prepared: Prepared) -> str:
    return "; ".join(f"{split}: {report}" for split, report in prepared.reports.items())
