"""Encoded rows side by side: how long their sources are, what they open with, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence


def common_prefix(encoded: Dataset, is_encoder_decoder: bool = False) -> list[int]:
    """The longest run of ids that opens the source of every row: a system message, the template's first words.

    A causal row's last source token is not part of it: it predicts the target's first.
    """
    shared: np.ndarray | None = None
    for rows in encoded.select_columns(["input_ids", "labels"]).with_format("arrow").iter(1000):
        ids, labels = (rows.column(name).combine_chunks() for name in ("input_ids", "labels"))
        starts, ends = ids.offsets.to_numpy()[:-1], ids.offsets.to_numpy()[1:]
        longest = int((ends - starts if is_encoder_decoder else _source_lengths(labels) - 1).min())
        longest = min(longest, longest if shared is None else len(shared))
        if longest <= 0:
            return []
        opened = ids.values.to_numpy()[starts[:, None] + np.arange(longest)]  # [rows, longest]
        shared = opened[0] if shared is None else shared[:longest]
        same = np.append((opened == shared).all(0), False)
        shared = shared[: same.argmin()]
    return [] if shared is None else shared.tolist()


def _source_lengths(labels: pa.ListArray) -> np.ndarray:
    """`source_length` of each row."""
    starts, ends = labels.offsets.to_numpy()[:-1], labels.offsets.to_numpy()[1:]
    targets = np.append(np.flatnonzero(labels.values.to_numpy() != -100), ends[-1])
    return np.minimum(targets[np.searchsorted(targets[:-1], starts)], ends) - starts


def common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens two rows open."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def start_with(input_ids: torch.Tensor, attention_mask: torch.Tensor, opening: torch.Tensor) -> bool:
    """Whether each row `[B, T]`, wherever its padding stands, opens with these ids `[S]` and goes on."""
    mask, ids = move_padding("right", attention_mask, input_ids)
    return int(mask.sum(1).min()) > len(opening) and bool((ids[:, : len(opening)] == opening).all())


def move_padding(side: Literal["left", "right"], mask: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """The mask and others, all `[B, T]`, with each row's padding moved to one side, its tokens in their order."""
    order = mask.argsort(dim=1, descending=side == "right", stable=True)
    return [each.gather(1, order) for each in (mask, *others)]


def source_length(labels: Sequence[int]) -> int:
    """How many tokens of a causal row come before its first label."""
    return next((n for n, label in enumerate(labels) if label != -100), len(labels))


def batches_within(lengths: Sequence[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Row numbers in their order, split into batches of at most max_rows rows.

    A batch's number of rows times the length of its longest is at most max_tokens; a row longer than that is alone.
    """
    batches: list[list[int]] = []
    longest = 0
    for number, length in enumerate(lengths):
        longest = max(longest, length)
        if not batches or len(batches[-1]) == max_rows or (len(batches[-1]) + 1) * longest > max_tokens:
            batches.append([])
            longest = length
        batches[-1].append(number)
    return batches


def tokens_in_batch(encoded: Dataset, prompt: int, new_tokens: int, beams: int) -> list[int]:
    """How many tokens each row takes of an evaluation's batch, behind so many virtual tokens."""
    if "choice_ids" in encoded.column_names:
        pairs = zip(encoded["input_ids"], encoded["choice_ids"], strict=True)
        return [prompt + len(ids) + sum(map(len, choices)) + len(choices) for ids, choices in pairs]
    return [(prompt + len(ids) + new_tokens) * beams for ids in encoded["input_ids"]]


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows of ids -> `input_ids` and `attention_mask` [B, T], each row ending at the right edge."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    masks = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id, padding_side="left"),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side="left"),
    }


def source_rows(inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    """The tokens of each row of a causal batch that come before its first label."""
    rows = []
    for ids, mask, labels in zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], strict=True):
        end = source_length(labels.tolist())
        rows.append(ids[:end][mask[:end].bool()].tolist())
    return rows
