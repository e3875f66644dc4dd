"""Read the files of a run, each value checked: a file that was edited or cut is named with the key that is wrong.

Every report, card, comparison and sweep reads a run here. Runs of older versions have fewer keys. This module does not
import torch, so that `prompt-tuning show` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import DataError
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.reports.run_types import (
    CardFacts,
    CardResults,
    CardSettings,
    ConstantAnswer,
    EnsembleAdapter,
    EvaluationFacts,
    LogEntry,
    Prediction,
    Results,
    Settings,
    TaskResults,
    TrainingFacts,
    Writing,
)
from prompt_tuning.support.files import is_plain_name, read_json, read_json_lines
from prompt_tuning.support.json_types import Limits, Place, check_value, shown
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted
from prompt_tuning.support.yaml_files import read_yaml

# The hard prompt comes first in tables, because the others are compared with it.
ROWS = [METHODS["none"], *METHODS.values()]
NAMES = {row.results_key: row.label for row in ROWS} | {"ensemble": "prompts together"}
"""The keys of results.json, and of a row of predictions, that belong to a system, with their labels."""

CARD_ADVICE = "Name a file that `prompt-tuning card RUN --output FILE.json` wrote."

NOT_NUMBERS = ("changed_settings",)
"""The entries of log_history.json that are not numbers."""


def read_results(folder: Path) -> dict[str, Any]:
    """Return results.json of a run.

    Raises:
        DataError: the folder holds no finished run, or a value of the file is not what a run writes.
    """
    file = RunFolder(folder).results
    if not file.is_file():
        raise DataError(f"{folder}: no {file.name} there. Name the folder of a finished train or evaluate.")
    results = read_json(file, dict[str, Any])
    place = Place(str(file))
    if "tasks" not in results:
        check_results(results, place)
        return results
    check_value(results, TaskResults, place)
    for name, of_task in results["tasks"].items():
        if not is_plain_name(name):
            raise place.within("tasks").error(shown(name), "the name of a folder in the run")
        check_results(of_task, place.within("tasks").within(name))
    return results


def check_results(results: dict[str, Any], place: Place) -> None:
    """Raise a DataError unless the results of one task are what a run writes, and their parts fit together."""
    check_value(results, Results, place)
    if "method" in results:
        check_value(results, TrainingFacts, place)
    if "choice_normalization" not in results["decoding"]:
        check_value(results["decoding"], Writing, place.within("decoding"))
    _check_scores(results, place)
    named = {"answers.taken": results.get("answers", {}).get("taken", {})}
    named["probabilities"] = results.get("probabilities", {})
    for key, systems in named.items():
        for system in systems:
            if system not in NAMES:
                raise place.within(key).error(shown(system), f"one of {', '.join(NAMES)}")


def _check_scores(results: dict[str, Any], place: Place) -> None:
    """Check that all systems have scores of the same metrics, and that no number is written as a text."""
    scored = {name: results[name] for name in systems_in(results)}
    if not scored:
        raise place.error("without scores", f"those of one of {', '.join(NAMES)}")
    first, *_ = scored
    for name, adapter in results.get("adapters", {}).items():
        check_value(adapter, EnsembleAdapter, place.within("adapters").within(name))
        scored[f"adapters.{name}"] = {
            key: value for key, value in adapter.items() if key not in EnsembleAdapter.__annotations__
        }
    if "answers" in results:
        always = results["answers"]["always"]
        scored["answers.always"] = {key: value for key, value in always.items() if key != "answer"}
        check_value(always, ConstantAnswer, place.within("answers.always"))
    metrics = None
    for name, scores in scored.items():
        within = place.within(name)
        check_value(scores, dict[str, str | float], within)
        for metric, value in scores.items():
            if isinstance(value, str) and _is_number(value):
                raise within.within(metric).error(shown(value), "a number")
        values = Scores.from_json(scores).values.keys()
        metrics = values if metrics is None else metrics
        if not values or values != metrics:
            expected = ", ".join(metrics) or "at least one"
            raise within.error(f"of the metrics {', '.join(values) or 'none'}", f"{expected}, as {first} has")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_trained(folder: Path) -> dict[str, Any]:
    """Return results.json of a finished training of one task, with all that a card needs.

    Raises:
        DataError: it is not one, or a value of the file is not what a run writes.
    """
    results = read_results(folder)
    if "tasks" in results:
        task = RunFolder(folder).task(next(iter(results["tasks"])))
        raise DataError(f"{folder}: a run of several tasks has no card. Name the folder of one: {task.path}.")
    if "method" not in results:
        raise DataError(f"{folder}: nothing was trained there. Name the folder of a finished train.")
    check_value(results, CardResults, Place(str(RunFolder(folder).results)))
    return results


def read_card_facts(file: Path) -> dict[str, Any]:
    """Return the facts of a card from a JSON file.

    Raises:
        DataError: the file holds anything else.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file, expected the facts of a card. {CARD_ADVICE}")
    facts = read_json(file)
    place = Place(str(file), advice=CARD_ADVICE)
    check_value(facts, CardFacts, place)
    check_results(facts["results"], place.within("results"))
    check_value(facts["results"], CardResults, place.within("results"))
    check_value(facts["settings"], CardSettings, place.within("settings"))
    check_log_history(facts.get("log_history", []), place.within("log_history"))
    return facts


