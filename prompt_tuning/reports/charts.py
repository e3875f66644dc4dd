"""Compute the coordinates of line charts and histograms. A template draws them as SVG."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prompt_tuning.support.text import counted

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 14, 52
MOST_TICKS, MOST_BARS = 6, 20


@dataclass(frozen=True)
class Line:
    """A series.

    Args:
        name: the label in the legend.
        points: (x, y) in the chart's coordinates.
        look: which style it has: 0, 1, or 2 for a line to compare with.
    """

    name: str
    points: list[tuple[float, float]]
    look: int = 0


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram.

    Args:
        first: the lowest value that the bar counts.
        last: the highest value that it counts.
        count: how many values it counts.
        x: left edge in the chart's coordinates.
        y: upper edge.
        width: in the chart's coordinates.
        height: in the chart's coordinates.
    """

    first: int
    last: int
    count: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """A chart to draw.

    Args:
        title: the caption.
        description: what the chart shows, in words.
        x_label: label of the x axis.
        y_label: label of the y axis.
        x_ticks: (x, text) in the chart's coordinates.
        y_ticks: (y, text) in the chart's coordinates.
        lines: the series of a line chart.
        bars: the bars of a histogram.
        mark: (x, text) of a vertical line.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    bars: list[Bar]
    mark: tuple[float, str] | None = None


def line_chart(
    title: str, y_label: str, series: dict[str, list[tuple[int, float]]], mark: tuple[int, str] | None = None
) -> Chart | None:
    """Return curves over steps; None if no series has a finite value.

    Args:
        title: the caption.
        y_label: label of the y axis.
        series: (step, value) by name.
        mark: a step to mark, and its text.
    """
    finite = {}
    for name, points in series.items():
        finite_points = [point for point in points if math.isfinite(point[1])]
        if finite_points:
            finite[name] = finite_points
    if not finite:
        return None
    steps, values = zip(*itertools.chain.from_iterable(finite.values()), strict=True)
    across = _ticks(0, max(steps), whole=True)
    up = _ticks(min(values), max(values))
    lines, descriptions = [], []
    for name, points in finite.items():
        scaled = [(_x(step, across), _y(value, up)) for step, value in points]
        lines.append(Line(name, scaled, look=int(name == "validation")))
        (first_step, first), (last_step, last) = points[0], points[-1]
        descriptions.append(f"{name} from {first:.4g} at step {first_step} to {last:.4g} at step {last_step}")
    if mark:
        descriptions.append(f"{mark[1]} is step {mark[0]}")
    return Chart(
        title=title,
        description=f"{'; '.join(descriptions)}.",
        x_label="step",
        y_label=y_label,
        x_ticks=_labels(across, across, _x),
        y_ticks=_labels(up, up, _y),
        lines=lines,
        bars=[],
        mark=(_x(mark[0], across), mark[1]) if mark else None,
    )


def reliability_chart(series: dict[str, list[tuple[float, float]]]) -> Chart:
    """Return a reliability picture: how often answers are right, by how sure the model is (Guo et al. 2017).

    Args:
        series: (confidence, accuracy) of each range of confidence, from 0 to 1, by the name of a system.
    """
    ticks = _ticks(0, 1)
    ends = [(_x(end, ticks), _y(end, ticks)) for end in (0, 1)]
    lines = [Line("as right as sure", ends, look=2)]
    descriptions = []
    for number, (name, points) in enumerate(series.items()):
        scaled = [(_x(sure, ticks), _y(right, ticks)) for sure, right in points]
        lines.append(Line(name, scaled, look=number % 2))
        parts = [f"{right:.2f} right at {sure:.2f}" for sure, right in points]
        descriptions.append(f"{name}: {', '.join(parts)}")
    return Chart(
        title="Reliability: how often answers are right, by their probability",
        description=f"{'; '.join(descriptions)}.",
        x_label="probability of the choice",
        y_label="share that is right",
        x_ticks=_labels(ticks, ticks, _x),
        y_ticks=_labels(ticks, ticks, _y),
        lines=lines,
        bars=[],
    )


def histogram(title: str, x_label: str, values: Sequence[int]) -> Chart:
    """Count the values in at most MOST_BARS ranges of the same size.

    Args:
        title: the caption.
        x_label: label of the x axis, and the unit of the values.
        values: at least one.
    """
    low, high = min(values), max(values)
    # The first range may begin below the lowest value, which takes one range more.
    step = math.ceil(_step(low, high + 1, MOST_BARS - 1))
    counts = Counter(value // step for value in values)
    numbers = range(low // step, high // step + 1)
    edges = range(numbers[0] * step, (numbers[-1] + 2) * step, step)
    up = _ticks(0, max(counts.values()), whole=True)
    bars = []
    for number in numbers:
        left, right = _x(number * step, edges), _x((number + 1) * step, edges)
        y, count = _y(counts[number], up), counts[number]
        height = round(HEIGHT - BOTTOM - y, 1)
        bars.append(
            Bar(number * step, (number + 1) * step - 1, count, left, y, max(round(right - left - 1, 1), 1), height)
        )
    stride = math.ceil(len(edges) / MOST_TICKS)
    middle = sorted(values)[len(values) // 2]
    return Chart(
        title=title,
        description=f"{counted(len(values), 'row')}, from {low} to {high} {x_label}, the median {middle}.",
        x_label=x_label,
        y_label="rows",
        x_ticks=_labels(edges[::stride], edges, _x),
        y_ticks=_labels(up, up, _y),
        lines=[],
        bars=bars,
    )


def _step(low: float, high: float, most: int) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that divides a range into at most `most` parts."""
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5):
        if (high - low) / (size * factor) <= most * (1 + 1e-9):
            return size * factor
    return size * 10


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return round numbers from at most `low` to at least `high`."""
    if high <= low:
        high = low + 1
    step = _step(low, high, MOST_TICKS - 1)
    step = max(step, 1) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    places = max(10, 2 - math.floor(math.log10(step)))
    return [round(number * step, places) for number in range(first, last + 1)]


def _labels(
    values: Sequence[float], axis: Sequence[float], place: Callable[[float, Sequence[float]], float]
) -> list[tuple[float, str]]:
    """Return the places of values on an axis, with their texts."""
    return [(place(value, axis), f"{value:.10g}") for value in values]


def _x(value: float, ticks: Sequence[float]) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 1)


def _y(value: float, ticks: Sequence[float]) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 1)
