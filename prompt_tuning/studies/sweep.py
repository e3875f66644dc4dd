"""Train many small runs over one base model, which is read once.

A sweep is one prompt for each of many tasks, or one task with many settings. Each run is an ordinary `train` run in
its own folder, so that a stopped sweep resumes.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from prompt_tuning.arguments.arguments import PromptArguments
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import ErrorList, PromptTuningError, RecipeError, first_line, without_secrets
from prompt_tuning.metrics.loading import main_metric
from prompt_tuning.recipe.loading import load_recipe, read_pairs
from prompt_tuning.recipe.other_names import flag_name
from prompt_tuning.recipe.parser import list_error, to_argv
from prompt_tuning.recipe.ranges import RATE
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.markdown import plain_words
from prompt_tuning.reports.run_files import read_evaluation, read_settings
from prompt_tuning.runs.output_folder import check_inner_folder, hold_folder
from prompt_tuning.runs.prepare import prepare_run
from prompt_tuning.studies.shared_base import SharedBaseModel, check_unchanged, has_runs, is_finished
from prompt_tuning.support.files import atomic_write, is_plain_name, write_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.tables import markdown_table
from prompt_tuning.support.trust import ADVICE, FLAG

logger = logging.getLogger(__name__)

KEYS = ("recipe", "runs")
RATES = "learning_rates"
TABLES = ("sweep.json", "sweep.md")
SWEEP_SETTINGS = ("output_dir", "resume_from_checkpoint")
FACTS = ("trainable_parameters", "train_steps", "train_seconds", "evaluation_seconds")
HEAD = ("run", "metric", "hard prompt", "tuned", "trained numbers", "steps", "training, s", "evaluation, s")


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Args:
        recipe: the path of its recipe.
        flags: its other settings, as flags of the recipe.
        learning_rates: those that `compare` tries; none if the recipe's is taken.
    """

    recipe: str
    flags: list[str]
    learning_rates: tuple[float, ...] = ()

    def load(self) -> Recipe:
        """Load the recipe with the flags, which also sets up accelerate for this run."""
        return load_recipe(self.recipe, self.flags)


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
    runs = {}
    for name, run in read_sweep(Path(path)).items():
        flags = [*run.flags, *overrides, f"--output_dir={folder / name}", "--resume_from_checkpoint=auto"]
        runs[name] = SweepRun(run.recipe, flags)
    with hold_folder(folder, TABLES, written_before=has_runs(folder)):
        return _sweep(runs, folder)


def _sweep(runs: Mapping[str, SweepRun], folder: Path) -> dict[str, Any]:
    """Run what is not finished in a folder that this process holds."""
    finished = _check(runs)
    base = SharedBaseModel()
    errors = {}
    for name, run in runs.items():
        if finished[name]:
            continue
        logger.info("== %s", name)
        try:
            base.train(run.load())
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
        with atomic_write(folder / TABLES[1]) as file:
            file.write(sweep_text(swept) + "\n")
    return swept


def read_sweep(path: Path, *, takes_learning_rates: bool = False) -> dict[str, SweepRun]:
    """Read a sweep, and return its runs by name.

    Args:
        path: a YAML file.
        takes_learning_rates: a run may have a list `learning_rates`.

    Raises:
        RecipeError: it is not a sweep, or a run has a name or a setting that it cannot have.
    """
    settings = {pair.key: pair.value for pair in read_pairs(path)}
    unknown = sorted(settings.keys() - set(KEYS))
    if unknown:
        raise RecipeError(f"{path}: unknown key {unknown[0]}; a sweep has {' and '.join(KEYS)}")
    entries = settings.get("runs")
    if not isinstance(entries, dict) or not entries:
        raise RecipeError(f"{path}: expected `runs: {{name: {{setting: value}}}}`, found {entries!r}")
    runs = {}
    errors = ErrorList()
    for name, entry in entries.items():
        with errors.collect():
            learning_rates: tuple[float, ...] = ()
            if takes_learning_rates and isinstance(entry, dict) and RATES in entry:
                learning_rates = _read_learning_rates(entry[RATES], f"{path}: run {name}: {RATES}")
                entry = {key: value for key, value in entry.items() if key != RATES}
            run = _read_run(name, entry or {}, settings.get("recipe"), path)
            runs[name] = replace(run, learning_rates=learning_rates)
    errors.raise_all()
    return runs


