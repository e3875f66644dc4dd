"""report.html: a finished run in one file that asks nothing of any network, from what the run's folder holds."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from prompt_tuning.encoding.batching import common_prefix_length
from prompt_tuning.errors import DataError
from prompt_tuning.metrics.loading import TASK_METRICS, load_metrics, main_metric, score_example_row
from prompt_tuning.metrics.scores import MetricFunction, Scores
from prompt_tuning.metrics.significance import rows_scored_alone
from prompt_tuning.reports.charts import Chart, histogram, line_chart
from prompt_tuning.reports.summary import NAMES, answers_text, decoding_text, leakage_text, logged_steps, read_results
from prompt_tuning.support.files import atomic_write, read_json_lines
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.yaml_files import read_yaml, to_yaml

logger = logging.getLogger(__name__)

ROWS_SHOWN = 1000  # of the table; all are scored, counted and searched for gains and losses
CHARACTERS_SHOWN = 4000  # of a text
PREVIEW = 160
EXTREMES = 5
STEPS_SHOWN = 300


def write_report(folder: Path) -> Path:
    """Write report.html in the folder of a finished train, evaluate or ensemble, and of several tasks each one's too.

    Returns:
        Its path.

    Raises:
        DataError: the folder holds no finished run, or its predictions are gone.
    """
    results = read_results(folder)
    if "tasks" in results:
        for name in results["tasks"]:
            write_report(folder / name)
        facts = _of_tasks(results)
    else:
        facts = _of_run(folder, results)
    text = _report_template().render(
        name=folder.absolute().name,
        recipe=_recipe_text(folder, results),
        template=_text_of(folder / "template.yaml"),
        **_curves(folder, results),
        **facts,
    )
    with atomic_write(folder / "report.html") as file:
        file.write(text)
    return folder / "report.html"


@functools.cache
def _report_template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["hash"] = _hash
    return environment.get_template("report_template.html")


def _of_tasks(results: dict[str, Any]) -> dict[str, Any]:
    """What the report of several tasks says: the results of each, and what is true of all."""
    tasks = results["tasks"]
    return {
        "facts": {"Tasks": ", ".join(tasks)} | _facts(next(iter(tasks.values())) | results, of_tasks=True),
        "tables": {name: _table(of_task) for name, of_task in tasks.items()},
        "table": None,
    }


def _of_run(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What the report of one task's rows says."""
    rows = _read_rows(folder, results)
    recipe = RunFolder(folder).recipe
    settings = results.get("recipe") or (read_yaml(recipe, DataError) if recipe.is_file() else {})
    systems = {name: label for name, label in NAMES.items() if name in results}
    language = settings.get("lang") or settings.get("target_lang")
    metric = main_metric(results["task"], Scores.from_json(results[next(iter(systems))]))
    score = _score_of(metric, settings.get("metrics") or TASK_METRICS[results["task"]], language)
    exact = _add_scores(rows, systems, metric, score, results)
    compared = len(systems) == 2
    _add_previews(rows)
    shown = rows[:ROWS_SHOWN]
    by_gain = sorted(rows, key=lambda row: -row["gain"]) if compared else []
    return {
        "facts": _facts(results),
        "tables": {"Results": _table(results)},
        "table": {
            "systems": systems,
            "metric": metric,
            "mean": exact,
            "rows": shown,
            "total": len(rows),
            "file": f"predictions/{results['split']}.jsonl",
            "compared": compared,
            "gains": [row for row in by_gain[:EXTREMES] if row["gain"] > 0],
            "losses": [row for row in reversed(by_gain[-EXTREMES:]) if row["gain"] < 0],
            "better": sum(row["gain"] > 0 for row in by_gain),
            "worse": sum(row["gain"] < 0 for row in by_gain),
            "last_shown": shown[-1]["place"],
            "language": language.replace("_", "-") if language else None,
        },
        "lengths": _lengths(rows, results),
    }


