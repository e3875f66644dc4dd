"""The prompt as the model sees it, and the text that its virtual tokens started from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import AdapterError
from prompt_tuning.models.initialization import initial_ids
from prompt_tuning.studies.inspect import read_start
from prompt_tuning.support.run_folder import RunFolder

TEXT_INITS = ("text", "demonstrations", "template", "class_labels")
"""The values of `init` by which a prompt starts from a text."""

VIRTUAL = "virtual tokens"
TRAINED = "trained text"
STARTED = "virtual tokens, shown as the text they started from"
TOKENS_AT_ONCE = 8192

Segment = tuple[str, str | None]
"""A part of a prompt, and what it is called; None for ordinary text."""


def start_ids(
    folder: RunFolder, settings: Mapping[str, Any], base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Return the token ids of the text that a soft prompt started from; none if it did not start from one.

    A run that was downloaded has only a text that its recipe holds. Demonstrations are found in the file of the
    embeddings that the prompt started from, which is not uploaded.

    Args:
        folder: the run.
        settings: its recipe.
        base: the base model, whose embeddings are compared with that file.
        tokenizer: the model's tokenizer.

    Raises:
        AdapterError: the file is damaged.
    """
    init = str(settings.get("init"))
    starts_from_text = METHODS[settings.get("method", "prompt_tuning")].starts_from_text
    if settings.get("init_text") and (starts_from_text or init == "text"):
        return initial_ids(settings["init_text"], tokenizer, init) or []
    if init not in TEXT_INITS or not folder.initial_prompt.is_file():
        return []
    folder.check_links(folder.initial_prompt)
    start = read_start(folder.initial_prompt)
    if start.dim() != 2 or start.shape[1] != base.get_input_embeddings().weight.shape[1]:
        raise AdapterError(f"{folder.initial_prompt}: not the start of a prompt of this model. Remove it.")
    return _ids_of_embeddings(start, base)


@torch.inference_mode()
def _ids_of_embeddings(start: torch.Tensor, base: PreTrainedModel) -> list[int]:
    """Return the ids whose embeddings are `start` `[P, H]`; none if one is not that of a token."""
    embeddings = base.get_input_embeddings()
    weight = embeddings.weight
    start = start.to(weight.device)
    nearest = torch.zeros(len(start), dtype=torch.long, device=weight.device)
    distances = torch.full((len(start),), float("inf"), device=weight.device)
    for first in range(0, len(weight), TOKENS_AT_ONCE):
        ids = torch.arange(first, min(first + TOKENS_AT_ONCE, len(weight)), device=weight.device)
        least, place = torch.cdist(start, embeddings(ids).float()).min(1)
        nearest = torch.where(least < distances, ids[place], nearest)
        distances = torch.minimum(distances, least)
    if not torch.allclose(embeddings(nearest).float(), start, atol=1e-4):
        return []
    return nearest.tolist()


def prompt_segments(
    encoder: Encoder, source: Sequence[int], num_virtual_tokens: int, start: Sequence[int]
) -> list[Segment]:
    """Return what the model reads, in parts: virtual tokens, trained text and ordinary text.

    Args:
        encoder: wrote the source.
        source: the token ids of the row, with the trained ids of trained text.
        num_virtual_tokens: the number of virtual tokens before it.
        start: the ids of the text that these started from, if there is one.
    """
    tokenizer = encoder.tokenizer
    segments: list[Segment] = []
    if num_virtual_tokens and start:
        segments.append((_shown(tokenizer.decode(list(start))), f"{num_virtual_tokens} {STARTED}"))
    elif num_virtual_tokens:
        segments.append((" ".join(["□"] * num_virtual_tokens), f"{num_virtual_tokens} {VIRTUAL}"))
    text = encoder.trained_text
    first_id = text.first_id if text else math.inf
    for is_trained, group in groupby(source, key=lambda id: id >= first_id):
        ids = list(group)
        ordinary = text.ordinary_ids(ids) if text else ids
        segments.append((_shown(tokenizer.decode(ordinary)), TRAINED if is_trained else None))
    return segments


def _shown(text: str) -> str:
    """Return a text with a sign before each line end, since the page shows no empty line."""
    return text.replace("\n", "↵\n")
