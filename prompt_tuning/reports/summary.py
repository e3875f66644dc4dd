"""The contents of a run's folder as text for a terminal.

This module does not import torch, so that `prompt-tuning show` answers at once.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_tuning.metrics.scores import Scores
from prompt_tuning.reports.losses import losses_text
from prompt_tuning.reports.run_files import NAMES, NOT_NUMBERS, read_predictions, read_results, systems_in
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.tables import text_table
from prompt_tuning.support.text import agreed, counted, one_line

LABEL_WIDTH = 20
LINE_WIDTH = 110
ANSWER_WIDTH = 100
NOT_SHOWN = ("epoch", "step", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", *NOT_NUMBERS)
LEAKAGE = {
    "same_target": "with a training row's source and target",
    "other_target": "with a training row's source and another target",
    "near": "nearly the same as a training row",
    "demonstrated": "with a demonstration's source",
    "initial_text": "in the text that the prompt starts from",
}


def summarize(folder: Path, examples: int = 3) -> str:
    """Return the table of a run, some of its rows, and the command to try next.

    Args:
        folder: the run's folder.
        examples: how many rows, evenly spaced.

    Raises:
        DataError: the folder holds no finished run.
    """
    run = RunFolder(folder)
    results = read_results(folder)
    if "tasks" not in results:
        return "\n\n".join([*_blocks(run, results, examples), _files(run, run)])
    blocks = []
    for name, task_results in results["tasks"].items():
        blocks += [f"== {one_line(name)}", *_blocks(run.task(name), task_results, examples)]
    first = run.task(next(iter(results["tasks"])))
    return "\n\n".join([*blocks, _files(run, first)])


def _blocks(run: RunFolder, results: dict[str, Any], examples: int) -> list[str]:
    return [_table(results), _facts(results), *_examples(run, results, examples)]


def scores_of_systems(results: Mapping[str, Any]) -> dict[str, Scores]:
    """Return the scores of the hard prompt, of what was trained and of an ensemble, by their keys in results.json."""
    scores = {}
    for name in systems_in(results):
        scores[name] = Scores.from_json(results[name])
    return scores


def decoding_text(decoding: dict[str, Any]) -> str:
    """Say how predictions were made.

    Args:
        decoding: `decoding` of results.json.
    """
    if "choice_normalization" in decoding:
        normalization = decoding["choice_normalization"]
        suffix = "" if normalization == "none" else f", normalised by {normalization}"
        return f"the most likely of the row's choices{suffix}"
    beams = decoding["num_beams"]
    parts = ["greedy" if beams == 1 else f"{beams} beams", f"up to {counted(decoding['max_new_tokens'], 'token')}"]
    for name, value in decoding.items():
        if name not in ("num_beams", "max_new_tokens"):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def answers_text(answers: dict[str, Any]) -> list[str]:
    """Return lines that count the answers of closed questions, and the scores of one constant answer.

    Args:
        answers: `answers` of results.json.
    """
    counts = {"expected": answers["expected"]}
    for name, taken in answers["taken"].items():
        counts[NAMES[name]] = taken
    lines = []
    for label, frequencies in counts.items():
        texts = [f"{_one_line(text)} {count:,}" for text, count in frequencies.items()]
        lines.append(f"{label}: {', '.join(texts)}")
    constant = answers["always"]
    scores = [f"{metric} {value:.1f}" for metric, value in Scores.from_json(constant).values.items()]
    return [*lines, f"always {_one_line(constant['answer'])}: {', '.join(scores)}"]


def leakage_text(leakage: dict[str, Any]) -> str:
    """Say how many rows of a split are also elsewhere.

    Args:
        leakage: the split's counts under `leakage` in results.json.
    """
    counts = []
    for name, place in LEAKAGE.items():
        if leakage[name]:
            counts.append(f"{leakage[name]} {place}")
    text = ", ".join(counts) or "none"
    if leakage["same_target"] is None:
        text += "; no training rows were read"
    if leakage["shared_passages"]:
        text += f"; {leakage['shared_passages']} about a training row's context"
    return text


def logged_steps(log_history: list[dict[str, float]]) -> dict[int, dict[str, float]]:
    """Return what Trainer logged, by step, without its timings.

    Args:
        log_history: `TrainerState.log_history`.
    """
    steps: dict[int, dict[str, float]] = {}
    for entry in log_history:
        numbers = {key: value for key, value in entry.items() if key not in NOT_SHOWN}
        if numbers and "train_runtime" not in entry:
            steps.setdefault(int(entry["step"]), {}).update(numbers)
    return steps


def _table(results: dict[str, Any]) -> str:
    systems = scores_of_systems(results)
    metrics = list(next(iter(systems.values())).values)
    rows = []
    for name, scores in systems.items():
        rows.append([NAMES[name], *map("{:.1f}".format, scores.values.values())])
    if len(systems) == 2:
        hard, tuned = systems.values()
        rows.append(["difference", *(f"{tuned.values[metric] - hard.values[metric]:+.1f}" for metric in metrics)])
    return text_table(["", *metrics], rows, align=["left", *["right"] * len(metrics)])


def _facts(results: dict[str, Any]) -> str:
    facts = [
        f"{counted(results['rows'], 'row')} of {results['split']}, template {one_line(results['template'])}, "
        f"model {one_line(results['model'])}"
    ]
    if "train_seconds" in results:
        facts.append(
            f"{results['trainable_parameters']:,} trained parameters, {counted(results['train_steps'], 'step')} in "
            f"{results['train_seconds']:.0f} s, evaluated in {results['evaluation_seconds']:.0f} s, "
            f"seed {results['seed']}"
        )
    if "answers" in results:
        facts += answers_text(results["answers"])
    size = results.get("splits", {}).get(results["split"], {})
    without_reference = size.get("rows_without_reference")
    if without_reference:
        facts.append(f"{without_reference} of these rows {agreed(without_reference, 'have')} no reference answer")
    if size.get("empty_rows"):
        left_out = counted(size["empty_rows"], "more row", "were left out")
        facts.append(f"{left_out}, as the template writes nothing for them")
    if results["cut_rows"]:
        facts.append(f"{results['cut_rows']} of these rows were cut to fit max_source_tokens")
    facts += losses_text(results) or []
    return "\n".join(facts)


def _examples(run: RunFolder, results: dict[str, Any], count: int) -> list[str]:
    """Return the text of `count` rows, evenly spaced; nothing if the predictions are gone."""
    if not run.predictions(results["split"]).is_file():
        return []
    rows = read_predictions(run, results)
    numbers = sorted({index * len(rows) // count for index in range(count)})
    return [_example(rows[number]) for number in numbers]


def _example(row: dict[str, Any]) -> str:
    source = textwrap.indent(textwrap.fill(" ".join(row["source"].split()), LINE_WIDTH), "  | ")
    references = " / ".join(dict.fromkeys(row["references"]))
    lines = [f"row {row['row']}", source, f"  {'expected':{LABEL_WIDTH}}{references}"]
    for name, label in systems_in(row).items():
        lines.append(f"  {label:{LABEL_WIDTH}}{_one_line(row[name])}")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    if len(text) > ANSWER_WIDTH:
        text = f"{text[: ANSWER_WIDTH - 4].rstrip()} ..."
    return text or "(nothing)"


def _files(run: RunFolder, adapter: RunFolder) -> str:
    """List the files of a run, and name the command that predicts with its adapter."""
    names = sorted(path.name for path in run.path.iterdir() if not path.name.startswith("."))
    lines = [f"written to {run.path}: {', '.join(names)}"]
    if adapter.adapter_config.is_file():
        command = f"prompt-tuning predict --adapter {shlex.quote(str(adapter.path))} --input rows.jsonl"
        lines.append(f"next: {command}    (without --input it reads what you type)")
    return "\n".join(lines)
