"""Several recipes on the same rows, at the same seeds: an honest table of what each reached and what it cost.

Each part is an ordinary `train` run in a folder of its own, so that a comparison goes on where it was stopped.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.data.loading import SPLITS
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.metrics.loading import MAIN_METRIC, TASK_METRICS
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.metrics.significance import corpus_significance, difference, interval, row_scores, test_description
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.prepare import prepare, score_of
from prompt_tuning.studies.figures import new_figure, write_png
from prompt_tuning.studies.shared_base import SharedBaseModel, check_unchanged, is_finished
from prompt_tuning.support.files import atomic_write, read_json, read_json_lines, write_json
from prompt_tuning.support.tables import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


# Rows whose metrics show whether one is a mean over rows.
MADE_UP = (
    ["the red cat sat on a mat", "a wet dog ran", "no"],
    [["the red cat sat on the mat"], ["a dog ran"], ["yes"]],
)


@dataclass(frozen=True)
class Part:
    """What one recipe wrote and cost, over its seeds.

    Args:
        results: results.json of each seed.
        predictions: of each seed the text of each row.
    """

    name: str
    recipe: Recipe
    folders: list[Path]
    results: list[dict[str, Any]]
    predictions: list[list[str]]
    references: list[list[str]]

    @property
    def system(self) -> str:
        return _system(self.recipe)


def compare(
    paths: list[str], overrides: list[str], seeds: list[int], folder: Path, metric: str | None = None
) -> dict[str, Any]:
    """Run what has not been run, and write compare.json, compare.md and compare.png.

    Args:
        paths: recipes; the first is what the others are compared with.
        overrides: flags for all of them.
        seeds: each recipe is run once with each; one that trains nothing and draws no demonstrations, once.
        metric: by default the task's main one.

    Raises:
        RecipeError: the recipes are not of one task, have the same name, or do not give the metric.
        DataError: they would be evaluated on different rows, or a finished run was.
    """
    seeds = list(dict.fromkeys(seeds))
    recipes = {Path(path).stem: load_recipe(path, overrides) for path in paths}
    if len(recipes) < len(paths):
        raise RecipeError(f"{', '.join(paths)}: two recipes of one file name; a part is named by it, so rename one")
    if several := [name for name, recipe in recipes.items() if METHODS[recipe.prompt.method].trains_several_tasks]:
        raise RecipeError(f"{several[0]} is of several tasks at once; compare the recipes of one")
    tasks = {recipe.data.task for recipe in recipes.values()}
    if len(tasks) > 1:
        raise RecipeError(f"the recipes are of different tasks ({', '.join(sorted(tasks))}); compare one")
    metric = metric or MAIN_METRIC[tasks.pop()]
    figure = new_figure("compare.png", 9, 5.5)  # what is not there is said now, not after hours of training
    _check_metric(recipes, metric)
    _check_rows(recipes)
    of_parts = {path: _seeds(recipes[Path(path).stem], seeds) for path in paths}
    for path, of_part in of_parts.items():
        for recipe in (_of_run(path, overrides, seed, folder) for seed in of_part):
            if is_finished(recipe):
                check_unchanged(prepare(recipe, SPLITS))
    parts, base = [], SharedBaseModel()
    for path, of_part in of_parts.items():
        # The card of the run that others are compared with says what its template reaches alone.
        folders = [_run(path, overrides, seed, folder, base, (path, seed) == (paths[0], seeds[0])) for seed in of_part]
        parts.append(_read(Path(path).stem, folders, recipes[Path(path).stem]))
    compared = {"metric": metric, "rows": len(parts[0].references), "seeds": seeds} | _facts(parts, metric)
    write_json(folder / "compare.json", compared)
    with atomic_write(folder / "compare.md") as file:
        file.write(comparison_text(compared) + "\n")
    _draw(compared, figure, folder / "compare.png")
    return compared


def _check_metric(recipes: dict[str, Recipe], metric: str) -> None:
    kinds = {name: _scored_by(recipe) for name, recipe in recipes.items()}
    first, kind = next(iter(kinds.items()))
    if unlike := [name for name in kinds if kinds[name] != kind]:
        raise RecipeError(
            f"{first} is scored by {kind} and {unlike[0]} by {kinds[unlike[0]]}; give both the same metrics and lang"
        )
    for name, recipe in recipes.items():
        score = score_of(recipe)
        numbers = Scores.from_json(score(*MADE_UP)).values
        if metric not in numbers:
            raise RecipeError(f"metric {metric}: the metrics of {name} give {', '.join(numbers)}; name one of them")
        if row_scores(score, metric, *MADE_UP) is None:
            corpus_significance(metric, {name: MADE_UP[0]}, MADE_UP[1], recipe.data.metric_language)


def _scored_by(recipe: Recipe) -> str:
    metrics = sorted(recipe.prompt.metrics or TASK_METRICS[recipe.data.task])
    language = recipe.data.metric_language
    return ", ".join(metrics) + (f" (language {language})" if language else "")


def _check_rows(recipes: dict[str, Recipe]) -> None:
    """Find what is wrong with any recipe, and whether all are evaluated on the same rows, before a model loads."""
    known: dict[str, dict[str, list]] = {}
    for name, recipe in recipes.items():
        prepared = prepare(recipe, SPLITS)
        rows = prepared.rows[prepared.last_split].select_columns(sorted(prepared.template.source_columns))
        known[name] = rows.to_dict() | {"references": list(prepared.encoded[prepared.last_split]["references"])}
        first = next(iter(known))
        shared = known[name].keys() & known[first].keys()
        unlike = [each for each in shared if known[name][each] != known[first][each]]
        other_template = recipe.prompt.template != recipes[first].prompt.template
        if unlike == ["references"] and other_template and len(shared) > 1:
            raise DataError(f"the template of {name} counts other texts as right than that of {first}; give both one")
        if unlike:
            raise DataError(f"{first} and {name} would be evaluated on other rows; give both one test_file")


def _seeds(recipe: Recipe, seeds: list[int]) -> list[int]:
    """Those that a recipe is run with: one, if none of its runs would differ."""
    drawn = recipe.prompt.num_demonstrations > 0 and recipe.prompt.demonstration_selection != "bm25"
    return seeds if METHODS[recipe.prompt.method].trains or drawn else seeds[:1]


def _of_run(path: str, overrides: list[str], seed: int, folder: Path) -> Recipe:
    run = folder / f"{Path(path).stem}-seed{seed}"
    return load_recipe(path, [*overrides, f"--seed={seed}", f"--output_dir={run}", "--resume_from_checkpoint=auto"])


def _run(
    path: str, overrides: list[str], seed: int, folder: Path, base: SharedBaseModel, evaluate_hard_prompt: bool
) -> Path:
    """The folder of a recipe's run with a seed, which is trained, or gone on with, unless it is there."""
    recipe = _of_run(path, overrides, seed, folder)
    if is_finished(recipe):
        return Path(recipe.training.output_dir)
    logger.info("%s, seed %s", Path(path).stem, seed)
    return base.train(recipe, evaluate_hard_prompt or not METHODS[recipe.prompt.method].trains)


