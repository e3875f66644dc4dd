"""Run several recipes on the same rows with the same seeds, and compare their scores and costs.

Each run is an ordinary `train` run in its own folder, so that a stopped comparison resumes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from prompt_tuning.arguments.data_args import SPLITS
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.metrics.significance import corpus_significance, row_scores
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import Recipe, RecipeSource
from prompt_tuning.runs.output_folder import hold_folder
from prompt_tuning.runs.prepare import Prepared, prepare, score_of
from prompt_tuning.studies.compare_results import RecipeRuns, compare_runs
from prompt_tuning.studies.compare_runs import ComparedRecipe, run_recipe, run_seeds
from prompt_tuning.studies.compare_table import comparison_text, draw
from prompt_tuning.studies.figures import new_figure
from prompt_tuning.studies.run_lists import runs_of_comparison
from prompt_tuning.studies.shared_base import SharedBaseModel, has_runs
from prompt_tuning.support.files import write_json, write_text
from prompt_tuning.support.text import counted

logger = logging.getLogger(__name__)

FILES = ("compare.json", "compare.md", "compare.png")
# A step of one recipe is never this many times as fast as a step of another. Only an edited results.json says so, and
# the training would take years.
MAX_SPEEDUP = 100
# The metrics of these rows show whether a metric is a mean over rows.
EXAMPLE_ROWS = (
    ["the red cat sat on a mat", "a wet dog ran", "no"],
    [["the red cat sat on the mat"], ["a dog ran"], ["yes"]],
)


def compare(
    sources: Sequence[str] | Mapping[str, RecipeSource],
    overrides: list[str],
    seeds: list[int],
    folder: Path,
    metric: str | None = None,
    *,
    learning_rates: Sequence[float] = (),
    equal_time: bool = False,
) -> dict[str, Any]:
    """Run what is not finished, and write compare.json, compare.md and compare.png.

    Args:
        sources: files of recipes, or of several recipes as `read_sweep` reads them; or recipes by their names. The
            others are compared with the first.
        overrides: flags for all recipes.
        seeds: each recipe is run once with each seed. A recipe that trains nothing and draws no demonstrations is run
            with the first.
        folder: for the runs and the comparison. The same call resumes a stopped comparison in it.
        metric: by default the task's main metric.
        learning_rates: those that are tried for each recipe that has none of its own. The best on the validation rows
            with the first seed is taken, and only its runs are evaluated on the test rows.
        equal_time: also train the others for as many steps as fit in the time of the first.

    Returns:
        What compare.json holds.

    Raises:
        RecipeError: the recipes have different tasks or equal names, or do not give the metric; or they try
            different numbers of learning rates.
        DataError: they would be evaluated on different rows, or a finished run was.
    """
    compared = _compared_recipes(sources, overrides, seeds, folder, learning_rates)
    recipes = {recipe.name: recipe.recipe for recipe in compared}
    metric = metric or MAIN_METRIC[_common_task(recipes)]
    figure = new_figure("compare.png", 9, 5.5)  # A missing matplotlib is reported now, and not after the training.
    _check_metric(recipes, metric)
    _check_rates(compared)
    compared = _with_splits(compared)
    if equal_time and not _trains(compared[0].recipe):
        raise RecipeError(f"equal_time: {compared[0].name} trains nothing. Name a recipe that trains first.")
    with hold_folder(folder, FILES, written_before=has_runs(folder)):
        for recipe in compared:
            recipe.check_finished()
        base = SharedBaseModel(planned=sum(recipe.num_runs for recipe in compared))
        runs: list[RecipeRuns] = []
        for recipe in compared:
            runs.append(run_recipe(recipe, base, metric, evaluate_hard_prompt=not runs))
        facts = {"metric": metric, "rows": len(runs[0].references), "seeds": list(dict.fromkeys(seeds))}
        table: dict[str, Any] = facts | compare_runs(runs, metric)
        _write(table, folder)
        if equal_time:
            table["equal_time"] = compare_runs(_run_equal_time(compared, runs, table["parts"], base), metric)
            _write(table, folder)
        if PartialState().is_main_process:
            draw(table, figure, folder / FILES[2])
    return table


def _write(table: Mapping[str, Any], folder: Path) -> None:
    """Write compare.json and compare.md; only the main process writes."""
    if not PartialState().is_main_process:
        return
    write_json(folder / FILES[0], table)
    write_text(folder / FILES[1], comparison_text(table) + "\n")


def _run_equal_time(
    compared: Sequence[ComparedRecipe], runs: Sequence[RecipeRuns], parts: Mapping[str, Any], base: SharedBaseModel
) -> list[RecipeRuns]:
    """Train all except the first for as many steps as fit in the time of the first, with the same learning rates.

    Raises:
        DataError: a run of an older version did not measure its steps, or its measure is impossible.
    """
    first = parts[compared[0].name]
    equal = []
    for recipe, recipe_runs in zip(compared, runs, strict=True):
        part = parts[recipe.name]
        if recipe is compared[0] or not _trains(recipe.recipe):
            equal.append(recipe_runs)
            continue
        seconds, first_seconds = part.get("seconds_per_step"), first.get("seconds_per_step")
        if not seconds or not first_seconds or first_seconds > MAX_SPEEDUP * seconds:
            problem = f"a run of {compared[0].name} or {recipe.name} has no seconds_per_step, or an impossible one"
            raise DataError(f"{recipe.folder}: {problem}. Remove the folders of these runs, and compare again.")
        steps = max(1, round(first["steps"] * first_seconds / seconds))
        logger.info("%s: in the time of %s it takes %s", recipe.name, compared[0].name, counted(steps, "step"))
        if steps == part["steps"]:
            equal.append(recipe_runs)
            continue
        recipe.check_finished(max_steps=steps)
        base.planned += len(recipe.seeds)
        equal.append(run_seeds(recipe, base, recipe_runs.learning_rate, max_steps=steps))
    return equal


def _trains(recipe: Recipe) -> bool:
    return METHODS[recipe.prompt.method].trains


def _compared_recipes(
    sources: Sequence[str] | Mapping[str, RecipeSource],
    overrides: list[str],
    seeds: Sequence[int],
    folder: Path,
    learning_rates: Sequence[float],
) -> list[ComparedRecipe]:
    """Return the recipes of all files, by their place in the table; raise what `runs_of_comparison` raises."""
    compared = []
    for name, run in runs_of_comparison(sources, overrides, learning_rates).items():
        recipe = load_recipe(run.recipe, run.flags)
        rates = run.learning_rates if _trains(recipe) else ()
        recipe_seeds = _seeds(recipe, list(dict.fromkeys(seeds)))
        compared.append(ComparedRecipe(name, run, recipe, folder, recipe_seeds, rates))
    return compared


def _check_rates(compared: Sequence[ComparedRecipe]) -> None:
    """Raise a RecipeError unless every recipe that trains tries equally many learning rates."""
    counts = {recipe.name: max(len(recipe.learning_rates), 1) for recipe in compared if _trains(recipe.recipe)}
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise RecipeError(f"learning_rates: the recipes try different numbers of them ({numbers}). Give each as many.")


def _common_task(recipes: Mapping[str, Recipe]) -> str:
    """Return the task of the recipes; raise a RecipeError if they have no common one."""
    tasks = set()
    for name, recipe in recipes.items():
        if METHODS[recipe.prompt.method].trains_several_tasks:
            raise RecipeError(f"{name} has several tasks. Compare recipes of one task.")
        tasks.add(str(recipe.data.task))
    if len(tasks) > 1:
        names = ", ".join(sorted(tasks))
        raise RecipeError(f"the recipes have different tasks ({names}). Compare recipes of one task.")
    return tasks.pop()


def _check_metric(recipes: Mapping[str, Recipe], metric: str) -> None:
    """Raise a RecipeError if recipes are scored in different ways, or lack the metric, or it has no test."""
    first = next(iter(recipes))
    for name, recipe in recipes.items():
        if _scoring(recipe) != _scoring(recipes[first]):
            raise RecipeError(
                f"{first} is scored by {_scoring(recipes[first])} and {name} by {_scoring(recipe)}. "
                "Give both the same metrics and lang."
            )
        score = score_of(recipe)
        metrics = Scores.from_json(score(*EXAMPLE_ROWS)).values
        if metric not in metrics:
            raise RecipeError(f"metric {metric}: the metrics of {name} give {', '.join(metrics)}. Name one of them.")
        if row_scores(score, metric, *EXAMPLE_ROWS) is None:
            predictions, references = EXAMPLE_ROWS
            corpus_significance(metric, {name: predictions}, references, recipe.data.metric_language)


def _scoring(recipe: Recipe) -> str:
    language = recipe.data.metric_language
    return ", ".join(sorted(recipe.metrics)) + (f" (language {language})" if language else "")


def _with_splits(compared: Sequence[ComparedRecipe]) -> list[ComparedRecipe]:
    """Prepare all recipes, which finds their errors before a model loads, and return them with the split to compare.

    Raises:
        DataError: the rows differ from those of the first recipe, or a recipe that tries learning rates lacks a split.
    """
    first = compared[0]
    first_rows: dict[str, list] = {}
    with_splits = []
    for recipe in compared:
        prepared = prepare(recipe.recipe, SPLITS)
        if recipe.tries and not {"validation", "test"} <= prepared.encoded.keys():
            raise DataError(
                f"{recipe.name}: learning rates are chosen on validation rows and compared on test rows. Set "
                "validation_file and test_file, or validation_size and test_size."
            )
        rows = _evaluation_columns(prepared)
        first_rows = first_rows or rows
        common = rows.keys() & first_rows.keys()
        differ = [column for column in common if rows[column] != first_rows[column]]
        other_template = recipe.recipe.prompt.template != first.recipe.prompt.template
        if differ == ["references"] and other_template and len(common) > 1:
            raise DataError(
                f"the template of {recipe.name} has other references than that of {first.name}. Give both the same "
                "references."
            )
        if differ:
            raise DataError(
                f"{first.name} and {recipe.name} would be evaluated on different rows. Give both the same test_file."
            )
        with_splits.append(replace(recipe, split=prepared.last_split))
    return with_splits


def _evaluation_columns(prepared: Prepared) -> dict[str, list]:
    """Return the columns that a template reads of the rows to evaluate, and the rows' references."""
    split = prepared.last_split
    rows = prepared.rows[split].select_columns(sorted(prepared.template.source_columns))
    return {**rows.to_dict(), "references": list(prepared.encoded[split]["references"])}


def _seeds(recipe: Recipe, seeds: list[int]) -> list[int]:
    """Return the seeds that a recipe is run with: the first, if the runs would be the same."""
    draws = recipe.prompt.num_demonstrations > 0 and recipe.prompt.demonstration_selection != "bm25"
    return seeds if METHODS[recipe.prompt.method].trains or draws else seeds[:1]
