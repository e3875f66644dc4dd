"""Prompts and rows of a packed sequence side by side and padded, for attention on an accelerator.

An accelerator is kept busy by few large calls, and waits for none of their shapes: all indices are made on the CPU and
copied once a batch. Segments are called together if they are of like length, so that a long prompt does not pad rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F

WIDTH = 64  # Widths are multiples of this, since cuDNN plans anew for each shape and kernels want aligned masks.
Segment = tuple[tuple[int, ...], int]  # The numbers of the segments that it sees, the earliest first, and its own.
MOST_PADDING = 1.5  # The scores that a call computes are at most so many times those that its segments need.


def to_device(device: torch.device, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return tensors of integers, `[n]` with an n for each, on a device to which they are copied together."""
    return torch.cat(tensors).to(device).split(list(map(len, tensors)))


def causal_mask(query: torch.Tensor, key: torch.Tensor, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Return 0 where a query may see a key, and -inf elsewhere, in the shape of `query - key`.

    Args:
        query: the places of the queries, such as `[T, 1]`.
        key: the places of the keys, such as `[U]`.
        window: how many keys a query sees, its own included; None for all before it.
        like: has the type and the device of the result.
    """
    distance = query - key
    hidden = (distance < 0) | (distance >= window) if window else distance < 0
    return torch.zeros(distance.shape, dtype=like.dtype, device=like.device).masked_fill(hidden, float("-inf"))


def key_places(segments: Sequence[Segment], lengths: Sequence[int]) -> list[torch.Tensor]:
    """Return for each segment the places `[U]` of all keys that its last query sees, its own at the end.

    Args:
        segments: for each those that it sees before itself, and its own number.
        lengths: of all segments that have keys.
    """
    starts = [0, *accumulate(lengths)]
    spans = [torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=False)]
    return [torch.cat([spans[number] for number in (*ancestors, segment)]) for ancestors, segment in segments]


class Group(NamedTuple):
    """Segments that one call takes: their numbers, T queries each, and U keys each."""

    segments: list[int]
    width: int
    reach: int


def rounded(length: int) -> int:
    """Return the width to which so many tokens are padded."""
    return -(-length // WIDTH) * WIDTH


def groups_of_like_length(lengths: Sequence[int], before: Sequence[int]) -> list[Group]:
    """Return groups of segments, from long to short, whose padding is at most MOST_PADDING times what they need.

    Args:
        lengths: of each segment.
        before: how many keys each sees before its own.
    """
    groups: list[Group] = []
    needed = 0
    for number in sorted(range(len(lengths)), key=lambda n: (-rounded(lengths[n]), -before[n])):
        width = rounded(lengths[number])
        # A padded query, too, has a key at its place, so that no score is a mean over nothing.
        reach = rounded(before[number] + width)
        needed += width * reach
        if groups:
            segments, longest, widest = groups[-1]
            widest = max(widest, rounded(before[number] + longest))
            if (len(segments) + 1) * longest * widest <= MOST_PADDING * needed:
                groups[-1] = Group([*segments, number], longest, widest)
                continue
        groups.append(Group([number], width, reach))
        needed = width * reach
    return groups


class PaddedSegments:
    """The indices and masks with which segments are put side by side.

    Attributes:
        groups: the segments of each call.
        packed_places: `[N]`, for each token of the packed sequence its place among the padded ones of all groups.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        lengths: Sequence[int],
        num_hidden: int,
        device: torch.device,
    ) -> None:
        """Make the indices.

        Args:
            segments: for each those that it sees before itself, and its own number.
            lengths: of all segments that have keys.
            num_hidden: how many tokens at the start have keys and no queries.
            device: where the packed sequence is.
        """
        query_lengths = [lengths[number] for _, number in segments]
        seen = key_places(segments, lengths)
        before = [len(places) - length for places, length in zip(seen, query_lengths, strict=True)]
        self.groups = groups_of_like_length(query_lengths, before)
        starts = torch.tensor([0, *lengths]).cumsum(0)
        query_index = []
        key_index = []
        packed_places = torch.zeros(sum(query_lengths), dtype=torch.long)
        num_padded = 0
        for numbers, width, reach in self.groups:
            length = torch.tensor([query_lengths[n] for n in numbers])[:, None]
            start = starts[[segments[n][1] for n in numbers]][:, None]
            column = torch.arange(width)
            real = column < length
            query = (start - num_hidden + column).where(real, 0)
            packed_places[query[real]] = num_padded + real.flatten().nonzero()[:, 0]
            num_padded += real.numel()
            query_index.append(query.flatten())
            key_index += [F.pad(seen[n], (0, reach - len(seen[n]))) for n in numbers]
        order = torch.tensor([before[n] for group in self.groups for n in group.segments])
        self._query_places, self._key_places, self.packed_places, self._before = to_device(
            device, torch.cat(query_index), torch.cat(key_index), packed_places, order
        )
        self._masks: dict[tuple[int | None, torch.dtype], list[torch.Tensor]] = {}

    def groups_of(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield the queries `[S, heads, T, D]`, keys and values `[S, heads, U, D]` and mask `[S, 1, T, U]` of a call.

        Args:
            query: `[1, heads, N, D]`.
            key: `[1, key heads, N, D]`. Each head is repeated for its queries, since no fast kernel of CUDA takes
                groups of heads with a mask.
            value: `[1, key heads, N, D]`.
            window: the sliding window of the layer, if it has one.
        """
        widths = [group.width for group in self.groups]
        reaches = [group.reach for group in self.groups]
        heads = query.shape[1] // key.shape[1]
        queries = self._split(query, self._query_places, widths)
        keys = self._split(key, self._key_places, reaches)
        values = self._split(value, self._key_places, reaches)
        masks = self._masks_of(window, query)
        for states, seen, content, mask in zip(queries, keys, values, masks, strict=True):
            yield states, seen.repeat_interleave(heads, 1), content.repeat_interleave(heads, 1), mask

    def _split(self, states: torch.Tensor, places: torch.Tensor, widths: list[int]) -> Iterator[torch.Tensor]:
        """Yield for each group its states `[S, heads, width, D]` of those of the sequence `[1, heads, N, D]`."""
        sizes = [len(group.segments) * width for group, width in zip(self.groups, widths, strict=True)]
        parts = states[0].index_select(1, places).split(sizes, 1)
        for part, width in zip(parts, widths, strict=True):
            yield part.unflatten(1, (-1, width)).transpose(0, 1)

    def _masks_of(self, window: int | None, like: torch.Tensor) -> list[torch.Tensor]:
        """Return the masks `[S, 1, T, U]` of the groups, made once for all layers with this window."""
        key = (window, like.dtype)
        if key not in self._masks:
            befores = self._before.split([len(group.segments) for group in self.groups])
            masks = []
            for (_, width, reach), before in zip(self.groups, befores, strict=True):
                place = before[:, None, None] + torch.arange(width, device=like.device)[:, None]
                masks.append(causal_mask(place, torch.arange(reach, device=like.device), window, like)[:, None])
            self._masks[key] = masks
        return self._masks[key]
