"""Test the runs of a comparison against those of its first recipe, and add up what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import DataError
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.metrics.significance import (
    corpus_difference,
    corpus_significance,
    difference,
    in_words,
    interval,
    row_scores,
    test_description,
)
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.run_files import read_evaluation, read_predictions, read_results
from prompt_tuning.runs.prepare import score_of
from prompt_tuning.support.files import read_json
from prompt_tuning.support.run_folder import RunFolder


@dataclass(frozen=True)
class EvaluatedRun:
    """One run of a recipe.

    Args:
        folder: the run's folder.
        facts: its results.json.
        evaluation: results.json of its evaluation, which is the same file unless it was evaluated later.
        key: the name of its scores and predictions.
        predictions: the text of each row.
        references: one or more texts a row; they are the same in all runs.
    """

    folder: Path
    facts: dict[str, Any]
    evaluation: dict[str, Any]
    key: str
    predictions: list[str]
    references: list[list[str]]


@dataclass(frozen=True)
class RecipeRuns:
    """The runs of one recipe, one for each seed.

    Args:
        name: the name of the recipe in the table.
        recipe: the recipe.
        runs: its runs.
        learning_rate: the rate that was chosen, or named; None for that of the recipe.
        tried: each rate that was tried with its score on the validation rows; None if it diverged.
    """

    name: str
    recipe: Recipe
    runs: list[EvaluatedRun]
    learning_rate: float | None = None
    tried: Mapping[float, float | None] = field(default_factory=dict)

    @property
    def references(self) -> list[list[str]]:
        """One or more texts a row."""
        return self.runs[0].references


def read_run(recipe: Recipe, folder: Path, evaluated: Path | None = None, key: str | None = None) -> EvaluatedRun:
    """Read a finished run.

    Args:
        recipe: the recipe of the run.
        folder: the run's folder.
        evaluated: the folder of its evaluation; None if the run itself has it.
        key: the name of its scores and predictions there; None for that of the method.
    """
    key = key or METHODS[recipe.prompt.method].results_key
    run = RunFolder(evaluated or folder)
    evaluation = read_evaluation(run, key)[0]
    rows = read_predictions(run, evaluation)
    predictions = [row[key] for row in rows]
    references = [row["references"] for row in rows]
    return EvaluatedRun(folder, read_results(folder), evaluation, key, predictions, references)


def compare_runs(runs: Sequence[RecipeRuns], metric: str) -> dict[str, Any]:
    """Return the test, and for each recipe its score with interval, its difference from the first, and its cost.

    Raises:
        DataError: a run lacks the metric, or has other references than the first.
    """
    _check_references(runs)
    scores = _scores_by_row(runs, metric)
    num_seeds = max(len(recipe_runs.runs) for recipe_runs in runs)
    if scores:
        tests = _test_by_row(scores)
        description = test_description(len(runs[0].references), num_seeds)
    else:
        tests = _test_corpus(runs, metric, num_seeds)
        description = "sacreBLEU's paired bootstrap of the rows"
        if num_seeds > 1:
            description += " of each seed, their mean interval and largest p"
        description += "; differences by draws of rows" + (" and seeds" if num_seeds > 1 else "")
    parts = {}
    for recipe_runs in runs:
        of_seeds = [score_of_run(run, metric) for run in recipe_runs.runs]
        part = {"of_seeds": of_seeds, **tests[recipe_runs.name], **_costs(recipe_runs)}
        if "against_first" in part:
            against = part["against_first"]
            against["in_words"] = in_words(metric, against["low"], against["high"])
        if recipe_runs.tried:
            part["tried"] = {str(rate): score for rate, score in recipe_runs.tried.items()}
        parts[recipe_runs.name] = part
    return {"test": description, "parts": parts}


def _check_references(runs: Sequence[RecipeRuns]) -> None:
    """Raise a DataError for a run whose predictions are of other rows than those of the first run."""
    for run in chain.from_iterable(recipe_runs.runs for recipe_runs in runs):
        if run.references != runs[0].references:
            raise DataError(f"{run.folder}: its predictions are of other rows. Remove the folder, and run it again.")


def score_of_run(run: EvaluatedRun, metric: str) -> float:
    """Return the score of a run; raise a DataError if it has none of the metric."""
    scores = Scores.from_json(run.evaluation[run.key]).values
    if metric not in scores:
        raise DataError(f"{run.folder}: it has no {metric}. Remove the folder, and run it again.")
    return scores[metric]


def _scores_by_row(runs: Sequence[RecipeRuns], metric: str) -> dict[str, np.ndarray]:
    """Return the scores `[seeds, rows]` of each recipe; nothing if the metric is not a mean over rows."""
    score = score_of(runs[0].recipe)
    by_recipe = {}
    for recipe_runs in runs:
        by_seed = []
        for run in recipe_runs.runs:
            scores = row_scores(score, metric, run.predictions, run.references)
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


def _test_corpus(runs: Sequence[RecipeRuns], metric: str, num_seeds: int) -> dict[str, dict[str, Any]]:
    """Return the same as `_test_by_row` for a metric that is not a mean over rows."""
    tests: dict[str, dict[str, Any]] = mean_over_seeds(_test_each_seed(runs, metric, num_seeds))
    language = runs[0].recipe.data.metric_language
    baseline = [run.predictions for run in runs[0].runs]
    for recipe_runs in runs[1:]:
        test = tests[recipe_runs.name]
        systems = [run.predictions for run in recipe_runs.runs]
        against = corpus_difference(metric, systems, baseline, runs[0].references, language)
        test["against_first"] = {**against, "p": test.pop("p")}
    return tests


def _test_each_seed(runs: Sequence[RecipeRuns], metric: str, num_seeds: int) -> list[dict[str, dict[str, float]]]:
    """Test all recipes with each seed. A recipe with one run has it in the tests of all seeds."""
    language = runs[0].recipe.data.metric_language
    tests = []
    for seed in range(num_seeds):
        predictions = {}
        for recipe_runs in runs:
            predictions[recipe_runs.name] = recipe_runs.runs[min(seed, len(recipe_runs.runs) - 1)].predictions
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


def _costs(recipe_runs: RecipeRuns) -> dict[str, Any]:
    """Return what the runs of a recipe cost: the mean over seeds, of memory the largest."""
    method = METHODS[recipe_runs.recipe.prompt.method]
    first = recipe_runs.runs[0]
    folder = RunFolder(first.folder)
    files = list(filter(Path.is_file, (folder.adapter_weights, folder.path / folder.MODEL_WEIGHTS)))
    prediction_seconds = []
    for run in recipe_runs.runs:
        prediction_seconds.append(100 * run.evaluation["prediction_seconds"][run.key] / run.evaluation["rows"])
    costs: dict[str, Any] = {
        "method": method.name,
        "steps": first.facts.get("train_steps", 0),
        "trainable_parameters": first.facts.get("trainable_parameters", 0),
        "adapter_bytes": files[0].stat().st_size if files else 0,
        "train_seconds": round(float(np.mean(_facts(recipe_runs, "train_seconds") or 0)), 1),
        "seconds_per_100_predictions": round(float(np.mean(prediction_seconds)), 1),
        "served_by": method.servers(vars(recipe_runs.recipe.prompt), encoder_decoder=_is_encoder_decoder(folder)),
    }
    if method.trains:
        costs["learning_rate"] = recipe_runs.learning_rate or recipe_runs.recipe.training.learning_rate
    seconds = _facts(recipe_runs, "seconds_per_step")
    if seconds:
        costs["seconds_per_step"] = float(np.mean(seconds))
    memory = _facts(recipe_runs, "added_memory_bytes")
    if memory:
        costs["added_memory_bytes"] = max(memory)
    return costs


def _is_encoder_decoder(run: RunFolder) -> bool:
    """Return whether a run's adapter is for an encoder-decoder model."""
    if not run.adapter_config.is_file():
        return False
    return read_json(run.adapter_config, dict[str, Any]).get("task_type") == "SEQ_2_SEQ_LM"


def _facts(recipe_runs: RecipeRuns, name: str) -> list[Any]:
    """Return a fact of those runs that have it. Runs of older versions, and runs that train nothing, lack some."""
    return [run.facts[name] for run in recipe_runs.runs if name in run.facts]
