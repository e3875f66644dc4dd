"""Train many small runs over one base model, which is read once.

A sweep is one prompt for each of many tasks, or one task with many settings. Each run is an ordinary `train` run in
its own folder, so that a stopped sweep resumes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import ErrorList, PromptTuningError, RecipeError, first_line, without_secrets
from prompt_tuning.metrics.loading import main_metric
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.advice import difference_text
from prompt_tuning.reports.run_files import read_evaluation, read_settings
from prompt_tuning.reports.styles import MARKDOWN, Style
from prompt_tuning.runs.earlier_run import check_inner_folder
from prompt_tuning.runs.output_folder import hold_folder
from prompt_tuning.runs.prepare import prepare_run
from prompt_tuning.studies.run_lists import TABLES, SweepRun, naming_run, runs_of_sweep
from prompt_tuning.studies.shared_base import SharedBaseModel, check_unchanged, has_runs, is_finished
from prompt_tuning.support.files import write_json, write_text
from prompt_tuning.support.run_folder import RunFolder

logger = logging.getLogger(__name__)

FACTS = ("trainable_parameters", "train_steps", "train_seconds", "evaluation_seconds")
HEAD = (
    "run",
    "metric",
    "hard prompt",
    "tuned",
    "difference",
    "trained numbers",
    "steps",
    "training, s",
    "evaluation, s",
)


def sweep(path: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run what is not finished, and write sweep.json and sweep.md.

    Args:
        path: YAML with `recipe`, a recipe, and `runs`, the settings in which each run differs, by the run's name. A
            run may have another `recipe`.
        overrides: flags for all runs.
        folder: for the runs and the table. The same call resumes a stopped sweep in it.

    Returns:
        What sweep.json holds: the results of each run, or its error.

    Raises:
        PromptTuningError: all errors of all recipes, before a model is read.
    """
    runs = runs_of_sweep(path, overrides, folder)
    _check(runs)  # It also sets up accelerate, without which each process would hold the folder for itself.
    with hold_folder(folder, TABLES, written_before=has_runs(folder)):
        return _sweep(runs, folder)


def _sweep(runs: Mapping[str, SweepRun], folder: Path) -> dict[str, Any]:
    """Run what is not finished in a folder that this process holds."""
    base = SharedBaseModel(planned=len(runs))
    errors = {}
    for name, run in runs.items():
        recipe = load_recipe(run.recipe, run.flags)  # It also sets up accelerate for this run.
        finished = is_finished(recipe)
        base.announce(name, finished=finished)
        if finished:
            continue
        try:
            base.train(recipe)
        except Exception as error:  # One task may fail in any way, and the other tasks are trained all the same.
            if PartialState().num_processes > 1:
                raise  # The error may be that of this process only, and the others wait for it.
            logger.error("%s: %s", name, error, exc_info=not isinstance(error, (PromptTuningError, OSError)))
            errors[name] = without_secrets(f"{type(error).__name__}: {error}")
    PartialState().wait_for_everyone()  # The first process writes the last results.
    swept = {}
    for name in runs:
        swept[name] = {"error": errors[name]} if name in errors else _facts(RunFolder(folder / name))
    if PartialState().is_main_process:
        write_json(folder / TABLES[0], swept)
        write_text(folder / TABLES[1], sweep_text(swept) + "\n")
    return swept


def _check(runs: Mapping[str, SweepRun]) -> None:
    """Check all runs before a model loads.

    Raises:
        PromptTuningError: all errors of all runs.
    """
    errors = ErrorList()
    for name, run in runs.items():
        with naming_run(name, errors):
            _check_recipe(load_recipe(run.recipe, run.flags))
    errors.raise_all()


def _check_recipe(recipe: Recipe) -> None:
    if METHODS[recipe.prompt.method].trains_several_tasks:
        raise RecipeError(f"{recipe.path} trains several tasks in one run, with its own model. Train it by itself.")
    finished = is_finished(recipe)
    check_inner_folder(Path(str(recipe.training.output_dir)))
    prepared = prepare_run(recipe)
    if finished:
        check_unchanged(prepared)


def _facts(run: RunFolder) -> dict[str, Any]:
    """Return the row of a finished run in the table."""
    results, hard = read_evaluation(run, METHODS["none"].results_key)
    method = METHODS[read_settings(run).get("method", PromptArguments.method)]
    metric = main_metric(results["task"], hard)
    facts = {"metric": metric, "hard_prompt": hard.values[metric]}
    if method.trains:
        facts["tuned"] = read_evaluation(run, method.results_key)[1].values[metric]
    if metric in results.get("comparison", {}):
        facts["comparison"] = results["comparison"][metric]
    for name in FACTS:
        if name in results:
            facts[name] = results[name]
    return facts


def sweep_text(swept: Mapping[str, Any], style: Style = MARKDOWN) -> str:
    """Return the table.

    Args:
        swept: what sweep.json holds.
        style: how the text is written.
    """
    rows = []
    for name, run in swept.items():
        if "error" in run:
            error = style.words(first_line(run["error"]))
            rows.append((style.words(name), f"failed: {error}", *[""] * (len(HEAD) - 2)))
            continue
        tuned = run.get("tuned")
        rows.append((
            style.words(name),
            style.words(run["metric"]),
            f"{run['hard_prompt']:.1f}",
            "" if tuned is None else f"{tuned:.1f}",
            difference_text(run.get("comparison")),
            f"{run.get('trainable_parameters', 0):,}",
            str(run.get("train_steps", 0)),
            f"{run.get('train_seconds', 0):.0f}",
            f"{run['evaluation_seconds']:.0f}",
        ))  # fmt: skip
    return style.table(HEAD, rows)
