"""What a run's folder says, as text for a terminal. Imports no torch: `prompt-tuning show` answers at once."""

from __future__ import annotations

import json
import shlex
import textwrap
from pathlib import Path
from typing import Any

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import DataError
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.support.files import read_json
from prompt_tuning.support.tables import text_table

# The hard prompt comes first in tables, as what the others are compared with.
ROWS = [METHODS["none"], *METHODS.values()]
NAMES = {row.results_key: row.label for row in ROWS} | {"ensemble": "prompts together"}


def summarize(folder: Path, examples: int = 3) -> str:
    """The table of a run, some of its rows, evenly spaced, and what to type next.

    Raises:
        DataError: the folder holds no finished run.
    """
    results = read_results(folder)
    if "tasks" in results:
        return _summarize_tasks(folder, results["tasks"], examples)
    blocks = [_table(results), _facts(results), *_examples(folder, results, examples), _files(folder, folder)]
    return "\n\n".join(block for block in blocks if block)


def _summarize_tasks(folder: Path, tasks: dict[str, dict[str, Any]], examples: int) -> str:
    blocks = []
    for name, results in tasks.items():
        blocks += [f"== {name}", _table(results), _facts(results), *_examples(folder / name, results, examples)]
    return "\n\n".join([*blocks, _files(folder, folder / next(iter(tasks)))])


def read_results(folder: Path) -> dict[str, Any]:
    file = folder / "results.json"
    if not file.is_file():
        raise DataError(f"{folder}: no results.json there; expected the folder of a finished train or evaluate")
    return read_json(file)


def decoding_text(decoding: dict[str, Any]) -> str:
    """How predictions were made, of `decoding` in results.json."""
    if "choice_normalization" in decoding:
        by = decoding["choice_normalization"]
        return "the likeliest of each row's choices" + (f", normalised by {by}" if by != "none" else "")
    beams = decoding["num_beams"]
    more = "".join(
        f", {name} {value}" for name, value in decoding.items() if name not in ("num_beams", "max_new_tokens")
    )
    return f"{'greedy' if beams == 1 else f'{beams} beams'}, up to {decoding['max_new_tokens']} tokens{more}"


def answers_text(answers: dict[str, Any]) -> list[str]:
    """How often closed questions were answered alike, of `answers` in results.json, a line each."""
    counts = {"expected": answers["expected"]} | {NAMES[name]: each for name, each in answers["taken"].items()}
    lines = [
        f"{who}: {', '.join(f'{_one_line(text)} {count:,}' for text, count in each.items())}"
        for who, each in counts.items()
    ]
    always = Scores.from_json(answers["always"])
    scores = ", ".join(f"{metric} {value:.1f}" for metric, value in always.values.items())
    return [*lines, f"always {_one_line(answers['always']['answer'])}: {scores}"]


def leakage_text(leakage: dict[str, Any]) -> str:
    """Which of a split's rows stand elsewhere too, of its counts under `leakage` in results.json."""
    said = {
        "same_target": "with a training row's source and target",
        "other_target": "with a training row's source and another target",
        "near": "nearly like a training row",
        "demonstrated": "with a demonstration's source",
        "initial_text": "in the text that the prompt starts from",
    }
    found = [f"{leakage[name]} {what}" for name, what in said.items() if leakage[name]]
    text = ", ".join(found) or "none"
    if leakage["same_target"] is None:
        text += "; no training rows were read"
    if leakage["shared_passages"]:
        text += f"; {leakage['shared_passages']} about a training row's context"
    return text


def logged_steps(log_history: list[dict[str, float]]) -> dict[int, dict[str, float]]:
    """What Trainer logged, by step, without its timings."""
    left_out = ("epoch", "step", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    steps: dict[int, dict[str, float]] = {}
    for entry in log_history:
        if "train_runtime" not in entry:
            numbers = {key: value for key, value in entry.items() if key not in left_out}
            steps.setdefault(entry["step"], {}).update(numbers)
    return steps


def _table(results: dict[str, Any]) -> str:
    scored = {name: Scores.from_json(results[name]).values for name in NAMES if name in results}
    metrics = list(next(iter(scored.values())))
    rows = []
    for name, scores in scored.items():
        rows.append([NAMES[name], *(f"{scores[metric]:.1f}" for metric in metrics)])
    if len(scored) == 2:
        hard, tuned = scored.values()
        rows.append(["difference", *(f"{tuned[metric] - hard[metric]:+.1f}" for metric in metrics)])
    return text_table(["", *metrics], rows, align=["left", *["right"] * len(metrics)])


def _facts(results: dict[str, Any]) -> str:
    facts = [f"{results['rows']} rows of {results['split']}, template {results['template']}, model {results['model']}"]
    if "train_seconds" in results:
        facts.append(
            f"{results['trainable_parameters']:,} trained parameters, {results['train_steps']} steps in "
            f"{results['train_seconds']:.0f} s, evaluated in {results['evaluation_seconds']:.0f} s, "
            f"seed {results['seed']}"
        )
    if "answers" in results:
        facts += answers_text(results["answers"])
    if results["cut_rows"]:
        facts.append(f"{results['cut_rows']} of these rows were cut to fit max_source_tokens")
    return "\n".join(facts)


def _examples(folder: Path, results: dict[str, Any], count: int) -> list[str]:
    file = folder / "predictions" / f"{results['split']}.jsonl"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        wanted = {number * results["rows"] // count for number in range(count)}
        return [_example(json.loads(line)) for number, line in enumerate(lines) if number in wanted]


def _example(row: dict[str, Any]) -> str:
    source = textwrap.indent(textwrap.fill(" ".join(row["source"].split()), 110), "  | ")
    lines = [f"row {row['row']}", source, f"  expected            {' / '.join(dict.fromkeys(row['references']))}"]
    lines += [f"  {NAMES[name]:20}{_one_line(row[name])}" for name in NAMES if name in row]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return (text if len(text) <= 100 else f"{text[:96].rstrip()} ...") or "(nothing)"


def _files(folder: Path, adapter: Path) -> str:
    lines = [
        f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if path.name[0] != '.'))}"
    ]
    if (adapter / "adapter_config.json").is_file():
        command = f"prompt-tuning predict --adapter {shlex.quote(str(adapter))} --input rows.jsonl"
        lines.append(f"next: {command}    (- or nothing reads what you type)")
    return "\n".join(lines)
