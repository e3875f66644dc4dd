"""Write what a run found out: results.json, predictions, the template, the card and the report."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from prompt_tuning.encoding.batching import source_length
from prompt_tuning.metrics.probabilities import probability_scores
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.reports.facts import machine_facts, origin_facts
from prompt_tuning.reports.html import write_report
from prompt_tuning.reports.model_card import write_card
from prompt_tuning.runs.fingerprints import input_fingerprints
from prompt_tuning.runs.prepare import Prepared
from prompt_tuning.runs.row_scores import RowScores, compare_systems, right_row, score_rows
from prompt_tuning.support.files import write_json, write_json_lines, write_text
from prompt_tuning.support.run_folder import RunFolder

logger = logging.getLogger(__name__)


ROW_COUNTS = ("dropped_rows", "dropped_targets", "cut_answers", "unreachable_targets", "long_references")
"""The counts of a split's report that results.json has under `splits`."""


def describe(prepared: Prepared, split: str) -> dict[str, Any]:
    """Return the facts that every results.json starts with."""
    recipe, report = prepared.recipe, prepared.reports[split]
    sizes = {}
    for name, of_split in prepared.reports.items():
        sizes[name] = {"rows": of_split.rows, "cut_rows": of_split.cut_rows, "longest": of_split.longest}
        counts = asdict(of_split)
        for count in ROW_COUNTS:
            if count in counts:  # A stream has no references.
                sizes[name][count] = counts[count]
        for count in ("empty_rows", "rows_without_reference", "untrained_rows", "untrained_tokens"):
            if counts.get(count):
                sizes[name][count] = counts[count]
    if prepared.encoder.closed:
        decoding: dict[str, Any] = {"choice_normalization": recipe.prompt.choice_normalization}
    else:
        decoding = recipe.decoding
    return {
        "task": recipe.data.task,
        "split": split,
        "rows": report.rows,
        "cut_rows": report.cut_rows,
        "splits": sizes,
        "seed": recipe.training.seed,
        "model": recipe.model.model_name_or_path,
        "template": recipe.prompt.template,
        "decoding": decoding,
        "leakage": prepared.leakage,
        "inputs": input_fingerprints(prepared),
        "example": _example(prepared, split, 0),
        **origin_facts(str(recipe.model.model_name_or_path), recipe.data.dataset_name, prepared.rows[split]),
        **machine_facts(recipe.training),
    }


def _example(prepared: Prepared, split: str, place: int) -> dict[str, Any]:
    """Return the columns of a row that the template reads, for the model card."""
    row = prepared.rows[split][prepared.encoded[split][place]["row"]]
    example = {column: row[column] for column in sorted(prepared.template.source_columns) if column in row}
    # A parquet file may hold dates, which JSON cannot.
    return json.loads(json.dumps(example, default=str))


def scores_of(predictions: list[str], prepared: Prepared, split: str) -> Scores:
    """Score the predictions of all rows of a split by the recipe's metrics, rounded as results.json has them."""
    scores = prepared.score(predictions, list(prepared.encoded[split]["references"]))
    return Scores.from_json(scores).rounded()


def answer_counts(prepared: Prepared, split: str, predictions: dict[str, list[str]]) -> dict[str, Any]:
    """Count how often every choice of closed questions was expected and predicted.

    A model that gives one answer to every question scores what `always` does, the most frequent answer.

    Returns:
        `answers` for results.json; nothing if the rows do not all have the same choices, or no references.
    """
    rows = prepared.encoded[split]
    choices = rows["choices"]
    if any(of_row != choices[0] for of_row in choices):
        return {}
    expected = Counter(references[0] for references in rows["references"] if references)
    if not expected:
        return {}
    most_frequent = expected.most_common(1)[0][0]
    scores = scores_of([most_frequent] * len(rows), prepared, split)
    return {
        "answers": {
            "expected": dict(expected.most_common()),
            "always": {"answer": most_frequent} | scores.to_json(),
            "taken": {name: dict(Counter(texts).most_common()) for name, texts in predictions.items()},
        }
    }