def _read_run(name: str, settings: Any, common_recipe: Any, path: Path) -> SweepRun:
    """Return a run of a sweep.

    Raises:
        RecipeError: all errors of its name and settings.
    """
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: run {name}: expected `{{setting: value}}`, found {settings!r}")
    recipe = settings.get("recipe", common_recipe)
    errors = _name_errors(name)
    if not isinstance(recipe, str):
        errors.append("it has no recipe. Set `recipe` to a file for this run or for all runs.")
    flags = []
    for key, value in settings.items():
        error = _setting_error(key, value)
        if error:
            errors.append(error)
        elif key != "recipe":
            flags += to_argv(key, value)
    if errors:
        raise RecipeError(textwrap.indent("\n".join(errors), f"{path}: run {name}: "))
    return SweepRun(str(recipe), flags)


def _read_learning_rates(value: Any, place: str) -> tuple[float, ...]:
    """Return a list of learning rates; raise a RecipeError if it is not one."""
    texts = value if isinstance(value, list) else [value]
    try:
        rates = tuple(dict.fromkeys(map(float, texts)))
    except (TypeError, ValueError):
        rates = ()
    if not rates or not all(rate in RATE for rate in rates):
        raise RecipeError(f"{place}: expected numbers {RATE}, found {value!r}. Write a list such as [1e-3, 3e-3].")
    return rates


def _setting_error(key: str, value: Any) -> str | None:
    """Return what is wrong with one setting of a run, or None."""
    if key in SWEEP_SETTINGS:
        return f"the sweep sets {key}. Leave it out."
    if flag_name(key) == FLAG:
        return f"{key}: only the command line can allow Python code of others. Leave it out. {ADVICE}"
    if value in ("null", "~"):
        return (
            f"{key} is {value}, which cannot take back a setting of the recipe. Leave it out, or give the run its own "
            "recipe."
        )
    return list_error(key, value)


def _name_errors(name: str) -> list[str]:
    """Return what is wrong with the name of a run, which is also that of its folder."""
    errors = []
    if not is_plain_name(name) or name.startswith("."):
        errors.append("its folder has its name. Write the name without / and without a leading dot.")
    if name.lower() in TABLES:
        errors.append(f"the sweep writes its table to {name}. Give the run another name.")
    return errors


def _check(runs: Mapping[str, SweepRun]) -> dict[str, bool]:
    """Check all runs before a model loads, and return for each run whether it is finished.

    Raises:
        PromptTuningError: all errors of all runs.
    """
    finished = {}
    errors = ErrorList()
    for name, run in runs.items():
        try:
            recipe = run.load()
            finished[name] = is_finished(recipe)
            _check_recipe(recipe, finished=finished[name])
        except PromptTuningError as error:
            errors.append(type(error)(textwrap.indent(str(error), f"run {name}: ")))
    errors.raise_all()
    return finished


def _check_recipe(recipe: Recipe, *, finished: bool) -> None:
    if METHODS[recipe.prompt.method].trains_several_tasks:
        raise RecipeError(f"{recipe.path} trains several tasks in one run, with its own model. Train it by itself.")
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
    for name in FACTS:
        if name in results:
            facts[name] = results[name]
    return facts


def sweep_text(swept: Mapping[str, Any]) -> str:
    """Return the table in Markdown.

    Args:
        swept: what sweep.json holds.
    """
    rows = []
    for name, run in swept.items():
        if "error" in run:
            error = plain_words(first_line(run["error"]))
            rows.append((plain_words(name), f"failed: {error}", *[""] * (len(HEAD) - 2)))
            continue
        tuned = run.get("tuned")
        rows.append((
            plain_words(name),
            plain_words(run["metric"]),
            f"{run['hard_prompt']:.1f}",
            "" if tuned is None else f"{tuned:.1f}",
            f"{run.get('trainable_parameters', 0):,}",
            run.get("train_steps", 0),
            f"{run.get('train_seconds', 0):.0f}",
            f"{run['evaluation_seconds']:.0f}",
        ))  # fmt: skip
    return markdown_table(HEAD, rows)
