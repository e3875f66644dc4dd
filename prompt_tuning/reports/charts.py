"""Line charts and histograms as coordinates, for a template to draw in SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 14, 52
MOST_TICKS, MOST_BARS = 6, 20


@dataclass(frozen=True)
class Line:
    """A series; its points are in the chart's coordinates."""

    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """How many values lie from `first` to `last`, and where that is drawn."""

    first: int
    last: int
    count: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """What is drawn. Ticks are (place, text); `mark` is a (place, text) on the x axis, where there is one."""

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
    """Curves over steps; None if no series has a finite value.

    Args:
        series: (step, value) by name.
        mark: a step to mark, and its text.
    """
    series = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    steps, values = zip(*(point for points in series.values() for point in points), strict=True)
    across, up = _ticks(0, max(steps), whole=True), _ticks(min(values), max(values))
    told = "; ".join(
        f"{name} from {points[0][1]:.4g} at step {points[0][0]} to {points[-1][1]:.4g} at step {points[-1][0]}"
        for name, points in series.items()
    )
    marked = None
    if mark:
        told += f"; {mark[1]} is step {mark[0]}"
        marked = (_x(mark[0], across), mark[1])
    return Chart(
        title=title,
        description=f"{told}.",
        x_label="step",
        y_label=y_label,
        x_ticks=[(_x(tick, across), f"{tick:g}") for tick in across],
        y_ticks=[(_y(tick, up), f"{tick:g}") for tick in up],
        lines=[
            Line(name, [(_x(step, across), _y(value, up)) for step, value in points])
            for name, points in series.items()
        ],
        bars=[],
        mark=marked,
    )


def histogram(title: str, x_label: str, values: Sequence[int]) -> Chart:
    """How many rows have a value in each of at most MOST_BARS ranges of the same size."""
    low, high = min(values), max(values)
    step = math.ceil(_step(low, high + 1, MOST_BARS - 1))  # one range more where the first begins below the lowest
    counts = Counter(value // step for value in values)
    numbers = range(low // step, high // step + 1)
    edges = [number * step for number in (*numbers, numbers[-1] + 1)]
    up = _ticks(0, max(counts.values()), whole=True)
    bars = []
    for number in numbers:
        left, right = _x(number * step, edges), _x((number + 1) * step, edges)
        y, count = _y(counts[number], up), counts[number]
        height = round(HEIGHT - BOTTOM - y, 1)
        bars.append(
            Bar(number * step, (number + 1) * step - 1, count, left, y, max(round(right - left - 1, 1), 1), height)
        )
    every = math.ceil(len(edges) / MOST_TICKS)
    middle = sorted(values)[len(values) // 2]
    return Chart(
        title=title,
        description=f"{len(values)} rows, from {low} to {high} {x_label}, the median {middle}.",
        x_label=x_label,
        y_label="rows",
        x_ticks=[(_x(edge, edges), f"{edge}") for edge in edges[::every]],
        y_ticks=[(_y(tick, up), f"{tick:g}") for tick in up],
        lines=[],
        bars=bars,
    )


def _step(low: float, high: float, most: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that parts a range into at most so many."""
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    return next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= most * (1 + 1e-9))


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from not above low to not below high."""
    if high <= low:
        high = low + 1
    step = _step(low, high, MOST_TICKS - 1)
    step = max(step, 1) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    places = max(10, 2 - math.floor(math.log10(step)))
    return [round(number * step, places) for number in range(first, last + 1)]


def _x(value: float, ticks: Sequence[float]) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 1)


def _y(value: float, ticks: Sequence[float]) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 1)