def _read(name: str, folders: list[Path], recipe: Recipe) -> Part:
    results = [read_json(folder / "results.json") for folder in folders]
    rows, system = [], _system(recipe)
    for folder in folders:
        (file,) = (folder / "predictions").glob("*.jsonl")
        rows.append(read_json_lines(file))
    predictions = [[row[system] for row in of_seed] for of_seed in rows]
    return Part(name, recipe, folders, results, predictions, [row["references"] for row in rows[0]])


def _system(recipe: Recipe) -> str:
    """What results.json and predictions call what a recipe makes."""
    return METHODS[recipe.prompt.method].results_key


def _facts(parts: list[Part], metric: str) -> dict[str, Any]:
    """For each part its score with interval and spread, the difference from the first, and its cost."""
    score = score_of(parts[0].recipe)
    rows = {
        part.name: [row_scores(score, metric, texts, part.references) for texts in part.predictions] for part in parts
    }
    by_row = all(each is not None for of_part in rows.values() for each in of_part)
    tests = [] if by_row else _corpus_tests(parts, metric)
    facts = {}
    for part in parts:
        of_seeds = [result[part.system][metric] for result in part.results]
        found = {"score": float(np.mean(of_seeds)), "of_seeds": of_seeds}
        if by_row:
            scores = np.stack(rows[part.name])
            found["low"], found["high"] = interval(scores)
            if part is not parts[0]:
                found["against_first"] = difference(scores, np.stack(rows[parts[0].name]))
        else:
            found["low"], found["high"] = (
                float(np.mean([of[part.name][end] for of in tests])) for end in ("low", "high")
            )
            if part is not parts[0]:
                found["p"] = max(of[part.name]["p"] for of in tests)
        facts[part.name] = found | _costs(part)
    if by_row:
        return {
            "test": test_description(len(parts[0].references), max(len(part.folders) for part in parts)),
            "parts": facts,
        }
    seeds = "" if len(tests) == 1 else " of each seed, their mean interval and largest p"
    return {"test": f"sacreBLEU's paired bootstrap of the rows{seeds}", "parts": facts}


