"""The HTML report of a finished run: one file that needs no network, made from the files of the run's folder."""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from prompt_tuning.errors import DataError
from prompt_tuning.metrics.loading import OWN_METRICS, TASK_METRICS, load_metrics, main_metric, score_example_row
from prompt_tuning.metrics.scores import MetricFunction
from prompt_tuning.metrics.significance import rows_scored_alone
from prompt_tuning.reports.charts import Chart, histogram, line_chart
from prompt_tuning.reports.losses import losses_text
from prompt_tuning.reports.run_files import (
    NAMES,
    read_log_history,
    read_predictions,
    read_results,
    read_settings,
    systems_in,
)
from prompt_tuning.reports.run_types import Settings
from prompt_tuning.reports.summary import (
    answers_text,
    decoding_text,
    leakage_text,
    logged_steps,
    scores_of_systems,
)
from prompt_tuning.support.files import atomic_write
from prompt_tuning.support.json_types import Place, check_value
from prompt_tuning.support.json_values import MAX_BYTES, read_bounded
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted
from prompt_tuning.support.yaml_files import to_yaml

logger = logging.getLogger(__name__)

ROWS_SHOWN = 1000  # in the table; all rows are scored, counted and searched for gains and losses
CHARACTERS_SHOWN = 4000  # in a text
PREVIEW = 160  # characters
EXTREMES = 5
STEPS_SHOWN = 300
MEAN_TOLERANCE = 0.006  # results.json has two decimals

Row = dict[str, Any]


def write_report(folder: Path, *, trust_remote_code: bool = False) -> Path:
    """Write report.html in the folder of a finished train, evaluate or ensemble, and return its path.

    A run of several tasks gets one report for all and one for every task.

    Args:
        folder: the run's folder.
        trust_remote_code: run the Python code of the recipe's metrics that are not of this package.

    Raises:
        DataError: the folder holds no finished run, or its predictions are gone.
        RecipeError: the main metric is not of this package, and its code is not trusted.
    """
    run = RunFolder(folder)
    results = read_results(folder)
    run.check_links(run.results, run.recipe, run.template, run.log_history)
    if "tasks" in results:
        for name in results["tasks"]:
            write_report(run.task(name).path, trust_remote_code=trust_remote_code)
        content = _tasks_content(results)
    else:
        content = _run_content(run, results, trust_remote_code=trust_remote_code)
    text = _report_template().render(
        name=folder.absolute().name,
        report_name=RunFolder.REPORT,
        recipe=_recipe_text(run, results),
        template=_text_of(run.template),
        **_curves(run, results),
        **content,
    )
    with atomic_write(run.report) as file:
        file.write(text)
    return run.report


@functools.cache
def _report_template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["hash"] = _hash
    return environment.get_template("report_template.html")


def _tasks_content(results: dict[str, Any]) -> dict[str, Any]:
    """Return what the report of several tasks shows: the results of every task, and the facts of all."""
    tasks = results["tasks"]
    return {
        "facts": {"Tasks": ", ".join(tasks)} | _facts(next(iter(tasks.values())) | results),
        "tables": {name: _table(task_results) for name, task_results in tasks.items()},
        "table": None,
    }


def _run_content(run: RunFolder, results: dict[str, Any], *, trust_remote_code: bool) -> dict[str, Any]:
    """Return what the report of one task's rows shows."""
    rows = read_predictions(run, results)
    settings = _settings(run, results)
    language = settings.get("lang") or settings.get("target_lang")
    metric = main_metric(results["task"], next(iter(scores_of_systems(results).values())))
    names = settings.get("metrics") or TASK_METRICS[results["task"]]
    score = _metric_function(metric, names, language, trust_remote_code=trust_remote_code)
    is_mean = _add_scores(rows, metric, score, results)
    _add_previews(rows)
    return {
        "facts": _task_facts(results) | _facts(results),
        "tables": {"Results": _table(results)},
        "table": {
            "metric": metric,
            "mean": is_mean,
            "file": f"{RunFolder.PREDICTIONS}/{run.predictions(results['split']).name}",
            "language": language.replace("_", "-") if language else None,
            **_compared_rows(rows, systems_in(results)),
        },
        "lengths": _lengths(rows, results),
    }


def _compared_rows(rows: list[Row], systems: dict[str, str]) -> dict[str, Any]:
    """Return the rows to show, and those that the second of two systems answers best and worst."""
    compared = len(systems) == 2
    better, worse = [], []
    if compared:
        ranked = sorted(rows, key=lambda row: -row["gain"])
        better = [row for row in ranked if row["gain"] > 0]
        worse = [row for row in reversed(ranked) if row["gain"] < 0]
    shown = rows[:ROWS_SHOWN]
    return {
        "systems": systems,
        "rows": shown,
        "total": len(rows),
        "compared": compared,
        "gains": better[:EXTREMES],
        "losses": worse[:EXTREMES],
        "better": len(better),
        "worse": len(worse),
        "last_shown": shown[-1]["place"],
    }