def read_predictions(run: RunFolder, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of predictions/<split>.jsonl.

    Args:
        run: the run.
        results: its results of this task.

    Raises:
        DataError: the file is gone, belongs to another evaluation, or a row is not what a run writes.
    """
    file = run.predictions(results["split"])
    if not file.is_file():
        raise DataError(f"{file}: no such file. A report shows the predictions that train and evaluate write there.")
    run.check_links(file)
    rows = read_json_lines(file, Prediction)
    if len(rows) != results["rows"]:
        raise DataError(
            f"{file}: {counted(len(rows), 'row')}, but {run.results.name} has {results['rows']}. Evaluate again."
        )
    evaluated = systems_in(results)
    for number, row in enumerate(rows, 1):
        for system in {*evaluated, *systems_in(row)}:
            if type(row.get(system)) is not str:
                found = shown(row[system]) if system in row else "missing"
                raise Place(f"{file}, line {number}", system).error(found, "a text")
        _check_row_scores(row, rows[0], set(evaluated), Place(f"{file}, line {number}", "scores"))
    return rows


def _check_row_scores(row: Mapping[str, Any], first: Mapping[str, Any], systems: set[str], place: Place) -> None:
    """Check that a row has the scores of every system, by the metrics of the first row."""
    if ("scores" in row) != ("scores" in first):
        raise place.error("in some rows only", "the scores of every row")
    for system in systems if "scores" in row else ():
        metrics = first["scores"].get(system, {}).keys()
        if row["scores"].get(system, {}).keys() != metrics or not metrics:
            raise place.within(system).error("of other metrics", "those of the first row")


def systems_in(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of results.json, or of a row of predictions, that belong to a system, with their labels."""
    return {name: label for name, label in NAMES.items() if name in record}


def read_evaluation(run: RunFolder, system: str) -> tuple[dict[str, Any], Scores]:
    """Return results.json of a run, and the scores of a system.

    Args:
        run: the run.
        system: its key in results.json.

    Raises:
        DataError: the run has not evaluated the system, or a value of the file is not what a run writes.
    """
    results = read_results(run.path)
    place = Place(str(run.results), advice="Remove the folder, and run it again.")
    if "tasks" in results:
        raise place.within("tasks").error("there", "the results of one task")
    check_value(results, EvaluationFacts, place)
    for record, within in ((results, place), (results["prediction_seconds"], place.within("prediction_seconds"))):
        if system not in record:
            raise within.within(system).error("missing", "that of an evaluation")
    return results, Scores.from_json(results[system])


def read_log_history(run: RunFolder) -> list[dict[str, Any]]:
    """Return log_history.json, which is Trainer's log.

    Raises:
        DataError: it is not what Trainer logs.
    """
    entries = read_json(run.log_history)
    check_log_history(entries, Place(str(run.log_history)))
    return entries


def check_log_history(entries: list[dict[str, Any]], place: Place) -> None:
    """Raise a DataError unless each entry of a log has a step and numbers."""
    check_value(entries, list[LogEntry], place)
    for number, entry in enumerate(entries):
        numbers = {key: value for key, value in entry.items() if key not in NOT_NUMBERS}
        check_value(numbers, dict[str, Annotated[float, Limits(finite=False)]], place.within(number))


def read_settings(run: RunFolder) -> dict[str, Any]:
    """Return recipe.yaml of a run.

    Raises:
        DataError: it is not a recipe that a run writes.
    """
    return read_yaml(run.recipe, DataError, Settings)