def _read_rows(folder: Path, results: dict[str, Any]) -> list[dict[str, Any]]:
    file = folder / "predictions" / f"{results['split']}.jsonl"
    if not file.is_file():
        raise DataError(f"{file}: no such file; a report shows the predictions that train and evaluate write there")
    rows = read_json_lines(file)
    if len(rows) != results["rows"]:
        raise DataError(f"{file}: {len(rows)} rows, and results.json is of {results['rows']}; evaluate again")
    return rows


def _score_of(metric: str, names: Sequence[str], language: str | None) -> MetricFunction:
    """The one of the metrics that gives `metric`: it goes through the rows one by one, and the others need not."""
    loaded = [load_metrics([name], language=language) for name in names]
    return next(score for score in loaded if metric in score_example_row(score).values)


def _add_scores(
    rows: list[dict[str, Any]], systems: dict[str, str], metric: str, score: MetricFunction, results: dict[str, Any]
) -> bool:
    """Give each row its `scores`, `gain` and `place`; whether their mean is the metric of all rows.

    The gain is that of the second system over the first, which is the hard prompt; positive is better.
    """
    references = [row["references"] for row in rows]
    logger.info("scoring each row alone, for report.html")
    scores = {name: rows_scored_alone(score, metric, [row[name] for row in rows], references) for name in systems}
    for place, row in enumerate(rows):
        row["place"] = place
        row["scores"] = {name: float(of_rows[place]) for name, of_rows in scores.items()}
        first, *others = row["scores"].values()
        row["gain"] = (others[0] - first) * (-1 if metric == "ter" else 1) if others else 0.0
    # results.json has two decimals.
    return all(abs(of_rows.mean() - results[name][metric]) < 0.006 for name, of_rows in scores.items())


def _add_previews(rows: list[dict[str, Any]]) -> None:
    """Give each row `preview`, its source without the words that all open with, and no text too long to show."""
    sources = [row["source"] for row in rows]
    first, last = min(sources), max(sources)  # what these two open with, all do
    opening = first[: common_prefix_length(first, last)] if first != last else ""
    opening = opening[: max(opening.rfind(" "), opening.rfind("\n")) + 1]
    for row in rows:
        own = " ".join((row["source"][len(opening) :].strip() or row["source"]).split())
        if len(own) > PREVIEW:  # a question often stands at the end
            own = f"{own[: PREVIEW // 2].rstrip()} … {own[-PREVIEW // 2 :].lstrip()}"
        row["preview"] = f"… {own}" if opening else own
        row["whole"] = row["preview"] == row["source"]
        row["references"] = list(dict.fromkeys(map(_fitting, row["references"])))
        row |= {key: _fitting(text) for key, text in row.items() if isinstance(text, str)}


def _fitting(text: str) -> str:
    """A text, or its two ends with how much is left out between them."""
    if len(text) <= CHARACTERS_SHOWN:
        return text
    half = CHARACTERS_SHOWN // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters are left out here …]\n{text[-half:]}"


def _table(results: dict[str, Any]) -> dict[str, Any]:
    """The metrics of what answered the rows, and the difference where two did."""
    scored = {label: results[name] for name, label in NAMES.items() if name in results}
    scored |= {f"{each['folder']} alone": each for each in results.get("adapters", {}).values()}
    first = Scores.from_json(next(iter(scored.values())))
    lines = {metric: [f"{scores[metric]:.2f}" for scores in scored.values()] for metric in first.values}
    if len(scored) == 2:
        hard, tuned = scored.values()
        for metric, values in lines.items():
            values.append(f"{tuned[metric] - hard[metric]:+.2f}")
    return {
        "columns": [*scored, "change"] if len(scored) == 2 else [*scored],
        "lines": lines,
        "signatures": list(first.signatures.values()),
        "rows": results["rows"],
        "split": results["split"],
    }