def _settings(run: RunFolder, results: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe: of an evaluation in results.json, of a training in its file."""
    if "recipe" in results:
        check_value(results["recipe"], Settings, Place(str(run.results), "recipe"))
        return results["recipe"]
    return read_settings(run) if run.recipe.is_file() else {}


def _column(rows: list[Row], name: str) -> list[Any]:
    return [row[name] for row in rows]


def _metric_function(
    metric: str, names: Sequence[str], language: str | None, *, trust_remote_code: bool
) -> MetricFunction:
    """Return only the function that computes `metric`, because it is called for every row."""
    # Code of others is not asked for what a metric of this package computes.
    for name in sorted(names, key=lambda name: name not in OWN_METRICS):
        score = load_metrics([name], language=language, trust_remote_code=trust_remote_code)
        if metric in score_example_row(score).values:
            return score
    raise DataError(f"metric {metric}: none of {', '.join(names)} computes it. Evaluate again.")


def _add_scores(rows: list[Row], metric: str, score: MetricFunction, results: dict[str, Any]) -> bool:
    """Set `scores`, `gain` and `place` of every row.

    The gain is the second system's score minus the first's, which is the hard prompt. A positive gain is better.

    Returns:
        True if the metric of all rows is the mean of the rows' scores.
    """
    logger.info("scoring every row alone, for the report")
    references = _column(rows, "references")
    sign = -1 if metric == "ter" else 1  # a lower translation edit rate is better
    for place, row in enumerate(rows):
        row |= {"place": place, "scores": {}, "gain": 0.0}
    is_mean = True
    for name, scores in scores_of_systems(results).items():
        row_scores = rows_scored_alone(score, metric, _column(rows, name), references)
        is_mean = is_mean and abs(row_scores.mean() - scores.values[metric]) < MEAN_TOLERANCE
        for row, row_score in zip(rows, row_scores, strict=True):
            row["scores"][name] = float(row_score)
    for row in rows:
        first, *others = row["scores"].values()
        if others:
            row["gain"] = sign * (others[0] - first)
    return is_mean


def _add_previews(rows: list[Row]) -> None:
    """Set `preview`, the source without the words that all rows open with, and shorten texts that are too long."""
    prefix = _common_words(_column(rows, "source"))
    for row in rows:
        text = " ".join((row["source"][len(prefix) :].strip() or row["source"]).split())
        if len(text) > PREVIEW:  # a question is often at the end
            text = f"{text[: PREVIEW // 2].rstrip()} … {text[-PREVIEW // 2 :].lstrip()}"
        row["preview"] = f"… {text}" if prefix else text
        row["whole"] = row["preview"] == row["source"]
        row["references"] = list(dict.fromkeys(map(_shortened, row["references"])))
        for key, value in row.items():
            if isinstance(value, str):
                row[key] = _shortened(value)


def _common_words(sources: list[str]) -> str:
    """Return the words that all sources open with; nothing if all are the same."""
    prefix = os.path.commonprefix(sources)  # noqa: RUF071  # the comparison by character is wanted here
    if prefix == max(sources):
        return ""
    return prefix[: max(prefix.rfind(" "), prefix.rfind("\n")) + 1]


def _shortened(text: str) -> str:
    """Return a text, or its two ends with the number of characters left out between them."""
    if len(text) <= CHARACTERS_SHOWN:
        return text
    half = CHARACTERS_SHOWN // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters are left out here …]\n{text[-half:]}"


def _table(results: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of every system by metric, and the difference if there are two systems."""
    systems = scores_of_systems(results)
    columns: dict[str, dict[str, float]] = {}
    for name, scores in systems.items():
        columns[NAMES[name]] = scores.values
    for adapter in results.get("adapters", {}).values():
        columns[f"{adapter['folder']} alone"] = adapter
    first = next(iter(systems.values()))
    lines = {}
    for metric in first.values:
        numbers = [column[metric] for column in columns.values()]
        lines[metric] = list(map("{:.2f}".format, numbers))
        if len(numbers) == 2:
            lines[metric].append(f"{numbers[1] - numbers[0]:+.2f}")
    return {
        "columns": [*columns, "change"] if len(columns) == 2 else [*columns],
        "lines": lines,
        "signatures": list(first.signatures.values()),
        "rows": results["rows"],
        "split": results["split"],
    }


def _task_facts(results: dict[str, Any]) -> dict[str, str]:
    """Return what is known of one task's evaluation."""
    facts = {
        "Task": results["task"].replace("_", " "),
        "Template": results["template"],
        "Rows": f"{results['rows']:,} of {results['split']}",
        "Decoding": decoding_text(results["decoding"]),
    }
    if "answers" in results:
        facts["Answers"] = "; ".join(answers_text(results["answers"]))
    leakage = results["leakage"].get(results["split"])
    losses = losses_text(results)
    if losses is not None:
        facts["Left out, cut or lost"] = "; ".join(losses) or "nothing"
    if leakage:
        facts["Rows that are also elsewhere"] = leakage_text(leakage)
    if "trained_with" in results:
        facts["Trained with"] = f"{', '.join(results['trained_with'])}; steps and seconds are those of all tasks"
    return facts


def _facts(results: dict[str, Any]) -> dict[str, str]:
    """Return what is known of a run, for one task or several."""
    facts = {"Model": results["model"]}
    if "method" in results:
        facts["Method"] = results["method"].replace("_", " ")
    if "train_steps" in results:
        rows = counted(results["train_rows"], "row") if "train_rows" in results else "a stream"
        facts["Training"] = (
            f"{rows}, {counted(results['train_steps'], 'step')}, {results['train_seconds']:.0f} s, "
            f"{results['trainable_parameters']:,} trained parameters"
        )
    for label, key in (("Best checkpoint", "best_checkpoint"), ("Adapter", "adapter"), ("Combined by", "combine")):
        if key in results:
            facts[label] = results[key]
    versions = [f"{name} {number}" for name, number in results["versions"].items()]
    return facts | {"Seed": str(results["seed"]), "Versions": ", ".join(versions)}


def _curves(run: RunFolder, results: dict[str, Any]) -> dict[str, Any]:
    """Return charts of the loss and of the main metric by step, and their numbers."""
    if "train_steps" not in results or not run.log_history.is_file():
        # The tasks of a multitask training have their curves in the report of all.
        together = "trained_with" in results
        return {"trained": together, "elsewhere": together, "curves": [], "columns": [], "steps": [], "steps_of": 0}
    steps = logged_steps(read_log_history(run))
    columns: dict[str, None] = {}
    stride = math.ceil(len(steps) / STEPS_SHOWN) if steps else 1
    shown = []
    for number, (step, values) in enumerate(steps.items()):
        columns |= dict.fromkeys(values)
        if number % stride == 0 or "eval_loss" in values:
            shown.append((step, values))
    return {
        "trained": True,
        "elsewhere": False,
        "curves": _curve_charts(steps, results),
        "columns": list(columns),
        "steps": shown,
        "steps_of": len(steps),
    }


def _curve_charts(steps: dict[int, dict[str, float]], results: dict[str, Any]) -> list[Chart]:
    best = results.get("best_checkpoint")
    mark = (int(best.rpartition("-")[2]), "the best checkpoint") if best else None
    losses = {"training": _series(steps, "loss"), "validation": _series(steps, "eval_loss")}
    charts = [line_chart("Loss by step", "loss", losses, mark)]
    if "tasks" not in results:
        metric = main_metric(results["task"], next(iter(scores_of_systems(results).values())))
        scores = {"validation": _series(steps, f"eval_{metric}")}
        charts.append(line_chart(f"{metric} by step, on the validation rows", metric, scores, mark))
    return list(filter(None, charts))


def _series(steps: dict[int, dict[str, float]], key: str) -> list[tuple[int, float]]:
    """Return the steps at which a number was logged, with the number."""
    return [(step, values[key]) for step, values in steps.items() if key in values]


def _lengths(rows: list[Row], results: dict[str, Any]) -> dict[str, Any]:
    """Return histograms of the sources' lengths and of the tokens that were cut from them."""
    lengths = _column(rows, "source_tokens")
    cuts = list(filter(None, _column(rows, "cut_tokens")))
    charts = [histogram("Length of the sources, in tokens", "tokens", lengths)]
    if cuts:
        charts.append(histogram("Tokens cut from a source, for sources that were cut", "tokens", cuts))
    return {"charts": charts, "cut": results["cut_rows"], "rows": results["rows"]}


def _recipe_text(run: RunFolder, results: dict[str, Any]) -> str | None:
    return to_yaml(results["recipe"]) if "recipe" in results else _text_of(run.recipe)


def _text_of(file: Path) -> str | None:
    try:
        return read_bounded(file, MAX_BYTES) if file.is_file() else None
    except ValueError as error:
        raise DataError(f"{file}: not UTF-8 text ({error}). Copy it from the run again.") from error


def _hash(text: str) -> str:
    """Return the hash by which a Content-Security-Policy allows this inline style or script, and no other."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
