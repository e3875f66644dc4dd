"""Run several recipes on the same rows with the same seeds, and compare their scores and costs.

Each run is an ordinary `train` run in its own folder, so that a stopped comparison resumes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.data.loading import SPLITS
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.metrics.significance import corpus_significance, difference, interval, row_scores, test_description
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.other_names import flag_name, split_flags
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.run_files import read_evaluation, read_predictions
from prompt_tuning.runs.output_folder import check_folder, hold_folder
from prompt_tuning.runs.prepare import Prepared, prepare, score_of
from prompt_tuning.studies.figures import new_figure, write_png
from prompt_tuning.studies.shared_base import SharedBaseModel, check_unchanged, has_runs, is_finished
from prompt_tuning.support.files import atomic_write, write_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.tables import markdown_table
from prompt_tuning.support.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FILES = ("compare.json", "compare.md", "compare.png")
# The metrics of these rows show whether a metric is a mean over rows.
EXAMPLE_ROWS = (
    ["the red cat sat on a mat", "a wet dog ran", "no"],
    [["the red cat sat on the mat"], ["a dog ran"], ["yes"]],
)


@dataclass(frozen=True)
class RecipeRuns:
    """The runs of one recipe, one for each seed.

    Args:
        name: the file name of the recipe.
        recipe: the recipe.
        folders: of the runs.
        results: results.json of each run.
        predictions: for each run the text of each row.
        references: one or more texts a row; they are the same in all runs.
    """

    name: str
    recipe: Recipe
    folders: list[Path]
    results: list[dict[str, Any]]
    predictions: list[list[str]]
    references: list[list[str]]

    @property
    def results_key(self) -> str:
        """The name of the recipe's scores in results.json and in the predictions."""
        return METHODS[self.recipe.prompt.method].results_key


def compare(
    paths: list[str], overrides: list[str], seeds: list[int], folder: Path, metric: str | None = None
) -> dict[str, Any]:
    """Run what is not finished, and write compare.json, compare.md and compare.png.

    Args:
        paths: recipes. The others are compared with the first.
        overrides: flags for all recipes.
        seeds: each recipe is run once with each seed. A recipe that trains nothing and draws no demonstrations is run
            with the first.
        folder: for the runs and the comparison. The same call resumes a stopped comparison in it.
        metric: by default the task's main metric.

    Returns:
        What compare.json holds.

    Raises:
        RecipeError: the recipes have different tasks or equal names, or do not give the metric.
        DataError: they would be evaluated on different rows, or a finished run was.
    """
    if any(flag_name(words[0]) == "seed" for words in split_flags(overrides)):
        raise RecipeError("seed has no effect, since every recipe is trained with every one of --seeds. Set --seeds.")
    seeds = list(dict.fromkeys(seeds))
    recipes = {Path(path).stem: load_recipe(path, overrides) for path in paths}
    if len(recipes) < len(paths):
        raise RecipeError(f"{', '.join(paths)}: two recipes have the same file name. Rename one of them.")
    metric = metric or MAIN_METRIC[_common_task(recipes)]
    figure = new_figure("compare.png", 9, 5.5)  # A missing matplotlib is reported now, and not after the training.
    _check_metric(recipes, metric)
    _check_rows(recipes)
    seeds_of_path = {path: _seeds(recipes[Path(path).stem], seeds) for path in paths}
    with hold_folder(folder, FILES, written_before=has_runs(folder)):
        runs = _train_all(recipes, overrides, seeds_of_path, folder)
        compared = {"metric": metric, "rows": len(runs[0].references), "seeds": seeds, **_compare_runs(runs, metric)}
        if PartialState().is_main_process:
            table, text, picture = (folder / name for name in FILES)
            write_json(table, compared)
            with atomic_write(text) as file:
                file.write(comparison_text(compared) + "\n")
            _draw(compared, figure, picture)
    return compared


def _train_all(
    recipes: Mapping[str, Recipe], overrides: list[str], seeds_of_path: Mapping[str, list[int]], folder: Path
) -> list[RecipeRuns]:
    """Run what is not finished, and return the runs of each recipe."""
    for path, path_seeds in seeds_of_path.items():
        for seed in path_seeds:
            recipe = _run_recipe(path, overrides, seed, folder)
            check_folder(Path(recipe.training.output_dir), RunFolder.TRAINED)
            if is_finished(recipe):
                check_unchanged(prepare(recipe, SPLITS))
    base = SharedBaseModel()
    runs: list[RecipeRuns] = []
    for path, path_seeds in seeds_of_path.items():
        folders: list[Path] = []
        for seed in path_seeds:
            # The card of the first run also has the score of its template alone.
            first = not runs and not folders
            folders.append(_run(_run_recipe(path, overrides, seed, folder), base, evaluate_hard_prompt=first))
        runs.append(_read_runs(Path(path).stem, recipes[Path(path).stem], folders))
    return runs


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


