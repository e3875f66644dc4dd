"""Encoded rows side by side: the length of their sources, their common prefix, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

Item = TypeVar("Item")

KEY_BYTES = 4  # Each number in a key of `source_keys` has so many.


def common_prefix(encoded: Dataset, *, is_encoder_decoder: bool = False) -> list[int]:
    """Return the longest run of ids that opens the source of every row, such as a system message.

    The last source token of a causal row is not part of it, because it predicts the first target token.
    """
    shared: np.ndarray | None = None
    for rows in encoded.select_columns(["input_ids", "labels"]).with_format("arrow").iter(1000):
        ids, labels = (rows.column(name).combine_chunks() for name in ("input_ids", "labels"))
        offsets = ids.offsets.to_numpy()
        starts = offsets[:-1]
        lengths = np.diff(offsets) if is_encoder_decoder else _source_lengths(labels) - 1
        longest = int(lengths.min())
        if shared is not None:
            longest = min(longest, len(shared))
        if longest <= 0:
            return []
        opened = ids.values.to_numpy()[starts[:, None] + np.arange(longest)]  # [rows, longest]
        shared = opened[0] if shared is None else shared[:longest]
        same = np.append((opened == shared).all(0), False)
        shared = shared[: same.argmin()]
    return [] if shared is None else shared.tolist()


def _source_lengths(labels: pa.ListArray) -> np.ndarray:
    """Return the `source_length` of each row."""
    offsets = labels.offsets.to_numpy()
    starts = offsets[:-1]
    ends = offsets[1:]
    targets = np.append(np.flatnonzero(labels.values.to_numpy() != -100), ends[-1])
    return np.minimum(targets[np.searchsorted(targets[:-1], starts)], ends) - starts


def source_keys(encoded: Dataset, start: int, most: int) -> list[bytes]:
    """Return for each causal row its task and up to `most` ids of its source, as bytes that sort as these numbers do.

    Args:
        encoded: the rows, with the number of their task in `task_ids` if they have several.
        start: the first of the ids. The last id of a source never counts, because it predicts the first target token.
        most: the number of ids, each of KEY_BYTES bytes like the task.
    """
    columns = [name for name in ("input_ids", "labels", "task_ids") if name in encoded.column_names]
    keys = []
    for rows in encoded.select_columns(columns).with_format("arrow").iter(1000):
        ids, labels = (rows.column(name).combine_chunks() for name in ("input_ids", "labels"))
        values = ids.values.to_numpy().astype(f">i{KEY_BYTES}")
        tasks = rows.column("task_ids").to_pylist() if "task_ids" in columns else [0] * len(ids)
        starts = ids.offsets.to_numpy()[:-1]
        ends = starts + np.minimum(_source_lengths(labels) - 1, start + most)
        for task, first, end in zip(tasks, (starts + start).tolist(), ends.tolist(), strict=True):
            keys.append(task.to_bytes(KEY_BYTES) + values[first:end].tobytes())
    return keys


def common_prefix_length(one: list[int], other: list[int]) -> int:
    """Return with how many equal tokens two rows open, by comparing slices, which Python does fast."""
    length, end = 0, min(len(one), len(other))
    if one[:end] == other[:end]:
        return end
    while end - length > 1:
        middle = (length + end) // 2
        if one[length:middle] == other[length:middle]:
            length = middle
        else:
            end = middle
    return length


def start_with(input_ids: torch.Tensor, attention_mask: torch.Tensor, prefix: torch.Tensor) -> bool:
    """Return whether each row `[B, T]`, wherever its padding stands, opens with these ids `[S]` and continues."""
    mask, ids = move_padding("right", attention_mask, input_ids)
    return int(mask.sum(1).min()) > len(prefix) and bool((ids[:, : len(prefix)] == prefix).all())


def move_padding(side: Literal["left", "right"], mask: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """Return the mask and others, all `[B, T]`, with each row's padding on one side and its tokens in their order."""
    order = mask.argsort(dim=1, descending=side == "right", stable=True)
    return [tensor.gather(1, order) for tensor in (mask, *others)]


def source_length(labels: Sequence[int]) -> int:
    """Return how many tokens of a causal row come before its first label."""
    return next((n for n, label in enumerate(labels) if label != -100), len(labels))


def batches_within(lengths: Sequence[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Split row numbers, in their order, into batches of at most max_rows rows.

    The rows of a batch times the length of its longest are at most max_tokens. A longer row is alone.
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


def streamed_batches(
    items: Iterable[Item | None], length: Callable[[Item], int], max_rows: int, max_tokens: float
) -> Iterator[list[Item]]:
    """Yield items in their order as batches with the limits of `batches_within`.

    Args:
        items: what the batches are made of. After a None the items before it are not kept waiting for others.
        length: returns the number of tokens of an item.
        max_rows: the most items of a batch.
        max_tokens: the most tokens of a batch, its longest item times the number of items; a longer item is alone.
    """
    batch: list[Item] = []
    longest = 0
    for item in items:
        longest = longest if item is None else max(longest, length(item))
        if batch and (item is None or (len(batch) + 1) * longest > max_tokens):
            yield batch
            batch = []
        if item is None:
            continue
        longest = longest if batch else length(item)
        batch.append(item)
        if len(batch) == max_rows:
            yield batch
            batch = []
            longest = 0
    if batch:
        yield batch


def tokens_in_batch(encoded: Dataset, prompt: int, new_tokens: int, beams: int) -> list[int]:
    """Return how many tokens each row takes in a batch of an evaluation.

    Args:
        encoded: the rows; those with `choice_ids` are answered by a choice and generate nothing.
        prompt: the number of virtual tokens before a row.
        new_tokens: the most tokens that are generated.
        beams: the number of beams of a row.
    """
    if "choice_ids" in encoded.column_names:
        pairs = zip(encoded["input_ids"], encoded["choice_ids"], strict=True)
        return [prompt + len(ids) + sum(map(len, choices)) + len(choices) for ids, choices in pairs]
    return [(prompt + len(ids) + new_tokens) * beams for ids in encoded["input_ids"]]


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask` `[B, T]` of rows of ids, each row ending at the right edge."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    masks = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id, padding_side="left"),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side="left"),
    }


def unpadded(input_ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """Return the tokens of each row `[B, T]` that the mask shows, by one copy from their device for all rows."""
    pairs = zip(input_ids.cpu(), mask.cpu().bool(), strict=True)
    return [ids[shown].tolist() for ids, shown in pairs]


def source_rows(inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    """Return the tokens of each row of a causal batch, `input_ids` and `labels` `[B, T]`, before its first label."""
    before_target = (inputs["labels"] != -100).cumsum(1) == 0
    return unpadded(inputs["input_ids"], inputs["attention_mask"] * before_target)
