"""The HTML report of a finished run: one file that needs no network, made from the files of the run's folder."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from prompt_tuning.errors import DataError
from prompt_tuning.metrics.loading import OWN_METRICS, TASK_METRICS, load_metrics, main_metric, score_example_row
from prompt_tuning.metrics.scores import MetricFunction
from prompt_tuning.reports.advice import interval_text
from prompt_tuning.reports.charts import Chart, histogram, line_chart, reliability_chart
from prompt_tuning.reports.losses import losses_text
from prompt_tuning.reports.report_rows import (
    add_gains,
    add_scores,
    add_texts,
    compared_rows,
    has_scores,
    scores_are_means,
    shown_metrics,
)
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
    api_text,
    best_checkpoint_text,
    best_step,
    decoding_text,
    leakage_text,
    logged_steps,
    probabilities_text,
    scores_of_systems,
)
from prompt_tuning.support.files import write_text
from prompt_tuning.support.json_types import Place, check_value
from prompt_tuning.support.json_values import MAX_BYTES, read_bounded
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted
from prompt_tuning.support.yaml_files import to_yaml

STEPS_SHOWN = 2000  # in the table of numbers; curves have every logged point


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
    write_text(run.report, text)
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
        "reliability": None,
    }


def _run_content(run: RunFolder, results: dict[str, Any], *, trust_remote_code: bool) -> dict[str, Any]:
    """Return what the report of one task's rows shows."""
    rows = read_predictions(run, results)
    settings = _settings(run, results)
    language = settings.get("lang") or settings.get("target_lang")
    metric = main_metric(results["task"], next(iter(scores_of_systems(results).values())))
    if not has_scores(rows, metric):
        names = settings.get("metrics") or TASK_METRICS[results["task"]]
        score = _metric_function(metric, names, language, trust_remote_code=trust_remote_code)
        add_scores(rows, metric, score, results)
    add_gains(rows, metric, list(systems_in(results)))
    add_texts(rows)
    return {
        "facts": _task_facts(results) | _facts(results),
        "tables": {"Results": _table(results)},
        "table": {
            "metric": metric,
            "metrics": shown_metrics(rows, metric),
            "mean": scores_are_means(rows, metric, results),
            "file": f"{RunFolder.PREDICTIONS}/{run.predictions(results['split']).name}",
            "language": language.replace("_", "-") if language else None,
            **compared_rows(rows, systems_in(results)),
        },
        "lengths": _lengths(rows, results),
        "reliability": _reliability(results),
    }


def _settings(run: RunFolder, results: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe: of an evaluation in results.json, of a training in its file."""
    if "recipe" in results:
        check_value(results["recipe"], Settings, Place(str(run.results), "recipe"))
        return results["recipe"]
    return read_settings(run) if run.recipe.is_file() else {}


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
            compared = results.get("comparison", {}).get(metric)
            interval = f" {interval_text(compared)}" if compared else ""
            lines[metric].append(f"{numbers[1] - numbers[0]:+.2f}{interval}")
    return {
        "columns": [*columns, "change"] if len(columns) == 2 else [*columns],
        "lines": lines,
        "signatures": list(first.signatures.values()),
        "rows": results["rows"],
        "split": results["split"],
        "compared": "comparison" in results,
    }


def _task_facts(results: dict[str, Any]) -> dict[str, str]:
    """Return what is known of one task's evaluation."""
    facts = {
        "Task": results["task"].replace("_", " "),
        "Template": results["template"],
        "Rows": f"{results['rows']:,} of {results['split']}",
        "Decoding": decoding_text(results["decoding"]),
    }
    if "api" in results:
        facts["API"] = api_text(results["api"])
    if "answers" in results:
        facts["Answers"] = "; ".join(answers_text(results["answers"]))
    if "probabilities" in results:
        facts["Probabilities of choices"] = "; ".join(probabilities_text(results["probabilities"]))
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
    if "best_checkpoint" in results:
        facts["Checkpoint"] = best_checkpoint_text(results, "", [])
    for label, key in (("Adapter", "adapter"), ("Combined by", "combine")):
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
    best = best_step(results)
    mark = None if best is None else (best, "the best checkpoint")
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


def _lengths(rows: list[dict[str, Any]], results: dict[str, Any]) -> dict[str, Any]:
    """Return histograms of the sources' lengths and of the tokens that were cut from them."""
    lengths = [row["source_tokens"] for row in rows]
    cuts = [row["cut_tokens"] for row in rows if row["cut_tokens"]]
    charts = [histogram("Length of the sources, in tokens", "tokens", lengths)]
    if cuts:
        charts.append(histogram("Tokens cut from a source, for sources that were cut", "tokens", cuts))
    return {"charts": charts, "cut": results["cut_rows"], "rows": results["rows"]}


def _reliability(results: dict[str, Any]) -> Chart | None:
    """Return the reliability picture of the choices' probabilities, if there are any."""
    series = {}
    for name, scores in results.get("probabilities", {}).items():
        series[NAMES[name]] = list(map(itemgetter("confidence", "accuracy"), scores["bins"]))
    return reliability_chart(series) if series else None


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
