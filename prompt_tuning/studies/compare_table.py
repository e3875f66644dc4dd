"""Write a comparison as tables and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_tuning.reports.styles import MARKDOWN, Style
from prompt_tuning.studies.figures import write_png
from prompt_tuning.support.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison_text(compared: Mapping[str, Any], style: Style = MARKDOWN) -> str:
    """Return the tables: scores and costs, the learning rates that were tried, and both at equal time.

    Args:
        compared: what compare.json holds.
        style: how the text is written.
    """
    metric, parts = style.words(compared["metric"]), compared["parts"]
    seeds = ", ".join(map(str, compared["seeds"]))
    note = f"{counted(compared['rows'], 'row')}; seeds {seeds}; intervals and p: {style.words(compared['test'])}"
    blocks = [_scores(parts, metric, style), note, _costs(parts, style)]
    if any("tried" in part for part in parts.values()):
        blocks += [_rates(parts, metric, style), _rates_note(parts, compared["seeds"][0], style)]
    if "equal_time" in compared:
        equal = compared["equal_time"]["parts"]
        blocks += [
            f"The same for as many steps as fit in the time of {style.words(next(iter(parts)))}:",
            _scores(equal, metric, style),
        ]
        blocks.append(_costs(equal, style))
    return "\n\n".join(blocks)


def _scores(parts: Mapping[str, Any], metric: str, style: Style) -> str:
    first = next(iter(parts))
    head = ("recipe", metric, "95 % interval", "of each seed", f"against {style.words(first)}", "p", "in words")
    rows = []
    for name, part in parts.items():
        against = part.get("against_first")
        rows.append((
            style.words(name),
            f"{part['score']:.1f}",
            f"{part['low']:.1f} to {part['high']:.1f}",
            ", ".join(f"{score:.1f}" for score in part["of_seeds"]),
            f"{against['difference']:+.1f} ({against['low']:+.1f} to {against['high']:+.1f})" if against else "",
            f"{against['p']:.3f}" if against else "",
            style.words(against["in_words"]) if against else "",
        ))  # fmt: skip
    return style.table(head, rows)


def _costs(parts: Mapping[str, Any], style: Style) -> str:
    head = (
        "recipe", "trained parameters", "adapter, bytes", "steps", "s a step", "training, s", "added memory, MiB",
        "s per 100 predictions", "served by",
    )  # fmt: skip
    rows = []
    for name, part in parts.items():
        memory = part.get("added_memory_bytes")
        rows.append((
            style.words(name),
            f"{part['trainable_parameters']:,}",
            f"{part['adapter_bytes']:,}",
            f"{part['steps']:,}",
            f"{part['seconds_per_step']:.2f}" if "seconds_per_step" in part else "",
            f"{part['train_seconds']:.0f}",
            "" if memory is None else f"{memory / 2**20:,.0f}",
            f"{part['seconds_per_100_predictions']:.1f}",
            style.words(part["served_by"]),
        ))  # fmt: skip
    return style.table(head, rows)


def _rates(parts: Mapping[str, Any], metric: str, style: Style) -> str:
    rows = []
    for name, part in parts.items():
        scores = []
        for rate, score in part.get("tried", {}).items():
            scores.append(f"{rate}: {'diverged' if score is None else f'{score:.1f}'}")
        rows.append((style.words(name), str(part.get("learning_rate", "")), ", ".join(scores)))
    return style.table(("recipe", "learning rate", f"{metric} on the validation rows"), rows)


def _rates_note(parts: Mapping[str, Any], seed: int, style: Style) -> str:
    """Say how the learning rates were chosen, and where a better one may lie beyond them."""
    lines = [f"learning rates: the best on the validation rows with seed {seed}; only its runs read the test rows"]
    for name, part in parts.items():
        scores = {float(rate): score for rate, score in part.get("tried", {}).items()}
        chosen = part.get("learning_rate")
        equal = [rate for rate, score in scores.items() if score == scores[chosen]]
        if len(equal) > 1:
            rates = ", ".join(map(str, equal))
            lines.append(f"{style.words(name)}: {rates} have equal scores, and the first of them is taken")
        elif equal and chosen in (min(scores), max(scores)):
            end = "smallest" if chosen == min(scores) else "largest"
            lines.append(f"{style.words(name)}: the {end} rate won, so a better one may lie beyond it")
    return "; ".join(lines)


def draw(compared: Mapping[str, Any], figure: Figure, path: Path) -> None:
    """Draw the scores against the trained parameters."""
    axes = figure.subplots()
    num_drawn: Counter[int] = Counter()
    for name, part in compared["parts"].items():
        size = part["trainable_parameters"]
        # Recipes of one size are drawn side by side, so that no interval hides another.
        x = size * 1.2 ** num_drawn[size] if size else 4 * num_drawn[size]
        num_drawn[size] += 1
        error = [[part["score"] - part["low"]], [part["high"] - part["score"]]]
        axes.errorbar(x, part["score"], np.maximum(error, 0), fmt="o", capsize=4)
        axes.annotate(
            name, (x, part["score"]), xytext=(6, 5), textcoords="offset points", fontsize=8, parse_math=False
        )
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel(compared["metric"], parse_math=False)
    axes.margins(x=0.2, y=0.15)
    axes.set_xlim(left=-3)  # Recipes that train nothing are drawn at 0.
    axes.grid(alpha=0.3)
    write_png(figure, path)
