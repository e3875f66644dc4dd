"""A run as HTML for the cell of a notebook: its scores, its best checkpoint and some of its rows."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from prompt_tuning.metrics.loading import main_metric
from prompt_tuning.reports.losses import losses_text
from prompt_tuning.reports.run_files import NAMES, read_log_history, read_predictions, read_results, systems_in
from prompt_tuning.reports.shown_rows import chosen_rows
from prompt_tuning.reports.summary import best_checkpoint_text, scores_of_systems, significance_text
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted, printable

CHARACTERS_SHOWN = 600
"""The most characters of a text of a row."""

# Notebooks typeset formulas in HTML, but not within <pre>. So every text of a row is within one.
CELL = """
<p><b>{{ name }}</b>{% if facts %}: {{ facts }}{% endif %}</p>
{% for part in parts %}
{% if part.task %}<p>{{ part.task }}</p>{% endif %}
<table>
<tr><th></th>{% for metric in part.metrics %}<th>{{ metric }}</th>{% endfor %}</tr>
{% for label, cells in part.scores.items() %}
<tr><th style="text-align: left">{{ label }}</th>
{% for cell in cells %}<td style="text-align: right">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% for fact in part.facts %}<p>{{ fact }}</p>
{% endfor %}
{% for row in part.rows %}
<table>
{% for label, text in row.items() %}
<tr><th style="text-align: left; vertical-align: top">{{ label }}</th>
<td style="text-align: left"><pre style="white-space: pre-wrap; margin: 0">{{ text }}</pre></td></tr>
{% endfor %}
</table>
{% endfor %}
{% endfor %}
"""


def run_html(folder: Path, examples: int = 3) -> str:
    """Return a run as HTML in which every text of others is escaped.

    Args:
        folder: the run's folder.
        examples: how many rows of each task are shown: one that is mended, one typical, one still wrong.

    Raises:
        DataError: the folder holds no finished run, or a file of it is damaged.
    """
    run = RunFolder(folder)
    results = read_results(folder)
    parts = []
    for name, task_results in results.get("tasks", {"": results}).items():
        parts.append(_part(run.task(name) if name else run, task_results, name, examples))
    return _template().render(name=printable(str(folder)), facts=_training(results), parts=parts)


@functools.cache
def _template() -> Template:
    environment = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    return environment.from_string(CELL.strip())


def _part(run: RunFolder, results: dict[str, Any], task: str, examples: int) -> dict[str, Any]:
    """Return what the cell shows of one task."""
    systems = scores_of_systems(results)
    metrics = list(next(iter(systems.values())).values)
    scores = {}
    for name, of_system in systems.items():
        scores[NAMES[name]] = [f"{of_system.values[metric]:.1f}" for metric in metrics]
    if len(systems) == 2:
        hard, tuned = (of_system.values for of_system in systems.values())
        scores["difference"] = [f"{tuned[metric] - hard[metric]:+.1f}" for metric in metrics]
    metric = main_metric(results["task"], next(iter(systems.values())))
    return {
        "task": printable(task),
        "metrics": metrics,
        "scores": scores,
        "facts": list(map(printable, _facts(run, results, metric))),
        "rows": _rows(run, results, metric, examples),
    }


def _facts(run: RunFolder, results: dict[str, Any], metric: str) -> list[str]:
    """Say whether the difference is significant, which checkpoint was saved, and what the rows lost."""
    facts = []
    compared = results.get("comparison", {}).get(metric)
    if compared:
        facts.append(f"difference in {metric}: {significance_text(metric, compared)}")
    if "train_steps" in results:
        log = read_log_history(run) if run.log_history.is_file() else []
        facts.append(best_checkpoint_text(results, metric, log))
    facts.append(f"{counted(results['rows'], 'row')} of {results['split']}, model {results['model']}")
    if results["cut_rows"]:
        facts.append(f"{results['cut_rows']} of these rows were cut to fit max_source_tokens")
    return facts + (losses_text(results) or [])


def _training(results: dict[str, Any]) -> str:
    if "train_seconds" not in results:
        return ""
    steps = counted(results["train_steps"], "step")
    parameters = results["trainable_parameters"]
    return f"{parameters:,} trained parameters, {steps} in {results['train_seconds']:.0f} s, seed {results['seed']}"


def _rows(run: RunFolder, results: dict[str, Any], metric: str, count: int) -> list[dict[str, str]]:
    """Return the texts of some rows by their labels; nothing if the predictions are gone."""
    if not run.predictions(results["split"]).is_file():
        return []
    rows = read_predictions(run, results)
    shown = []
    for place, reason in chosen_rows(rows, list(systems_in(results)), metric, count).items():
        row = rows[place]
        label = f"row {row['row']}" + (f", {reason}" if reason else "")
        texts = {label: row["source"], "expected": " / ".join(dict.fromkeys(row["references"]))}
        texts |= {name: row[system] for system, name in systems_in(row).items()}
        shown.append({name: _short(text) for name, text in texts.items()})
    return shown


def _short(text: str) -> str:
    """Return the end of a text that is too long, because the question is there, and signs for control characters."""
    text = printable(text.strip())
    return text if len(text) <= CHARACTERS_SHOWN else f"... {text[-CHARACTERS_SHOWN:]}"
