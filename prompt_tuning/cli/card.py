"""The card command: write a run's model card again, with an example row of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prompt_tuning.data.loading import with_standard_columns
from prompt_tuning.errors import DataError, TemplateError
from prompt_tuning.reports.summary import read_results, results_key
from prompt_tuning.runs.predict import Predictor


def own_example(folder: Path, file: Path) -> dict[str, Any]:
    """Return what results.json keeps of an example row: the columns that are read, and the row with its predictions.

    Raises:
        DataError: the file is not one row that the run's template can read.
    """
    results, predictor = read_results(folder), Predictor.load(folder)
    try:
        row = with_standard_columns(json.loads(file.read_text(encoding="utf-8")), predictor.data)
        encoded = predictor.encoder.row(row)
    except (OSError, ValueError, TypeError, TemplateError) as error:
        raise DataError(f"--example {file}: expected one row as JSON, with the template's columns: {error}") from error
    tuned = results_key(results["method"])
    shown = {"source": encoded["source"], "references": encoded["references"], "cut_tokens": encoded["cut"]}
    shown[tuned] = predictor([row])[0]
    if "hard_prompt" in results and tuned != "full":
        with predictor.model.disable_adapter():
            shown["hard_prompt"] = predictor([row])[0]
    columns = sorted(predictor.encoder.template.source_columns)
    return {"example": {name: row[name] for name in columns if name in row}, "own_example": shown}