def _facts(results: dict[str, Any], of_tasks: bool = False) -> dict[str, str]:
    """What was run, by name; what is not known is left out."""
    facts = {"Model": results["model"]}
    if not of_tasks:
        facts |= {"Task": results["task"].replace("_", " "), "Template": results["template"]}
        facts |= {"Rows": f"{results['rows']:,} of {results['split']}", "Decoding": decoding_text(results["decoding"])}
        if "answers" in results:
            facts["Answers"] = "; ".join(answers_text(results["answers"]))
        if leaks := results["leakage"].get(results["split"]):
            facts["Rows that also stand elsewhere"] = leakage_text(leaks)
    if "method" in results:
        facts["Method"] = results["method"].replace("_", " ")
    if "train_steps" in results:
        facts["Training"] = (
            (f"{results['train_rows']:,} rows, " if "train_rows" in results else "a stream, ")
            + f"{results['train_steps']:,} steps, {results['train_seconds']:.0f} s, "
            f"{results['trainable_parameters']:,} trained parameters"
        )
    if "trained_with" in results and not of_tasks:
        facts["Trained with"] = f"{', '.join(results['trained_with'])}; steps and seconds are those of all"
    if "best_checkpoint" in results:
        facts["Best checkpoint"] = results["best_checkpoint"]
    if "adapter" in results:
        facts["Adapter"] = results["adapter"]
    if "combine" in results:
        facts["Combined by"] = results["combine"]
    facts["Seed"] = str(results["seed"])
    return facts | {"Versions": ", ".join(f"{name} {number}" for name, number in results["versions"].items())}


def _curves(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Charts of the loss and of the main metric by step, and the numbers behind them."""
    text = _text_of(folder / "log_history.json") if "train_steps" in results else None
    together = "trained_with" in results
    if text is None:
        return {"trained": together, "elsewhere": together, "curves": [], "columns": [], "steps": [], "steps_of": 0}
    steps = logged_steps(json.loads(text))

    def series(key: str) -> list[tuple[int, float]]:
        return [(step, values[key]) for step, values in steps.items() if key in values]

    best = results.get("best_checkpoint")
    mark = (int(best.rpartition("-")[2]), "the best checkpoint") if best else None
    losses = {"training": series("loss"), "validation": series("eval_loss")}
    charts: list[Chart | None] = [line_chart("Loss by step", "loss", losses, mark)]
    if "tasks" not in results:
        scored = next(results[name] for name in NAMES if name in results)
        metric = main_metric(results["task"], Scores.from_json(scored))
        scores = {"validation": series(f"eval_{metric}")}
        charts.append(line_chart(f"{metric} by step, on the validation rows", metric, scores, mark))
    every = math.ceil(len(steps) / STEPS_SHOWN) if steps else 1
    shown = {
        step: values
        for number, (step, values) in enumerate(steps.items())
        if number % every == 0 or "eval_loss" in values
    }
    return {
        "trained": True,
        "elsewhere": False,
        "curves": [chart for chart in charts if chart],
        "columns": list(dict.fromkeys(key for values in steps.values() for key in values)),
        "steps": shown.items(),
        "steps_of": len(steps),
    }


def _lengths(rows: list[dict[str, Any]], results: dict[str, Any]) -> dict[str, Any]:
    """Histograms of the sources' lengths and of what was cut of them."""
    lengths = [row["source_tokens"] for row in rows]
    charts = [histogram("Length of the sources, in tokens", "tokens", lengths)]
    if cuts := [row["cut_tokens"] for row in rows if row["cut_tokens"]]:
        charts.append(histogram("Tokens cut of a source, where it was cut", "tokens", cuts))
    return {"charts": charts, "cut": results["cut_rows"], "rows": results["rows"]}


def _recipe_text(folder: Path, results: dict[str, Any]) -> str | None:
    if "recipe" in results:
        return to_yaml(results["recipe"])
    return _text_of(folder / "recipe.yaml")


def _text_of(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _hash(text: str) -> str:
    """What a Content-Security-Policy names an inline style or script by, so that no other one runs."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}"
