"""Generation whose rows read the keys and values of their prompt and of shared texts where they are, without copies.

A new token attends in two parts: to its row's own keys, and to those of each segment of the tree before them. All
rows behind a segment are queries of one call. The parts are added by their log-sum-exp (FlashAttention, Dao et al.
2022), so that the result is that of one softmax.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from itertools import accumulate, chain
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from prompt_tuning.engine.kv_cache import ReadRows, RoomyLayer, cache_of_rows, left_padded_mask
from prompt_tuning.engine.row_layout import States

logger = logging.getLogger(__name__)

flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - no public name
WORTH_A_CALL = 1024  # A shared segment is one more call of attention, and has to save copies of so many keys.


def reads_shared_keys(base: PreTrainedModel, copies: int) -> bool:
    """Return whether generation by this model, whose rows are packed, can read shared keys without copies.

    Args:
        base: the model without its prompt.
        copies: sequences that a row writes, such as beams.
    """
    config = base.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    exact = base.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return base.device.type == "cpu" and exact and not capped and copies == 1


def segments_worth_sharing(read: ReadRows) -> set[int]:
    """Return the segments of whose keys enough copies for several rows are saved."""
    lengths = read.tree.lengths
    counts = Counter(chain.from_iterable(read.paths()))
    return {segment for segment, rows in counts.items() if lengths[segment] * (rows - 1) >= WORTH_A_CALL}


def decoding_cache(base: PreTrainedModel, read: ReadRows, copies: int) -> tuple[Cache, torch.Tensor]:
    """Return the cache from which rows are written, and its mask `[B, longest]`; keys are shared where that pays."""
    shared = set()
    if reads_shared_keys(base, copies) and not base.training:
        shared = segments_worth_sharing(read)
    if not shared:
        return cache_of_rows(read)
    _log_choice()
    cache = SharedKeys(read, shared)
    return cache, cache.mask


@functools.cache
def _log_choice() -> None:
    logger.info("Keys and values that many rows of a batch share are read where they are, without copies.")


class SharedKeys(DynamicCache):
    """A cache of B rows with only their own keys, behind the segments of a tree.

    Attributes:
        longest: the most positions that stand before a row's own keys.
        mask: `[B, longest + U]`, 1 where a row has a position; what stands before its own keys ends at `longest`.
    """

    def __init__(self, read: ReadRows, shared: Container[int]) -> None:
        """Copy the keys of all segments for their rows except those that are shared."""
        super().__init__()
        lengths = read.tree.lengths
        self._segments = [slice(end - length, end) for length, end in zip(lengths, accumulate(lengths), strict=True)]
        self._states = read.tree.states
        self._paths = [[segment for segment in path if segment in shared] for path in read.paths()]
        before = [sum(lengths[segment] for segment in path) for path in self._paths]
        self.longest = max(before)
        row_cache, mask = cache_of_rows(read, shared)
        self.layers = [OwnLayer(layer, self.longest) for layer in row_cache.layers]
        self.mask = torch.cat([left_padded_mask(before, mask.device), mask], 1)
        self._levels = self._group_rows()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows."""
        super().batch_select_indices(indices)
        self._paths = [self._paths[number] for number in indices.tolist()]
        self._levels = self._group_rows()

    def _group_rows(self) -> list[list[tuple[int, torch.Tensor]]]:
        """Return for each level of the tree its segments, each with the numbers of the rows behind it."""
        levels: list[dict[int, list[int]]] = [{} for _ in range(max(map(len, self._paths), default=0))]
        for row, path in enumerate(self._paths):
            for level, segment in zip(levels, path, strict=False):
                level.setdefault(segment, []).append(row)
        return [[(segment, torch.tensor(rows)) for segment, rows in level.items()] for level in levels]

    def attend(
        self, layer: int, query: torch.Tensor, row_states: States, mask: torch.Tensor | None, scale: float | None
    ) -> torch.Tensor:
        """Return the attended values `[B, 1, heads, D]` of one new token a row.

        Args:
            layer: its number.
            query: `[B, heads, 1, D]`.
            row_states: the rows' own keys and values, `[B, key heads, U, D]`.
            mask: `[B, 1, 1, longest + U]`, true where a row has a key; None if all have.
            scale: of the scores.
        """
        key, value = row_states
        num_rows, heads, _, size = query.shape
        # Heads with the same keys are queries of one call: [B, heads, 1, D] -> [B, key heads, groups, D]
        query = query.reshape(num_rows, key.shape[1], -1, size)
        if mask is not None:
            hidden = ~mask[..., self.longest :].expand(-1, -1, query.shape[2], -1)
            mask = query.new_zeros(hidden.shape).masked_fill(hidden, float("-inf"))
        attended, sums = flash_forward(query, key, value, attn_mask=mask, scale=scale)
        attended, sums = attended.contiguous(), sums.contiguous()
        keys, values = self._states[layer]
        for level in self._levels:
            parts = []
            for segment, rows in level:
                places = self._segments[segment]
                # [n, key heads, groups, D] -> [1, key heads, n * groups, D]
                queries = query[rows].transpose(0, 1).flatten(1, 2)[None]
                part = flash_forward(queries, keys[:, :, places], values[:, :, places], scale=scale)
                parts.append([states[0].unflatten(1, (len(rows), -1)).transpose(0, 1) for states in part[:2]])
            rows = torch.cat([rows for _, rows in level])
            further, further_sums = (torch.cat(states) for states in zip(*parts, strict=True))
            earlier = sums[rows]
            total = torch.logaddexp(earlier, further_sums)
            weights = (earlier - total).exp()[..., None], (further_sums - total).exp()[..., None]
            attended[rows] = attended[rows] * weights[0] + further * weights[1]
            sums[rows] = total
        return attended.reshape(num_rows, 1, heads, size)

    @contextmanager
    def decoding(self, base: PreTrainedModel) -> Iterator[None]:
        """Let attention find this cache in forwards of the base model that are given it."""

        def hand_down(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            return args, kwargs | {"shared_keys": self} if kwargs.get("cache") is self else kwargs

        handle = base.register_forward_pre_hook(hand_down, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class OwnLayer(RoomyLayer):
    """The keys and values of one layer that belong to single rows, behind `longest` positions of shared ones."""

    def __init__(self, layer: DynamicLayer, longest: int) -> None:
        """Take over the rows' own keys and values of a layer."""
        super().__init__(layer)
        self.longest = longest

    def get_seq_length(self) -> int:
        """Return how many positions there are, with those before the rows' own."""
        return self.longest + self.keys.shape[2]
