"""The contents of a run's folder as text for a terminal.

This module does not import torch, so that `prompt-tuning show` answers at once.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_tuning.metrics.loading import LOWER_IS_BETTER, direction, main_metric
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.reports.advice import advice, is_significant, is_small
from prompt_tuning.reports.losses import losses_text
from prompt_tuning.reports.run_files import (
    NAMES,
    NOT_NUMBERS,
    read_log_history,
    read_predictions,
    read_results,
    read_settings,
    systems_in,
)
from prompt_tuning.reports.shown_rows import counts_text, row_texts, shortened_line
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.tables import prose_width, text_table
from prompt_tuning.support.text import agreed, counted, one_line

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
    metric = main_metric(results["task"], next(iter(scores_of_systems(results).values())))
    blocks = [_table(results), *_conclusions(run, results, metric), _facts(results)]
    if not run.predictions(results["split"]).is_file():
        return blocks
    rows = read_predictions(run, results)
    systems = list(systems_in(results))
    counts = counts_text(rows, systems, metric)
    return [*blocks, *filter(None, [counts]), *row_texts(rows, systems, metric, examples)]


def _conclusions(run: RunFolder, results: dict[str, Any], metric: str) -> list[str]:
    """Say whether the difference is significant, why this checkpoint was saved, and what to try after a small gain."""
    log = read_log_history(run) if run.log_history.is_file() else []
    lines = []
    compared = results.get("comparison", {}).get(metric)
    if compared:
        lines.append(f"difference in {metric}: {significance_text(metric, compared)}")
    if "train_steps" in results:
        lines.append(best_checkpoint_text(results, metric, log))
    blocks = ["\n".join(map(_filled, lines))] if lines else []
    if compared and "method" in results and is_small(metric, compared):
        settings = read_settings(run) if run.recipe.is_file() else {}
        tips = ["the gain is small; what this run shows, and what to try:"]
        for tip in advice(results, metric, settings, log):
            tips.append(_filled(f"- {tip}", "  "))
        blocks.append("\n".join(tips))
    return blocks


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, prose_width(), subsequent_indent=indent, break_long_words=False)


def significance_text(metric: str, compared: Mapping[str, float]) -> str:
    """Say in words what the 95 % interval of a difference shows.

    Args:
        metric: the metric.
        compared: its entry of `comparison` in results.json.
    """
    interval = f"95 % interval {compared['low']:+.1f} to {compared['high']:+.1f} by draws of rows, one seed"
    if not is_significant(compared):
        return f"not significant ({interval})"
    is_better = direction(metric) * compared["difference"] > 0
    return f"significantly {'better' if is_better else 'worse'} ({interval})"


def best_step(results: Mapping[str, Any]) -> int | None:
    """Return the step of the best checkpoint, which was saved, or None if the last step was."""
    best = results.get("best_checkpoint")
    return int(best.rpartition("-")[2]) if best else None


def best_checkpoint_text(results: Mapping[str, Any], metric: str, log: list[dict[str, Any]]) -> str:
    """Say which checkpoint was saved and why.

    Args:
        results: results.json of a training.
        metric: the main metric.
        log: log_history.json.
    """
    last = results["train_steps"]
    best = best_step(results)
    if best is None:
        text = f"saved: the last step, {last}"
        scores = _scores_by_step(log, metric)
        highest = max(scores, key=scores.__getitem__, default=last)
        if scores and scores[highest] > scores[max(scores)] and metric not in LOWER_IS_BETTER:
            text += f"; validation {metric} was best at step {highest}, {scores[highest]:.4g}. "
            text += "load_best_model_at_end: true would save that one"
        return text
    text = f"saved: step {best} of {last}"
    for name, value in results.get("best_metric", {}).items():
        text += f", which has the best validation {name}, {value:.4g}"
        scores = _scores_by_step(log, name)
        if scores and max(scores) != best:
            text += f"; step {max(scores)}, the last, has {scores[max(scores)]:.4g}"
    return text


def _scores_by_step(log: list[dict[str, Any]], metric: str) -> dict[int, float]:
    scores = {}
    for entry in log:
        if f"eval_{metric}" in entry:
            scores[entry["step"]] = entry[f"eval_{metric}"]
    return scores


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
        if "choices" in decoding:
            method = one_line(decoding["choices"])
            return f"one of the row's choices, {method}{suffix if method == 'by likelihood' else ''}"
        return f"the most likely of the row's choices{suffix}"
    beams = decoding["num_beams"]
    parts = ["greedy" if beams == 1 else f"{beams} beams", f"up to {counted(decoding['max_new_tokens'], 'token')}"]
    for name, value in decoding.items():
        if name not in ("num_beams", "max_new_tokens"):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def api_text(api: Mapping[str, Any]) -> str:
    """Say what was asked of an API, what all answers cost, and what of it this command paid.

    Args:
        api: `api` of results.json.
    """
    text = (
        f"{counted(api['requests'], 'request')} to {one_line(api['base_url'])}, {api['from_cache']} from the cache, "
    )
    text += f"{api['input_tokens']:,} tokens in, {api['output_tokens']:,} out"
    if "cost" in api:
        text += f", cost {api['cost']:.4f}, paid now {api['paid']:.4f}"
    if "without_usage" in api:
        text += f"; the server did not count the tokens of {api['without_usage']}"
    return text


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
        texts = [f"{shortened_line(text)} {count:,}" for text, count in frequencies.items()]
        lines.append(f"{label}: {', '.join(texts)}")
    constant = answers["always"]
    scores = [f"{metric} {value:.1f}" for metric, value in Scores.from_json(constant).values.items()]
    return [*lines, f"always {shortened_line(constant['answer'])}: {', '.join(scores)}"]


def probabilities_text(probabilities: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each system with the scores of the probabilities that it gives choices.

    Args:
        probabilities: of results.json.
    """
    lines = []
    for name, scores in probabilities.items():
        parts = [f"accuracy {scores['accuracy']:.1f}"]
        if "macro_f1" in scores:
            parts.append(f"macro F1 {scores['macro_f1']:.1f}")
        if "auc" in scores:
            parts.append(f"AUC {scores['auc']:.3f}")
        parts += [f"Brier {scores['brier']:.3f}", f"calibration error {scores['ece']:.3f}"]
        lines.append(f"{NAMES[name]}: {', '.join(parts)}")
    return lines


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
    compared = results.get("comparison")
    if compared:
        intervals = []
        for metric in metrics:
            ends = compared.get(metric)
            intervals.append(f"{ends['low']:+.1f} to {ends['high']:+.1f}" if ends else "")
        rows.append(["95 % interval", *intervals])
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
    if "api" in results:
        facts.append(api_text(results["api"]))
    if "answers" in results:
        facts += answers_text(results["answers"])
    facts += probabilities_text(results.get("probabilities", {}))
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
    return "\n".join(map(_filled, facts))


def _files(run: RunFolder, adapter: RunFolder) -> str:
    """List the files of a run, and name the command that predicts with its adapter."""
    names = sorted(path.name for path in run.path.iterdir() if not path.name.startswith("."))
    lines = [f"written to {run.path}: {', '.join(names)}"]
    if adapter.adapter_config.is_file():
        command = f"prompt-tuning predict --adapter {shlex.quote(str(adapter.path))} --input rows.jsonl"
        lines.append(f"next: {command}    (without --input it reads what you type)")
    return "\n".join(lines)
