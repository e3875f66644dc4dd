"""Many small runs over one base model, which is read once: a prompt for each of many tasks, or one task in many ways.

Each run is an ordinary `train` run in a folder of its own, so that a sweep goes on where it was stopped.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import DataError, ErrorList, PromptTuningError, RecipeError
from prompt_tuning.metrics.loading import main_metric
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.recipe.loading import load_recipe, read_pairs
from prompt_tuning.recipe.parser import to_argv
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.prepare import prepare_run
from prompt_tuning.studies.shared_base import SharedBaseModel, check_unchanged, is_finished
from prompt_tuning.support.files import atomic_write, read_json, write_json
from prompt_tuning.support.tables import markdown_table
from prompt_tuning.support.yaml_files import read_yaml

logger = logging.getLogger(__name__)

KEYS = ("recipe", "runs")
SWEEP_SETTINGS = ("output_dir", "resume_from_checkpoint")


def sweep(path: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Run what has not been run, and write sweep.json and sweep.md.

    Args:
        path: YAML with `recipe`, a recipe, and `runs`, for each run's name the settings in which it differs; one of
            them may be another `recipe`.
        overrides: flags for all runs.

    Returns:
        sweep.json: for each run its results, or its error.

    Raises:
        PromptTuningError: with all that is wrong with any of the recipes, before a model is read.
    """
    settings = {
        name: (recipe, [*own, *overrides, f"--output_dir={folder / name}", "--resume_from_checkpoint=auto"])
        for name, (recipe, own) in read_sweep(Path(path)).items()
    }
    finished = _check(settings)
    base, errors = SharedBaseModel(), {}
    for name, (recipe, flags) in settings.items():
        if finished[name]:
            continue
        logger.info("== %s", name)
        try:
            base.train(load_recipe(recipe, flags))  # parsed anew, which sets accelerate up as this run wants it
        except Exception as error:  # of one task, which is no reason to leave the others
            if PartialState().num_processes > 1:
                raise  # it may have failed on this process alone, and the others wait for it
            logger.error("%s: %s", name, error, exc_info=not isinstance(error, PromptTuningError))
            errors[name] = f"{type(error).__name__}: {error}"
    PartialState().wait_for_everyone()  # until the first one has written the last results
    swept = {name: {"error": errors[name]} if name in errors else _facts(folder / name) for name in settings}
    if PartialState().is_main_process:
        write_json(folder / "sweep.json", swept)
        with atomic_write(folder / "sweep.md") as file:
            file.write(sweep_text(swept) + "\n")
    return swept


def read_sweep(path: Path) -> dict[str, tuple[str, list[str]]]:
    """By a run's name its recipe and its flags.

    Raises:
        RecipeError: not a sweep, or a name or setting that a run cannot have.
    """
    found = {pair.key: pair.value for pair in read_pairs(path)}
    if unknown := sorted(found.keys() - set(KEYS)):
        raise RecipeError(f"{path}: unknown key {unknown[0]}; a sweep has {' and '.join(KEYS)}")
    runs = found.get("runs")
    if not runs or not isinstance(runs, dict) or not all(isinstance(own or {}, dict) for own in runs.values()):
        raise RecipeError(f"{path}: expected `runs: {{name: {{setting: value}}}}`, found {runs!r}")
    settings, problems = {}, []
    for name, own in runs.items():
        own = own or {}
        recipe = own.get("recipe", found.get("recipe"))
        if not name or Path(name).name != name or name.startswith("."):
            problems.append(f"{path}: run {name}: its name is that of its folder; write it without / and leading dot")
        if not isinstance(recipe, str):
            problems.append(f"{path}: run {name} has no recipe; set one for it, or one for all, by its file's name")
        problems += [
            f"{path}: run {name}: {key} is the sweep's to set; leave it out" for key in SWEEP_SETTINGS if key in own
        ]
        problems += [
            f"{path}: run {name}: {key} is {value}, which takes nothing of its recipe back; leave it out, or give the "
            "run a recipe of its own"
            for key, value in own.items()
            if value in ("null", "~")
        ]
        settings[name] = (
            recipe,
            [flag for key, value in own.items() if key != "recipe" for flag in to_argv(key, value)],
        )
    if problems:
        raise RecipeError("\n".join(problems))
    return settings


def _check(settings: dict[str, tuple[str, list[str]]]) -> dict[str, bool]:
    """Find what is wrong with any run before a model loads; by a run's name whether it is finished."""
    finished, problems = {}, ErrorList()
    for name, (path, flags) in settings.items():
        try:
            recipe = load_recipe(path, flags)
            finished[name] = is_finished(recipe)
            _check_rows(recipe, finished[name])
        except PromptTuningError as error:
            problems.append(type(error)("\n".join(f"run {name}: {line}" for line in str(error).splitlines())))
    problems.raise_all()
    return finished


def _check_rows(recipe: Recipe, finished: bool) -> None:
    if METHODS[recipe.prompt.method].trains_several_tasks:
        raise RecipeError(f"{recipe.path} is of several tasks at once, one run with its own model; train it alone")
    prepared = prepare_run(recipe)
    if finished:
        check_unchanged(prepared)


def _facts(run: Path) -> dict[str, Any]:
    results = read_json(run / "results.json")
    recipe = read_yaml(run / "recipe.yaml", DataError)
    named = {"hard_prompt": "hard_prompt"}
    method = METHODS[recipe["method"]]
    if method.trains:
        named["tuned"] = method.results_key
    metric = main_metric(results["task"], Scores.from_json(results["hard_prompt"]))
    numbers = ("trainable_parameters", "train_steps", "train_seconds", "evaluation_seconds")
    return (
        {"metric": metric}
        | {name: results[key][metric] for name, key in named.items()}
        | {key: results[key] for key in numbers if key in results}
    )


def sweep_text(swept: dict[str, Any]) -> str:
    """The table, in Markdown."""
    head = ("run", "metric", "hard prompt", "tuned", "trained numbers", "steps", "training, s", "evaluation, s")
    rows = []
    for name, run in swept.items():
        if "error" in run:
            rows.append((name, f"failed: {run['error'].splitlines()[0]}", *[""] * (len(head) - 2)))
            continue
        scores = ("" if run.get(key) is None else f"{run[key]:.1f}" for key in ("hard_prompt", "tuned"))
        rows.append((
            name, run["metric"], *scores, f"{run.get('trainable_parameters', 0):,}", run.get("train_steps", 0),
            f"{run.get('train_seconds', 0):.0f}", f"{run['evaluation_seconds']:.0f}",
        ))  # fmt: skip
    return markdown_table(head, rows)