def _corpus_tests(parts: list[Part], metric: str) -> list[dict[str, dict[str, float]]]:
    """`corpus_significance` of each seed; of a part that was run once its one run."""
    language = parts[0].recipe.data.metric_language
    of_seeds = [
        {part.name: part.predictions[min(place, len(part.predictions) - 1)] for part in parts}
        for place in range(max(len(part.predictions) for part in parts))
    ]
    return [corpus_significance(metric, texts, parts[0].references, language) for texts in of_seeds]


def _costs(part: Part) -> dict[str, Any]:
    adapter = part.folders[0] / "adapter_model.safetensors"
    whole = part.folders[0] / "model.safetensors"
    saved = next((file.stat().st_size for file in (adapter, whole) if file.is_file()), 0)
    results = part.results
    return {
        "method": part.recipe.prompt.method,
        "steps": results[0].get("train_steps", 0),
        "trainable_parameters": results[0].get("trainable_parameters", 0),
        "adapter_bytes": saved,
        "train_seconds": round(float(np.mean([result.get("train_seconds", 0) for result in results])), 1),
        "seconds_per_100_predictions": round(
            float(np.mean([100 * result["prediction_seconds"][part.system] / result["rows"] for result in results])), 1
        ),
    }


def comparison_text(compared: dict[str, Any]) -> str:
    """The table, in Markdown."""
    parts, metric = compared["parts"], compared["metric"]
    first = next(iter(parts))
    head = (
        "recipe", metric, "95 % interval", "of each seed", f"against {first}", "p",
        "trained numbers", "adapter, bytes", "training, s", "s per 100 predictions",
    )  # fmt: skip
    table = []
    for name, part in parts.items():
        against = part.get("against_first", {})
        p = against.get("p", part.get("p"))
        table.append((
            name,
            f"{part['score']:.1f}",
            f"{part['low']:.1f} to {part['high']:.1f}",
            ", ".join(f"{each:.1f}" for each in part["of_seeds"]),
            f"{against['difference']:+.1f} ({against['low']:+.1f} to {against['high']:+.1f})"
            if against
            else ("" if name == first else f"{part['score'] - parts[first]['score']:+.1f}"),
            "" if p is None else f"{p:.3f}",
            f"{part['trainable_parameters']:,}",
            f"{part['adapter_bytes']:,}",
            f"{part['train_seconds']:.0f}",
            f"{part['seconds_per_100_predictions']:.1f}",
        ))  # fmt: skip
    rows, seeds = compared["rows"], ", ".join(map(str, compared["seeds"]))
    return "\n".join(
        [markdown_table(head, table), "", f"{rows} rows; seeds {seeds}; intervals and p: {compared['test']}"]
    )


def _draw(compared: dict[str, Any], figure: Figure, path: Path) -> None:
    """Quality against trained numbers."""
    axes, of_size = figure.subplots(), Counter()
    for name, part in compared["parts"].items():
        size = part["trainable_parameters"]
        # Of one size they stand side by side, else one interval would hide the next.
        place = size * 1.2 ** of_size[size] if size else 4 * of_size[size]
        of_size[size] += 1
        around = [[part["score"] - part["low"]], [part["high"] - part["score"]]]
        axes.errorbar(place, part["score"], np.maximum(around, 0), fmt="o", capsize=4)
        axes.annotate(name, (place, part["score"]), xytext=(6, 5), textcoords="offset points", fontsize=8)
    axes.set_xscale("symlog", linthresh=10)
    axes.set(xlabel="trained numbers", ylabel=compared["metric"])
    axes.margins(x=0.2, y=0.15)
    axes.set_xlim(left=-3)  # those that train nothing stand at 0
    axes.grid(alpha=0.3)
    write_png(figure, path)
