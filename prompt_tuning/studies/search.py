"""Search settings of a training by Trainer's `hyperparameter_search` with optuna.

Every trial trains a new prompt on the same encoded rows over one base model, and the validation rows judge it. The
trials are kept in a journal, so that a stopped search resumes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import PreTrainedModel

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import DataError, PromptTuningError, RecipeError, TrainingError, first_line
from prompt_tuning.metrics.loading import LOWER_IS_BETTER
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import Recipe, changed_settings, unmistakable_settings
from prompt_tuning.reports.styles import MARKDOWN, Style
from prompt_tuning.runs.evaluate import load_model, trainer_for
from prompt_tuning.runs.fingerprints import input_fingerprints
from prompt_tuning.runs.fitting import early_stopping
from prompt_tuning.runs.output_folder import hold_folder, removed_without_scores
from prompt_tuning.runs.prepare import Prepared, prepare_run
from prompt_tuning.runs.sharding import refuse_sharding
from prompt_tuning.runs.trainable import add_trainable
from prompt_tuning.studies.ranges import SettingRange, read_search
from prompt_tuning.studies.shared_base import sharing_weights
from prompt_tuning.support.files import read_json_lines, write_json, write_text
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.yaml_files import to_yaml

if TYPE_CHECKING:
    from optuna import Study

logger = logging.getLogger(__name__)

JOURNAL = "optuna.jsonl"
BEST = "best.yaml"
TABLES = ("search.json", "search.md")
STUDY = "search"


def search(path: str, overrides: list[str], folder: Path, n_trials: int) -> dict[str, Any]:
    """Run the trials that are missing, and write search.json, search.md and best.yaml, a recipe.

    Args:
        path: YAML with `recipe`, a recipe, and `ranges`, as `read_search` reads it.
        overrides: flags of the recipe.
        folder: for what is written. The same call resumes a stopped search in it.
        n_trials: how many trials have a value at the end, with those of earlier calls. A trial that diverges has none,
            and only the next call replaces it.

    Returns:
        What search.json holds.

    Raises:
        RecipeError: the recipe trains nothing that a search can train, or the folder holds another search.
        DataError: there are no validation rows.
        TrainingError: no trial could be trained.
    """
    source, ranges = read_search(path, overrides)
    recipe = load_recipe(source, [*overrides, f"--output_dir={folder}"])
    _check_recipe(recipe)
    _check_journal(folder / JOURNAL)
    prepared = prepare_run(recipe)
    if "validation" not in prepared.encoded:
        raise DataError(
            f"{recipe.path}: trials are judged by validation rows. Set validation_file or validation_size."
        )
    with (
        hold_folder(folder, (*TABLES, BEST), written_before=(folder / JOURNAL).is_file()),
        removed_without_scores(folder / JOURNAL, lambda: _facts(folder, recipe)["best"] is not None),
    ):
        _run_trials(prepared, ranges, folder, n_trials)
        [facts] = broadcast_object_list([_facts(folder, recipe) if PartialState().is_main_process else None])
        if facts["best"] is None:
            raise TrainingError(f"{folder}: no trial could be trained. Lower the learning rates of the ranges.")
        if PartialState().is_main_process:
            _write(facts, recipe, folder)
    return facts


def _check_recipe(recipe: Recipe) -> None:
    """Raise a RecipeError if a search cannot train the recipe."""
    method = METHODS[recipe.prompt.method]
    if not method.trains or method.trains_whole_model or method.trains_several_tasks or recipe.prompt.teacher_template:
        what = "a teacher_template" if recipe.prompt.teacher_template else f"method {method.name}"
        raise RecipeError(f"{recipe.path}: a search does not train {what}. Set a method that adds to a frozen model.")
    refuse_sharding(recipe, "a search")


def _import_optuna() -> Any:
    """Return optuna, which then reports only the trials that failed, each in one line."""
    try:
        import optuna
    except ImportError:
        raise PromptTuningError("--backend optuna needs optuna. Run: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for handler in logging.getLogger("optuna").handlers:
        handler.addFilter(_without_traceback)
    return optuna


def _check_journal(journal: Path) -> None:
    """Raise a DataError for a journal that optuna cannot read, or that is a link out of its folder."""
    optuna = _import_optuna()
    RunFolder(journal.parent).check_links(journal)
    if not journal.is_file():
        return
    try:
        # optuna complains of a last line that is cut only after the next one.
        read_json_lines(journal, dict[str, Any])
        _storage(optuna, journal).get_all_studies()
    except Exception as error:  # optuna checks nothing that it reads.
        reason = first_line(error).partition(". ")[0]
        raise DataError(
            f"{journal}: not a journal of optuna ({reason}). Remove the line, or name another --output_dir."
        ) from error


def _storage(optuna: Any, journal: Path) -> Any:
    """Return optuna's storage of trials in a journal."""
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def _study_settings(folder: Path, recipe: Recipe, *, num_trials: int = 0) -> dict[str, Any]:
    """Return the arguments of optuna's `create_study`, which opens a study that exists.

    The seed depends on the number of trials so far: a resumed search would draw its first trials again.
    """
    optuna = _import_optuna()
    return {
        "storage": _storage(optuna, folder / JOURNAL),
        "study_name": STUDY,
        "load_if_exists": True,
        "direction": _direction(_metric(recipe)),
        "sampler": optuna.samplers.TPESampler(seed=recipe.training.seed + num_trials),
        "pruner": optuna.pruners.NopPruner(),  # Only the first process would be told to stop a trial.
    }


