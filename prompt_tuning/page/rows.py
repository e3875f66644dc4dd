"""The evaluated rows of a run, the worst first, and the boxes in which a user writes a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.loading import load_splits, split_origin
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import DataError
from prompt_tuning.metrics.loading import (
    OWN_METRICS,
    TASK_METRICS,
    direction,
    load_metrics,
    main_metric,
    score_example_row,
)
from prompt_tuning.metrics.scores import MetricFunction
from prompt_tuning.reports.run_files import read_predictions, read_results, read_settings, systems_in
from prompt_tuning.support.json_values import parse_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted

PREVIEW = 90  # characters
TRANSLATION = "translation"


@dataclass(frozen=True)
class RowScore:
    """The main metric of a run's task, for one row.

    Args:
        metric: its name.
        score: computes it, of `load_metrics`.
    """

    metric: str
    score: MetricFunction

    def __call__(self, text: str, references: Sequence[str]) -> float:
        """Return the metric of one text with its references."""
        return float(self.score([text], [[*references]])[self.metric])


@dataclass(frozen=True)
class EvaluatedRow:
    """A row that the run has predicted.

    Args:
        values: the row's columns.
        references: the texts that count as right.
        source: the text that the model read in the run.
        prediction: what the trained model wrote in the run.
        score: the main metric of this prediction; None if the row has no reference, or the metric is not known.
    """

    values: dict[str, Any]
    references: tuple[str, ...]
    source: str
    prediction: str
    score: float | None


def row_score(folder: RunFolder) -> RowScore | None:
    """Return the metric of a run's task; None if the run has no results, or only metrics of others."""
    if not folder.results.is_file():
        return None
    results = read_results(folder.path)
    settings = read_settings(folder)
    named = settings.get("metrics") or TASK_METRICS[results["task"]]
    names = [name for name in named if name in OWN_METRICS]
    if not names:
        return None
    score = load_metrics(names, language=settings.get("lang") or settings.get("target_lang"))
    return RowScore(main_metric(results["task"], score_example_row(score)), score)


def evaluated_rows(folder: RunFolder, data: DataArguments, score: RowScore | None) -> list[EvaluatedRow]:
    """Return the rows of the split that the run evaluated, the worst first.

    Args:
        folder: the run, with its predictions.
        data: names the files of the rows, as the run's recipe does.
        score: the metric that decides which row is worse; without it the rows keep their order.

    Raises:
        DataError: the run has no predictions, its rows are gone, or they are others than it has predicted.
    """
    results = read_results(folder.path)
    predictions = read_predictions(folder, results)
    split = results["split"]
    rows = load_splits(data, (split,)).get(split)
    origin = split_origin(data, split)
    if rows is None:
        raise DataError(f"{folder.path}: its recipe names no {split} rows. Set {split}_file in {folder.recipe}.")
    system = [*systems_in(results)][-1]
    evaluated = []
    for line in predictions:
        if line["row"] >= len(rows):
            raise DataError(f"{origin}: {counted(len(rows), 'row')}, fewer than the run predicted. Evaluate again.")
        references = tuple(line["references"])
        number = score(line[system], references) if score and references else None
        evaluated.append(EvaluatedRow(rows[line["row"]], references, line["source"], line[system], number))
    sign = direction(score.metric) if score else 1
    return sorted(evaluated, key=lambda row: sign * (row.score if row.score is not None else float("inf")))


@dataclass(frozen=True)
class Box:
    """A field of the page for one value of a row.

    Args:
        label: what the user reads above it.
        column: the column of the row.
        is_text: the column holds text. Other values are written as JSON.
        language: the code of the language that a translation is read in; None for other columns.
    """

    label: str
    column: str
    is_text: bool = True
    language: str | None = None

    def shown(self, row: Mapping[str, Any]) -> str:
        """Return the text of the box for a row; empty if the row lacks the column."""
        value = row.get(self.column, "")
        if self.language and isinstance(value, Mapping):
            value = value.get(self.language, "")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

    def value(self, text: str) -> Any:
        """Return the column's value of a text that a user wrote.

        Raises:
            DataError: the column does not hold text, and the user's text is not JSON.
        """
        if self.language:
            return {self.language: text}
        if self.is_text:
            return text
        try:
            return parse_json(text)
        except ValueError:
            message = f'{self.label}: not JSON. Write the value as the data has it, such as ["a", "b"].'
            raise DataError(message) from None


def boxes_of(encoder: Encoder, rows: Sequence[EvaluatedRow]) -> list[Box]:
    """Return a box for each column that the source of a row reads, in the order of the data.

    Args:
        encoder: has the template and the languages.
        rows: rows of the run, which show the order and the kinds of values; none if they are not known.
    """
    values = rows[0].values if rows else {}
    needed = encoder.template.source_columns
    names = [name for name in values if name in needed] + sorted(needed - values.keys())
    language = (encoder.languages or {}).get("source_lang")
    boxes = []
    for name in names:
        if name == TRANSLATION and language:
            boxes.append(Box(language, name, language=language))
        else:
            boxes.append(Box(name, name, isinstance(values.get(name, ""), str)))
    return boxes


def row_of_boxes(boxes: Iterable[Box], texts: Iterable[str], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the texts of the boxes.

    Args:
        boxes: the boxes.
        texts: what they hold.
        row: the row that was clicked, which keeps the columns and the value of every box that is unchanged.
    """
    values = dict(row)
    for box, text in zip(boxes, texts, strict=True):
        if box.column not in row or box.shown(row) != text:
            values[box.column] = box.value(text)
    return values


def row_labels(rows: Sequence[EvaluatedRow], boxes: Sequence[Box], score: RowScore | None) -> list[str]:
    """Return one line for each row: its score, the box that tells rows apart in the fewest words, and the answer."""
    if not rows or not boxes:
        return []

    def length(box: Box) -> int:
        return sum(len(box.shown(row.values)) for row in rows)

    shortest = min(boxes, key=length)
    labels = []
    for row in rows:
        number = f"{score.metric} {row.score:.0f} · " if score and row.score is not None else ""
        labels.append(f"{number}{_short(shortest.shown(row.values))} → {_short(row.prediction) or '(nothing)'}")
    return labels


def _short(text: str) -> str:
    """Return the first words of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= PREVIEW else f"{line[:PREVIEW].rstrip()} …"