def _check_rows(recipes: Mapping[str, Recipe]) -> None:
    """Prepare all recipes, which finds their errors before a model loads, and compare their evaluation rows.

    Raises:
        DataError: the rows differ from those of the first recipe.
    """
    first = next(iter(recipes))
    first_rows: dict[str, list] = {}
    for name, recipe in recipes.items():
        rows = _evaluation_columns(prepare(recipe, SPLITS))
        first_rows = first_rows or rows
        common = rows.keys() & first_rows.keys()
        differ = [column for column in common if rows[column] != first_rows[column]]
        other_template = recipe.prompt.template != recipes[first].prompt.template
        if differ == ["references"] and other_template and len(common) > 1:
            raise DataError(
                f"the template of {name} has other references than that of {first}. Give both the same references."
            )
        if differ:
            raise DataError(f"{first} and {name} would be evaluated on different rows. Give both the same test_file.")


def _evaluation_columns(prepared: Prepared) -> dict[str, list]:
    """Return the columns that a template reads of the rows to evaluate, and the rows' references."""
    split = prepared.last_split
    rows = prepared.rows[split].select_columns(sorted(prepared.template.source_columns))
    return {**rows.to_dict(), "references": list(prepared.encoded[split]["references"])}


def _seeds(recipe: Recipe, seeds: list[int]) -> list[int]:
    """Return the seeds that a recipe is run with: the first, if the runs would be the same."""
    draws = recipe.prompt.num_demonstrations > 0 and recipe.prompt.demonstration_selection != "bm25"
    return seeds if METHODS[recipe.prompt.method].trains or draws else seeds[:1]


def _run_recipe(path: str, overrides: list[str], seed: int, folder: Path) -> Recipe:
    run = folder / f"{Path(path).stem}-seed{seed}"
    return load_recipe(path, [*overrides, f"--seed={seed}", f"--output_dir={run}", "--resume_from_checkpoint=auto"])


def _run(recipe: Recipe, base: SharedBaseModel, *, evaluate_hard_prompt: bool) -> Path:
    """Train or resume a run that is not finished, and return its folder."""
    if is_finished(recipe):
        return Path(recipe.training.output_dir)
    logger.info("%s, seed %s", recipe.path.stem, recipe.training.seed)
    trains = METHODS[recipe.prompt.method].trains
    return base.train(recipe, evaluate_hard_prompt=evaluate_hard_prompt or not trains)


def _read_runs(name: str, recipe: Recipe, folders: list[Path]) -> RecipeRuns:
    key = METHODS[recipe.prompt.method].results_key
    results = []
    predictions = []
    for folder in folders:
        run = RunFolder(folder)
        results.append(read_evaluation(run, key)[0])
        rows = read_predictions(run, results[-1])
        predictions.append([row[key] for row in rows])
    return RecipeRuns(name, recipe, folders, results, predictions, [row["references"] for row in rows])


def _compare_runs(runs: Sequence[RecipeRuns], metric: str) -> dict[str, Any]:
    """Return the test, and for each recipe its score with interval, its difference from the first, and its cost."""
    scores = _scores_by_row(runs, metric)
    num_seeds = max(len(recipe_runs.folders) for recipe_runs in runs)
    if scores:
        tests = _test_by_row(scores)
        description = test_description(len(runs[0].references), num_seeds)
    else:
        tests = mean_over_seeds(_test_each_seed(runs, metric, num_seeds))
        description = "sacreBLEU's paired bootstrap of the rows"
        if num_seeds > 1:
            description += " of each seed, their mean interval and largest p"
    parts = {}
    for recipe_runs in runs:
        seed_scores = []
        for folder, results in zip(recipe_runs.folders, recipe_runs.results, strict=True):
            if metric not in results[recipe_runs.results_key]:
                raise DataError(f"{folder}: it has no {metric}. Remove the folder, and run it again.")
            seed_scores.append(results[recipe_runs.results_key][metric])
        parts[recipe_runs.name] = {
            "of_seeds": seed_scores,
            **tests[recipe_runs.name],
            **_costs(recipe_runs),
        }
    return {"test": description, "parts": parts}


def _scores_by_row(runs: Sequence[RecipeRuns], metric: str) -> dict[str, np.ndarray]:
    """Return the scores `[seeds, rows]` of each recipe; nothing if the metric is not a mean over rows."""
    score = score_of(runs[0].recipe)
    by_recipe = {}
    for recipe_runs in runs:
        by_seed = []
        for predictions in recipe_runs.predictions:
            scores = row_scores(score, metric, predictions, recipe_runs.references)
            if scores is None:
                return {}
            by_seed.append(scores)
        by_recipe[recipe_runs.name] = np.stack(by_seed)
    return by_recipe