def _metric(recipe: Recipe) -> str:
    """Return the value of an evaluation that judges a trial, by default the loss."""
    return (recipe.training.metric_for_best_model or "loss").removeprefix("eval_")


def _direction(metric: str) -> str:
    return "minimize" if metric in ("loss", *LOWER_IS_BETTER) else "maximize"


def _run_trials(prepared: Prepared, ranges: Mapping[str, SettingRange], folder: Path, n_trials: int) -> None:
    """Run the trials that the folder lacks.

    Raises:
        RecipeError: the folder holds the trials of other settings, rows or ranges.
    """
    recipe = prepared.recipe
    settings: dict[str, Any] = {}
    problem, missing = None, 0
    if PartialState().is_main_process:
        settings = _study_settings(folder, recipe)
        study = _import_optuna().create_study(**settings)
        problem = _settings_problem(study, prepared, ranges, folder)
        missing = n_trials - sum(trial.value is not None for trial in study.trials)
        settings = _study_settings(folder, recipe, num_trials=len(study.trials))
    problem, missing = broadcast_object_list([problem, missing])
    if problem:
        raise RecipeError(problem)
    if missing > 0:
        _search(prepared, ranges, missing, settings)


def _search(prepared: Prepared, ranges: Mapping[str, SettingRange], n_trials: int, settings: dict[str, Any]) -> None:
    """Run trials by Trainer's `hyperparameter_search`."""
    recipe = prepared.recipe
    base = load_model(prepared)
    metric = _metric(recipe)

    def model_init(trial: Any = None) -> PreTrainedModel | PeftModel:
        if trial is not None:
            logger.info("== trial %s", trial.number)
        return add_trainable(sharing_weights(base), prepared)

    trainer = trainer_for(None, prepared, early_stopping(recipe), model_init)
    # An error may be that of one process only, and the others would wait for it.
    catch = (TrainingError,) if PartialState().num_processes == 1 else ()
    try:
        trainer.hyperparameter_search(
            hp_space=lambda trial: {name: values.draw(name, trial) for name, values in ranges.items()},
            compute_objective=lambda metrics: metrics[f"eval_{metric}"],
            n_trials=n_trials,
            backend="optuna",
            catch=catch,
            **settings | {"direction": _direction(metric)},
        )
    except ValueError as error:
        # Trainer asks optuna for the best trial, also if all trials diverged, which `search` reports.
        if "No trials are completed" not in str(error):
            raise


def _settings_problem(
    study: Study, prepared: Prepared, ranges: Mapping[str, SettingRange], folder: Path
) -> str | None:
    """Keep what the trials depend on in a new study; return what differs from it in one that has trials."""
    settings = unmistakable_settings(prepared.recipe.resolved()) | input_fingerprints(prepared)
    settings = json.loads(json.dumps(settings | {"ranges": {name: asdict(values) for name, values in ranges.items()}}))
    saved = study.user_attrs.get("settings", settings)
    study.set_user_attr("settings", saved)
    changed = [name for name in changed_settings(saved, settings) if name != "output_dir"]
    if changed:
        return (
            f"{folder} holds a search with other settings or rows ({', '.join(changed)}). Name another --output_dir."
        )
    return None


def _facts(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Return what search.json holds, from the trials in the folder."""
    study = _import_optuna().create_study(**_study_settings(folder, recipe))
    trials = []
    for trial in study.trials:
        trials.append(
            {"trial": trial.number, "state": trial.state.name, "value": trial.value, "settings": trial.params}
        )
    done = [trial for trial in trials if trial["state"] == "COMPLETE"]
    sign = 1 if _direction(_metric(recipe)) == "minimize" else -1
    best = min(done, key=lambda trial: sign * trial["value"], default=None)
    return {"metric": f"eval_{_metric(recipe)}", "trials": trials, "best": best}


def search_text(facts: Mapping[str, Any], style: Style = MARKDOWN) -> str:
    """Return the table of the trials, the best first; those without a value come last.

    Args:
        facts: what search.json holds.
        style: how the text is written.
    """
    names = list(facts["best"]["settings"])
    best = facts["best"]["value"]
    rows = []
    for trial in sorted(
        facts["trials"], key=lambda trial: (trial["value"] is None, abs((trial["value"] or 0) - best))
    ):
        value = trial["state"].lower() if trial["value"] is None else f"{trial['value']:.4f}"
        settings = [trial["settings"].get(name, "") for name in names]
        texts = [f"{setting:.4g}" if isinstance(setting, float) else style.words(setting) for setting in settings]
        rows.append((str(trial["trial"]), value, *texts))
    return style.table(("trial", facts["metric"], *names), rows)


def _write(facts: Mapping[str, Any], recipe: Recipe, folder: Path) -> None:
    """Write the tables, and the recipe with the best settings."""
    write_json(folder / TABLES[0], facts)
    write_text(folder / TABLES[1], search_text(facts) + "\n")
    settings = recipe.resolved() | facts["best"]["settings"] | {"output_dir": str(folder / "best")}
    num_equal = sum(trial["value"] == facts["best"]["value"] for trial in facts["trials"])
    best = "The best" if num_equal == 1 else f"The first of {num_equal} equally good ones"
    comment = f"# {best} of {len(facts['trials'])} trials by {facts['metric']} on the validation rows.\n"
    write_text(folder / BEST, comment + to_yaml(unmistakable_settings(settings)))