def choice_facts(rows: Dataset, probabilities: list[list[float]]) -> dict[str, Any]:
    """Return the scores of the choices' probabilities for results.json, rounded.

    Args:
        rows: encoded rows of closed questions.
        probabilities: of the choices of each row.
    """
    choices = rows["choices"]
    same = all(of_row == choices[0] for of_row in choices)
    scores = probability_scores(probabilities, rows["target_choice"], choices[0] if same else None)
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in scores.items()}


def write_run(
    folder: Path, results: dict[str, Any], prepared: Prepared, split: str, predictions: dict[str, list[str]]
) -> dict[str, Any]:
    """Write predictions/<split>.jsonl, template.yaml and, last of all, results.json; only the main process writes.

    Args:
        folder: the run's folder.
        results: what results.json holds, except what the scores of each row add.
        prepared: the recipe with its rows.
        split: the evaluated split.
        predictions: the texts of all rows, by the name of the model that wrote them.

    Returns:
        What results.json holds.
    """
    if not PartialState().is_main_process:
        return results
    run = RunFolder(folder)
    scored = score_rows(predictions, prepared, split)
    comparison = compare_systems(results, scored, predictions, prepared)
    if comparison:
        results = results | {"comparison": comparison}
    place = right_row(results, scored)
    if place is not None:
        number = prepared.encoded[split][place]["row"]
        results = results | {"example": _example(prepared, split, place), "example_row": number}
    write_json_lines(run.predictions(split), _prediction_rows(prepared, split, predictions, scored))
    write_text(run.template, prepared.template.to_yaml())
    write_json(run.results, results)
    return results


def _prediction_rows(
    prepared: Prepared, split: str, predictions: dict[str, list[str]], scored: RowScores
) -> Iterator[dict[str, Any]]:
    columns = ["row", "source", "references", "cut_tokens", "input_ids", "labels"]
    data = prepared.rows[split].select_columns(_read_columns(prepared, split))
    for number, row in enumerate(prepared.encoded[split].select_columns(columns)):
        # A causal row holds source and target, an encoder-decoder's only the source.
        is_encoder_decoder = prepared.config.is_encoder_decoder
        written = {
            "row": row["row"],
            "columns": _column_texts(data[row["row"]], prepared.recipe.data.source_lang),
            "source": row["source"],
            "references": row["references"],
            "source_tokens": len(row["input_ids"]) if is_encoder_decoder else source_length(row["labels"]),
            "cut_tokens": row["cut_tokens"],
        }
        for name, texts in predictions.items():
            written[name] = texts[number]
        if scored:
            written["scores"] = {name: rows[number] for name, rows in scored.items()}
        yield written


def _read_columns(prepared: Prepared, split: str) -> list[str]:
    return sorted(prepared.template.source_columns & set(prepared.rows[split].column_names))


def _column_texts(row: dict[str, Any], source_lang: str | None) -> dict[str, str]:
    """Return the columns of a row as texts for reports; of a translation only the text to translate."""
    texts = {}
    for name, value in row.items():
        if isinstance(value, dict) and source_lang in value:
            name, value = str(source_lang), value[source_lang]
        if value is not None:
            texts[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return texts


def write_pages(folder: Path, *names: str, trust_remote_code: bool = False) -> None:
    """Write the pages of a finished run; only the main process writes.

    Everything else is on disk by now, so that an error here is a warning and does not fail the run. Name the report
    last: it may score rows for minutes.

    Args:
        folder: the run's folder.
        names: "card" for README.md, "report" for report.html.
        trust_remote_code: run the Python code of the recipe's metrics for the report.
    """
    if not PartialState().is_main_process:
        return
    for name in names:
        try:
            if name == "card":
                write_card(folder)
            else:
                write_report(folder, trust_remote_code=trust_remote_code)
        except Exception as error:
            again = f"the run is complete without it; `prompt-tuning {name} {folder}` tries again"
            logger.warning("%s: no %s was written (%s: %s); %s", folder, name, type(error).__name__, error, again)