def _test_by_row(scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the mean of each recipe with its interval, and for all except the first the difference from the first."""
    first = next(iter(scores))
    tests: dict[str, dict[str, Any]] = {}
    for name, recipe_scores in scores.items():
        low, high = interval(recipe_scores)
        tests[name] = {"score": float(recipe_scores.mean()), "low": low, "high": high}
        if name != first:
            tests[name]["against_first"] = difference(recipe_scores, scores[first])
    return tests


def _test_each_seed(runs: Sequence[RecipeRuns], metric: str, num_seeds: int) -> list[dict[str, dict[str, float]]]:
    """Test all recipes with each seed. A recipe with one run has it in the tests of all seeds."""
    language = runs[0].recipe.data.metric_language
    tests = []
    for seed in range(num_seeds):
        predictions = {}
        for recipe_runs in runs:
            predictions[recipe_runs.name] = recipe_runs.predictions[min(seed, len(recipe_runs.predictions) - 1)]
        tests.append(corpus_significance(metric, predictions, runs[0].references, language))
    return tests


def mean_over_seeds(tests: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the mean score, the mean interval and the largest p of each recipe.

    Args:
        tests: of `corpus_significance`, for each seed.
    """
    means: dict[str, dict[str, float]] = {}
    for name, first in tests[0].items():
        means[name] = {}
        for key in first:
            values = [test[name][key] for test in tests]
            means[name][key] = max(values) if key == "p" else float(np.mean(values))
    return means


def _costs(runs: RecipeRuns) -> dict[str, Any]:
    first = runs.results[0]
    folder = RunFolder(runs.folders[0])
    files = list(filter(Path.is_file, (folder.adapter_weights, folder.path / folder.MODEL_WEIGHTS)))
    train_seconds = []
    prediction_seconds = []
    for results in runs.results:
        train_seconds.append(results.get("train_seconds", 0))
        prediction_seconds.append(100 * results["prediction_seconds"][runs.results_key] / results["rows"])
    return {
        "method": runs.recipe.prompt.method,
        "steps": first.get("train_steps", 0),
        "trainable_parameters": first.get("trainable_parameters", 0),
        "adapter_bytes": files[0].stat().st_size if files else 0,
        "train_seconds": round(float(np.mean(train_seconds)), 1),
        "seconds_per_100_predictions": round(float(np.mean(prediction_seconds)), 1),
    }


def comparison_text(compared: Mapping[str, Any]) -> str:
    """Return the table in Markdown.

    Args:
        compared: what compare.json holds.
    """
    parts = compared["parts"]
    first = next(iter(parts))
    head = (
        "recipe", compared["metric"], "95 % interval", "of each seed", f"against {first}", "p",
        "trained numbers", "adapter, bytes", "training, s", "s per 100 predictions",
    )  # fmt: skip
    rows = []
    for name, part in parts.items():
        p = part.get("against_first", part).get("p")
        rows.append((
            name,
            f"{part['score']:.1f}",
            f"{part['low']:.1f} to {part['high']:.1f}",
            ", ".join(f"{score:.1f}" for score in part["of_seeds"]),
            "" if name == first else _difference_text(part, parts[first]),
            "" if p is None else f"{p:.3f}",
            f"{part['trainable_parameters']:,}",
            f"{part['adapter_bytes']:,}",
            f"{part['train_seconds']:.0f}",
            f"{part['seconds_per_100_predictions']:.1f}",
        ))  # fmt: skip
    seeds = ", ".join(map(str, compared["seeds"]))
    note = f"{counted(compared['rows'], 'row')}; seeds {seeds}; intervals and p: {compared['test']}"
    return "\n".join([markdown_table(head, rows), "", note])


def _difference_text(part: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    against = part.get("against_first")
    if not against:
        return f"{part['score'] - first['score']:+.1f}"
    return f"{against['difference']:+.1f} ({against['low']:+.1f} to {against['high']:+.1f})"


def _draw(compared: Mapping[str, Any], figure: Figure, path: Path) -> None:
    """Draw the scores against the trained numbers."""
    axes = figure.subplots()
    num_drawn: Counter[int] = Counter()
    for name, part in compared["parts"].items():
        size = part["trainable_parameters"]
        # Recipes of one size are drawn side by side, so that no interval hides another.
        x = size * 1.2 ** num_drawn[size] if size else 4 * num_drawn[size]
        num_drawn[size] += 1
        error = [[part["score"] - part["low"]], [part["high"] - part["score"]]]
        axes.errorbar(x, part["score"], np.maximum(error, 0), fmt="o", capsize=4)
        axes.annotate(name, (x, part["score"]), xytext=(6, 5), textcoords="offset points", fontsize=8)
    axes.set_xscale("symlog", linthresh=10)
    axes.set(xlabel="trained numbers", ylabel=compared["metric"])
    axes.margins(x=0.2, y=0.15)
    axes.set_xlim(left=-3)  # Recipes that train nothing are drawn at 0.
    axes.grid(alpha=0.3)
    write_png(figure, path)
