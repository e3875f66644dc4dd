"""Run one recipe of a comparison: try its learning rates, train it with each seed, and evaluate it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from accelerate import PartialState

from prompt_tuning.arguments.data_args import SPLITS
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import TrainingError, first_line
from prompt_tuning.metrics.loading import direction
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.run_files import read_results
from prompt_tuning.runs.earlier_run import check_inner_folder
from prompt_tuning.runs.evaluate import evaluate
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.studies.compare_results import EvaluatedRun, RecipeRuns, read_run, score_of_run
from prompt_tuning.studies.run_lists import SweepRun
from prompt_tuning.studies.shared_base import SharedBaseModel, check_unchanged, is_finished
from prompt_tuning.support.run_folder import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedRecipe:
    """A recipe of a comparison.

    Args:
        name: its name in the table.
        source: the recipe as it was given, with the flags for all recipes.
        recipe: the recipe as all runs have it.
        folder: the folder of the comparison.
        seeds: the seeds that it is run with.
        learning_rates: the rates that are tried; with one, or none, nothing is tried.
        split: the split that its runs are compared on.
    """

    name: str
    source: SweepRun
    recipe: Recipe
    folder: Path
    seeds: Sequence[int]
    learning_rates: Sequence[float]
    split: str = "test"

    @property
    def tries(self) -> bool:
        """Several learning rates are tried."""
        return len(self.learning_rates) > 1

    @property
    def num_runs(self) -> int:
        """The number of runs of all learning rates and seeds; the one that is tried and taken counts twice."""
        return len(self.seeds) + (len(self.learning_rates) if self.tries else 0)

    def load(self, seed: int, rate: float | None, max_steps: int | None = None) -> Recipe:
        """Load the recipe of one run, with the run's folder."""
        name = self.name
        flags = list(self.source.flags)
        if rate is not None:
            name += f"-rate{rate}"
            flags.append(f"--learning_rate={rate}")
        if max_steps is not None:
            name += f"-steps{max_steps}"
            flags.append(f"--max_steps={max_steps}")
        output = self.folder / f"{name}-seed{seed}"
        flags += [f"--seed={seed}", f"--output_dir={output}", "--resume_from_checkpoint=auto"]
        return load_recipe(self.source.recipe, flags)

    def check_finished(self, max_steps: int | None = None) -> None:
        """Raise a PromptTuningError if a finished run had other settings or rows, or its folder is not a run's."""
        for seed, rate in product(self.seeds, self.learning_rates or (None,)):
            recipe = self.load(seed, rate, max_steps)
            check_inner_folder(Path(recipe.training.output_dir))
            if is_finished(recipe):
                check_unchanged(prepare(recipe, SPLITS))


def run_recipe(
    compared: ComparedRecipe, base: SharedBaseModel, metric: str, *, evaluate_hard_prompt: bool
) -> RecipeRuns:
    """Try the learning rates of a recipe, and run it with the best one and each seed.

    Args:
        compared: the recipe.
        base: the base model of all runs.
        metric: chooses the learning rate.
        evaluate_hard_prompt: also evaluate the template alone with the first seed, unless rates are tried.
    """
    if not compared.tries:
        rate = compared.learning_rates[0] if compared.learning_rates else None
        return run_seeds(compared, base, rate, evaluate_hard_prompt=evaluate_hard_prompt)
    tried = dict(_try_rates(compared, base, metric))
    rate = best_rate(tried, metric)
    if rate is None:
        raise TrainingError(f"{compared.name}: no learning rate trains it. Lower learning_rates.")
    return replace(run_seeds(compared, base, rate), tried=tried)


def _try_rates(compared: ComparedRecipe, base: SharedBaseModel, metric: str) -> Iterator[tuple[float, float | None]]:
    """Yield each learning rate with its score on the validation rows, with the first seed; None if it diverges."""
    for rate in compared.learning_rates:
        recipe = compared.load(compared.seeds[0], rate)
        try:
            run = _run(recipe, base, split="validation")
        except TrainingError as error:
            if PartialState().num_processes > 1:
                raise  # The error may be that of this process only, and the others wait for it.
            logger.warning("%s, learning rate %s: %s", compared.name, rate, first_line(error))
            yield rate, None
        else:
            yield rate, score_of_run(_evaluated(recipe, run, "validation"), metric)


def best_rate(tried: Mapping[float, float | None], metric: str) -> float | None:
    """Return the learning rate with the best score, the first of equal ones; None if all diverged."""
    scores = {rate: direction(metric) * score for rate, score in tried.items() if score is not None}
    return max(scores, key=lambda rate: scores[rate], default=None)


def run_seeds(
    compared: ComparedRecipe,
    base: SharedBaseModel,
    rate: float | None,
    *,
    max_steps: int | None = None,
    evaluate_hard_prompt: bool = False,
) -> RecipeRuns:
    """Run a recipe with each seed, evaluated on the split that is compared.

    Args:
        compared: the recipe.
        base: the base model of all runs.
        rate: the learning rate; None for that of the recipe.
        max_steps: the number of steps; None for that of the recipe.
        evaluate_hard_prompt: also evaluate the template alone with the first seed.
    """
    runs: list[EvaluatedRun] = []
    for seed in compared.seeds:
        recipe = compared.load(seed, rate, max_steps)
        # The card of the first run also has the score of its template alone.
        run = _run(recipe, base, evaluate_hard_prompt=evaluate_hard_prompt and not runs)
        runs.append(_evaluated(recipe, run, compared.split))
    return RecipeRuns(compared.name, compared.recipe, runs, rate)


def _run(
    recipe: Recipe, base: SharedBaseModel, *, split: str | None = None, evaluate_hard_prompt: bool = False
) -> Path:
    """Train or resume a run that is not finished, and return its folder."""
    folder = Path(recipe.training.output_dir)
    finished = is_finished(recipe)
    base.announce(folder.name, finished=finished)
    if finished:
        return folder
    trains = METHODS[recipe.prompt.method].trains
    return base.train(recipe, evaluate_hard_prompt=evaluate_hard_prompt or not trains, split=split)


def _evaluated(recipe: Recipe, run: Path, split: str) -> EvaluatedRun:
    """Return the evaluation of a finished run on a split.

    A run whose learning rate was tried has one on the validation rows. If a later comparison tries other rates or
    seeds, it needs the other split of a run.
    """
    if read_results(run)["split"] == split:
        return read_run(recipe, run)
    method = METHODS[recipe.prompt.method]
    adapter: str | None = str(run)
    if method.trains_whole_model:
        recipe = replace(recipe, model=replace(recipe.model, model_name_or_path=str(run)))
        adapter, method = None, METHODS["none"]
    folder = run / f"compare-{split}"  # `evaluate` writes other folders, perhaps of fewer rows.
    if not RunFolder(folder).results.is_file():
        evaluate(recipe, adapter, split, folder)
    return read_run(recipe, run, folder, method.results_key)
