"""Predict for a row of the user's, which a model card shows in place of a row of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prompt_tuning.arguments.methods import HARD_PROMPT, find_method
from prompt_tuning.data.formats import parse_object
from prompt_tuning.data.loading import with_standard_columns
from prompt_tuning.errors import DataError, TemplateError
from prompt_tuning.reports.run_files import read_trained
from prompt_tuning.runs.predictor import Predictor


def user_example(folder: Path, text: str, origin: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Predict for a user's row, and return what results.json keeps of it.

    Args:
        folder: of a finished train.
        text: the row, a JSON object.
        origin: what messages call it.
        trust_remote_code: run the Python code that is with the model.

    Returns:
        `example`, the columns that the template reads, and `own_example`, the encoded row with its predictions.

    Raises:
        DataError: the text is not one row that the run's template can read.
    """
    results = read_trained(folder)
    predictor = Predictor.load(folder, trust_remote_code=trust_remote_code)
    try:
        row = with_standard_columns(parse_object(text, origin, 1), predictor.data)
        encoded = predictor.encoder.row(row)
    except (ValueError, TypeError, TemplateError) as error:
        raise DataError(f"{origin}: expected one row as JSON, with the template's columns: {error}") from error
    method = find_method(results["method"])
    example = {"source": encoded["source"], "references": encoded["references"], "cut_tokens": encoded["cut_tokens"]}
    example[method.results_key] = predictor([row])[0]
    if HARD_PROMPT in results and not method.trains_whole_model:
        hard_prompt = replace(predictor, encoder=replace(predictor.encoder, trained_text=None))
        with predictor.model.disable_adapter():
            example[HARD_PROMPT] = hard_prompt([row])[0]
    columns = sorted(predictor.encoder.template.source_columns)
    return {"example": {name: row[name] for name in columns if name in row}, "own_example": example}
