"""Predict rows with an export in plain transformers, and compare the texts with those of this package."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import tqdm

from prompt_tuning.data.rows import open_rows
from prompt_tuning.encoding.decoding import decode_to_limit
from prompt_tuning.runs.exported import ExportedTask
from prompt_tuning.runs.input_rows import read_row
from prompt_tuning.runs.named_runs import named_run
from prompt_tuning.runs.predictor import Predictor
from prompt_tuning.support.trust import load_pretrained

logger = logging.getLogger(__name__)

BATCH = 8


def check_export(
    folder: str | Path,
    run: str,
    file: str,
    *,
    model_name_or_path: str | None = None,
    trust_remote_code: bool = False,
) -> bool:
    """Return whether an export writes the same greedy texts as the run itself, and log which rows differ.

    Args:
        folder: the export.
        run: the folder or hub id of the run, or NAME=RUN.
        file: the rows.
        model_name_or_path: the base model, if it has moved.
        trust_remote_code: run the Python code that is with the model.
    """
    name, of_run = named_run(run)
    rows = list(open_rows(file))
    predictor = Predictor.load(of_run.path, model_name_or_path, trust_remote_code=trust_remote_code)
    predictor = replace(predictor, autocast=None)
    expected = []
    for start in range(0, len(rows), BATCH):
        batch = [read_row(predictor.encoder, predictor.data, *row) for row in rows[start : start + BATCH]]
        expected += predictor.answer(batch)
    del predictor
    task = ExportedTask.load(folder, name, trust_remote_code=trust_remote_code)
    texts = write_plainly(folder, task, rows, trust_remote_code=trust_remote_code)
    different = [number for number, pair in enumerate(zip(texts, expected, strict=True), 1) if pair[0] != pair[1]]
    logger.info("%s: %s of %s rows of %s have equal texts", name, len(rows) - len(different), len(rows), file)
    for number in different:
        texts_of_row = texts[number - 1], expected[number - 1]
        logger.warning("%s, row %s: the export writes %r, the run %r", file, number, *texts_of_row)
    return not different


@torch.inference_mode()
def write_plainly(
    folder: str | Path, task: ExportedTask, rows: list[tuple[str, dict]], *, trust_remote_code: bool = False
) -> list[str]:
    """Return the greedy texts of rows by the export in plain transformers, row by row."""
    options = {"trust_remote_code": trust_remote_code}
    model = load_pretrained(AutoModelForCausalLM, str(folder), dtype="auto", **options).eval()
    new = []
    for origin, row in tqdm(rows, desc="check"):
        source = read_row(task.encoder, task.data, origin, row).source
        ids = torch.tensor([task.tokens.ids_of(source)])
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=task.max_tokens,
            do_sample=False,
            pad_token_id=task.encoder.tokenizer.pad_token_id,
        )
        new.append(written[0, ids.shape[1] :].tolist())
    return decode_to_limit(new, task.encoder.tokenizer, task.encoder.template.stop)[0]
