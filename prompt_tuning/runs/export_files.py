"""Write the files of an export."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from prompt_tuning.encoding.decoding import special_stop_ids
from prompt_tuning.engine.stop_texts import add_end_tokens
from prompt_tuning.models.added_tokens import HeadRow, add_embeddings, add_tokens, check_rows_are_read, silence
from prompt_tuning.models.layered_llama import with_layer_vectors
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.export_card import export_card
from prompt_tuning.runs.exported import PREFIX, AddedTokens
from prompt_tuning.support.files import write_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted
from prompt_tuning.templates.template import Template

logger = logging.getLogger(__name__)

NEVER = -100
"""The logit bias with which a server never writes a token."""


@dataclass(frozen=True)
class Exported:
    """A run to export.

    Args:
        name: the task's name.
        run: its folder.
        config: the configuration of its adapter.
        recipe: its recipe, with the base model to load.
        template: its template.
        vectors: `[P + S, H]`, its prompt and then the tokens inside its text.
        layer_vectors: `[L, P + S, H]`, what the layers add to their inputs at these tokens, or None.
        rows: the file with rows of the task, or None.
        scores: the scores of its evaluation.
    """

    name: str
    run: RunFolder
    config: PeftConfig
    recipe: Recipe
    template: Template
    vectors: torch.Tensor
    layer_vectors: torch.Tensor | None = None
    rows: str | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)


def write_export(
    folder: Path,
    exported: Sequence[Exported],
    encoded: Mapping[str, list[list[int]]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    logit_bias: bool,
) -> None:
    """Change the model and the tokenizer, and write all files of an export."""
    num_embeddings = len(model.get_input_embeddings().weight)
    num_tokens = max(tokenizer.get_vocab().values()) + 1
    names = []
    for task in exported:
        names += [f"{PREFIX}{task.name}:{number}|>" for number in range(len(task.vectors))]
    add_end_tokens(model, tokenizer)
    _add_stops(model, special_stop_ids(tokenizer, exported[0].template.stop))
    ids = add_tokens(tokenizer, names)
    vectors = torch.cat([task.vectors for task in exported])
    layer_vectors = _join_layer_vectors(exported)
    _check_space(folder, model, vectors, layer_vectors)
    silent = add_embeddings(model, ids, vectors)
    tokens = {}
    first_id = ids[0]
    for task in exported:
        token_ids, ids = ids[: len(task.vectors)], ids[len(task.vectors) :]
        num_virtual = task.config.num_virtual_tokens
        tokens[task.name] = AddedTokens(token_ids[:num_virtual], token_ids[num_virtual:], num_embeddings)
        row = tokens[task.name].ids_of(encoded[task.name][0])[num_virtual:]
        check_rows_are_read(model, token_ids[:num_virtual], task.vectors[:num_virtual], row)
    if layer_vectors is not None:
        model = with_layer_vectors(model, first_id, layer_vectors)
    rows: list[list[int]] = []
    for name, of_task in encoded.items():
        rows += map(tokens[name].ids_of, of_task)
    head = silence(model, silent, num_tokens, tqdm(rows, desc="measure the head"))
    logger.info(
        "a token of a prompt has a probability of at most %.1e, at %s positions", head.probability, head.positions
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_tasks(folder, exported, tokens, silent if logit_bias else ())
    _write_card(folder, exported, head, silent if logit_bias else ())


def _add_stops(model: PreTrainedModel, stop_ids: set[int]) -> None:
    """Let servers end at the special tokens that a template stops at."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    model.generation_config.eos_token_id = [*ends, *sorted(stop_ids - {*ends})]


def _join_layer_vectors(exported: Sequence[Exported]) -> torch.Tensor | None:
    """Return the vectors `[L, N, H]` of all added tokens, 0 for runs without any; None if no run has vectors."""
    num_layers = max(0 if task.layer_vectors is None else len(task.layer_vectors) for task in exported)
    if not num_layers:
        return None
    parts = []
    for task in exported:
        none = torch.zeros(num_layers, *task.vectors.shape)
        parts.append(none if task.layer_vectors is None else task.layer_vectors)
    return torch.cat(parts, 1)


def _check_space(
    folder: Path, model: PreTrainedModel, vectors: torch.Tensor, layer_vectors: torch.Tensor | None
) -> None:
    """Report the size of the export, and raise an OSError unless the disk has room for it."""
    weight = model.get_input_embeddings().weight
    added = 2 * vectors.numel() * weight.itemsize
    layered = 0 if layer_vectors is None else layer_vectors.numel() * weight.itemsize
    is_tied = model.get_output_embeddings() is not None and model.get_output_embeddings().weight is weight
    untied = weight.numel() * weight.itemsize if is_tied else 0
    total = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters()) + added + layered + untied
    logger.info(
        "the folder takes %.1f MB: %s of %s in two tables %.1f MB, their vectors in layers %.1f MB, the untied head "
        "%.1f MB, the model %.1f MB",
        total / 1e6,
        counted(len(vectors), "token"),
        counted(vectors.shape[1], "number"),
        added / 1e6,
        layered / 1e6,
        untied / 1e6,
        (total - added - layered - untied) / 1e6,
    )
    if shutil.disk_usage(folder).free < total:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))


def _write_tasks(
    folder: Path, exported: Sequence[Exported], tokens: Mapping[str, AddedTokens], biased: Sequence[int]
) -> None:
    """Write prompts.json, and for each task the files from which `requests` makes its sources."""
    tasks = {}
    for task in exported:
        place = RunFolder(folder).exported_task(task.name)
        place.path.mkdir(parents=True)
        shutil.copyfile(task.run.recipe, place.recipe)
        shutil.copyfile(task.run.template, place.template)
        added = tokens[task.name]
        tasks[task.name] = {
            "ids": added.ids,
            "text_ids": added.text_ids,
            "template": str(place.template.relative_to(folder)),
            "stop": list(task.template.stop),
            "max_tokens": task.recipe.decoding["max_new_tokens"],
            "score": dict(task.scores) or None,
            "source_checksum": hashlib.sha256(task.run.adapter_weights.read_bytes()).hexdigest(),
        }
        if added.text_ids:
            shutil.copyfile(task.run.adapter_config, place.adapter_config)
        if biased:
            tasks[task.name]["logit_bias"] = {str(id): NEVER for id in biased}
    num_embeddings = next(iter(tokens.values())).first_id
    write_json(RunFolder(folder).prompts, {"num_embeddings": num_embeddings, "tasks": tasks})


def _write_card(folder: Path, exported: Sequence[Exported], head: HeadRow, biased: Sequence[int]) -> None:
    tokens = {task.name: len(task.vectors) for task in exported}
    base = str(exported[0].recipe.model.model_name_or_path)
    layered = any(task.layer_vectors is not None for task in exported)
    text = export_card(base, tokens, head.probability, head.positions, needs_bias=bool(biased), layered=layered)
    RunFolder(folder).card.write_text(text, "utf-8")
