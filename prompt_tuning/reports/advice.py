"""Say what to try next if a training gained little, from what was measured in that run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.metrics.loading import direction
from prompt_tuning.support.text import counted

SMALL_GAIN = 2.0  # points
FEW_TRAINING_ROWS = 100
SAME_LOSS = 0.02  # A loss that changes by a smaller share has not moved.
MANY = 0.1  # share of the rows
SIGNIFICANT = 0.05  # A difference with a larger p is not significant.

Points = list[tuple[int, float]]


def is_significant(compared: Mapping[str, float]) -> bool:
    """Return whether the 95 % interval of a difference leaves out 0, and p is small if there is one."""
    return not compared["low"] <= 0 <= compared["high"] and compared.get("p", 0) <= SIGNIFICANT


def difference_text(compared: Mapping[str, float] | None) -> str:
    """Return a difference with its 95 % interval, and say if it is not significant; nothing without a comparison."""
    return f"{compared['difference']:+.1f} {interval_text(compared)}" if compared else ""


def interval_text(compared: Mapping[str, float]) -> str:
    """Return the 95 % interval of a difference, and say if it is not significant."""
    text = f"({compared['low']:+.1f} to {compared['high']:+.1f})"
    return text if is_significant(compared) else f"{text}, not significant"


def is_small(metric: str, compared: Mapping[str, float]) -> bool:
    """Return whether the gain by a metric is not significant, or under SMALL_GAIN points."""
    return direction(metric) * compared["difference"] < SMALL_GAIN or not is_significant(compared)


def advice(results: Mapping[str, Any], metric: str, settings: Mapping[str, Any], log: Sequence[Any]) -> list[str]:
    """Return what may help, each with the figure that speaks for it, the strongest first.

    Args:
        results: results.json of a training.
        metric: the main metric.
        settings: recipe.yaml.
        log: log_history.json.
    """
    compared = results["comparison"][metric]
    # Rows that are learned by heart do not need more steps.
    tips = _of_validation_loss(_points(log, "eval_loss"))
    tips = tips or _of_training_loss(_points(log, "loss"), results, settings)
    tips += _of_rows(results)
    half = (compared["high"] - compared["low"]) / 2
    if not is_significant(compared):
        tips.append(
            f"rows to evaluate: {counted(results['rows'], 'row')} show no difference of less than about {half:.1f} "
            f"points. Evaluate on more rows, or train with other seeds: `prompt-tuning compare`."
        )
    tips.append("template: `prompt-tuning rank` finds the best template of this model without training.")
    return tips


def _points(log: Sequence[Any], key: str) -> Points:
    return [(entry["step"], entry[key]) for entry in log if key in entry and entry[key] == entry[key]]


def _of_training_loss(losses: Points, results: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Read the learning rate and the budget from the curve."""
    if len(losses) < 2:
        return []
    rate = settings.get("learning_rate")
    at_rate = f"learning_rate {rate:g}" if isinstance(rate, int | float) else "learning_rate"
    half, middle = losses[len(losses) // 2]
    (_, first), (_, last) = losses[0], losses[-1]
    if last > first * (1 + SAME_LOSS):
        return [f"rate: the training loss rose from {first:.3g} to {last:.3g}. Lower {at_rate}, to a third."]
    if last > first * (1 - SAME_LOSS):
        return [f"rate: the training loss stayed at {last:.3g}. Raise {at_rate}, to three times as much."]
    if len(losses) >= 3 and last < middle * (1 - SAME_LOSS):
        fall = f"from {middle:.3g} at step {half} to {last:.3g}"
        steps = counted(results.get("train_steps", 0), "step")
        return [f"budget: the training loss still fell, {fall}. Train for more than {steps}."]
    return []


def _of_validation_loss(losses: Points) -> list[str]:
    """Say if the rows are learned by heart."""
    if len(losses) < 2:
        return []
    best_step, best = min(losses, key=lambda point: point[1])
    last_step, last = losses[-1]
    if last <= best * (1 + SAME_LOSS):
        return []
    rise = f"from {best:.3g} at step {best_step} to {last:.3g} at step {last_step}"
    return [f"rows: the validation loss rose {rise}, so rows are learned by heart. Add rows, or take fewer steps."]


def _of_rows(results: Mapping[str, Any]) -> list[str]:
    """Count the rows, and what they lost."""
    tips = []
    train_rows = results.get("train_rows")
    if train_rows is not None and train_rows < FEW_TRAINING_ROWS:
        tips.append(f"rows: {counted(train_rows, 'training row')}. More of them are the surest gain.")
    if results["cut_rows"] > MANY * results["rows"]:
        cut = f"{results['cut_rows']} of {counted(results['rows'], 'row')}"
        tips.append(f"max_source_tokens: {cut} were cut to fit it. Raise it.")
    for counts in results.get("prediction_counts", {}).values():
        if counts.get("at_limit", 0) > MANY * results["rows"]:
            tips.append(
                f"template: {counts['at_limit']} of {counted(results['rows'], 'prediction')} ended only at the limit "
                "of new tokens. Give the template a `stop` text, or raise generation_max_length."
            )
            break
    return tips
