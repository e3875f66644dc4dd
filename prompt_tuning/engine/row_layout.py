"""The places of prompts and rows in a packed sequence, and which of them each row sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import Cache

from prompt_tuning.engine.joined_segments import JoinedSegments
from prompt_tuning.engine.padded_segments import PaddedSegments, Segment, causal_mask

States = tuple[torch.Tensor, torch.Tensor]  # keys and values of a layer, both `[1, key heads, N, D]`


class KeyTree(NamedTuple):
    """Keys and values of segments, such as prompts and texts behind them, one after the other without padding.

    Attributes:
        lengths: of each segment.
        ancestors: for each segment those that it sees before itself, the first of all first.
        states: for each layer keys and values, both `[1, key heads, sum of the lengths, D]`.
    """

    lengths: tuple[int, ...]
    ancestors: tuple[tuple[int, ...], ...]
    states: list[States]

    @classmethod
    def from_caches(cls, caches: Sequence[Cache]) -> KeyTree:
        """Return the keys and values of caches of one row each, which see nothing before themselves."""
        states = [(layer.keys, layer.values) for layer in caches[0].layers]
        if len(caches) > 1:
            joined = zip(*(cache.layers for cache in caches), strict=True)
            states = [
                (torch.cat([row.keys for row in layers], 2), torch.cat([row.values for row in layers], 2))
                for layers in joined
            ]
        return cls(tuple(cache.get_seq_length() for cache in caches), ((),) * len(caches), states)


class RowLayout:
    """The places of prompts and rows in a packed sequence.

    The rows are a forest: each stands behind a prompt or behind an earlier row, and sees all that stand before it.
    It is no dataclass: FSDP would hand a copy of it to each layer.
    """

    def __init__(
        self,
        *,
        prompts: tuple[int, ...] = (),
        rows: tuple[int, ...],
        parents: tuple[int, ...],
        before: KeyTree | None = None,
        states: dict[int, States] | None = None,
    ) -> None:
        """Note the lengths of prompts and rows, in their order in the sequence.

        Args:
            prompts: length of each of the K prompts.
            rows: length of each row.
            parents: for each row what stands right before it: the number of a prompt, or K + that of an earlier row.
            before: the K segments before the rows if they are computed already; the packed sequence then holds only
                rows.
            states: if not None, attention stores here by layer the keys and values of all segments.
        """
        self.prompts = prompts if before is None else before.lengths
        self.rows = rows
        self.before = before
        self.states = states
        self.lengths = [*self.prompts, *rows]
        self.ancestors: list[tuple[int, ...]] = [()] * len(prompts)
        if before is not None:
            self.ancestors = list(before.ancestors)
        for parent in parents:
            self.ancestors.append((*self.ancestors[parent], parent))
        self.segments = self._segments()
        self._masks: dict[Any, torch.Tensor] = {}
        self._padded: dict[torch.device, PaddedSegments] = {}
        self._joined: dict[torch.device, JoinedSegments] = {}

    def _segments(self) -> list[Segment]:
        """Return each segment that has queries, as those that it sees before itself and its own number."""
        segments = []
        for number, ancestors in enumerate(self.ancestors):
            is_row = number >= len(self.prompts)
            if is_row or (self.before is None and self.lengths[number]):
                segments.append((ancestors, number))
        return segments

    def num_before(self, ancestors: Sequence[int]) -> int:
        """Return how many positions stand before a segment with these ancestors."""
        return sum(self.lengths[number] for number in ancestors)

    def positions(self) -> torch.Tensor:
        """Return the positions `[N]`: a prompt counts from 0, a row continues where its parent ends."""
        spans = []
        for ancestors, segment in self.segments:
            start = self.num_before(ancestors)
            spans.append(torch.arange(start, start + self.lengths[segment]))
        return torch.cat(spans)

    def mask(self, before: int, length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Return the causal mask of a row.

        Args:
            before: the number of positions before the row.
            length: the number of the row's tokens.
            window: how many positions a token sees, its own included; None for all before it.
            like: has the type and the device of the mask.

        Returns:
            `[length, before + length]`, 0 where a token may look and -inf elsewhere.
        """
        key = (before, window, like.dtype, like.device)
        if key not in self._masks:  # One mask for the longest row is made once a step.
            longest = max(self.rows if before else self.lengths)
            query = torch.arange(before, before + longest, device=like.device)[:, None]
            self._masks[key] = causal_mask(
                query, torch.arange(before + longest, device=like.device)[None], window, like
            )
        return self._masks[key][:length, : before + length]

    def padded(self, device: torch.device) -> PaddedSegments:
        """Return the segments side by side, whose indices are copied to a device once for all layers."""
        if device not in self._padded:
            num_hidden = 0 if self.before is None else sum(self.prompts)
            self._padded[device] = PaddedSegments(self.segments, self.lengths, num_hidden, device)
        return self._padded[device]

    def joined(self, device: torch.device) -> JoinedSegments:
        """Return the segments one after the other, whose indices are copied to a device once for all layers."""
        if device not in self._joined:
            self._joined[device] = JoinedSegments(self.segments, self.lengths, device)
        return self._joined[device]
