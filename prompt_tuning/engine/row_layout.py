"""The places of prompts and rows in a packed sequence, and which of them each row sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prompt_tuning.engine.joined_segments import JoinedSegments
from prompt_tuning.engine.padded_segments import PaddedSegments, Segment, causal_mask

States = tuple[torch.Tensor, torch.Tensor]  # keys and values of a layer, both `[1, key heads, N, D]`


class RowLayout:
    """The places of prompts and rows in a packed sequence.

    The rows are a forest: each stands behind a prompt or behind an earlier row, and sees all that stand before it.
    It is no dataclass: FSDP would hand a copy of it to each layer.
    """

    def __init__(
        self,
        *,
        prompts: tuple[int, ...],
        rows: tuple[int, ...],
        parents: tuple[int, ...],
        prefixes: Sequence[States] = (),
        states: dict[int, States] | None = None,
    ) -> None:
        """Note the lengths of prompts and rows, in their order in the sequence.

        Args:
            prompts: length of each of the K prompts.
            rows: length of each row.
            parents: for each row what stands right before it: the number of a prompt, or K + that of an earlier row.
            prefixes: for each layer the keys and values of all prompts if they are computed already, one prompt after
                the other; the packed sequence then holds only rows.
            states: if not None, attention stores here by layer the keys and values of the packed sequence.
        """
        self.prompts = prompts
        self.rows = rows
        self.parents = parents
        self.prefixes = prefixes
        self.states = states
        self.lengths = [*prompts, *rows]
        self.segments = self._segments()
        self._masks: dict[Any, torch.Tensor] = {}
        self._padded: dict[torch.device, PaddedSegments] = {}
        self._joined: dict[torch.device, JoinedSegments] = {}

    def _segments(self) -> list[Segment]:
        """Return each segment that has queries, as those that it sees before itself and its own number."""
        ancestors: list[tuple[int, ...]] = [()] * len(self.prompts)
        for parent in self.parents:
            ancestors.append((*ancestors[parent], parent))
        segments = list(zip(ancestors, range(len(ancestors)), strict=True))
        prompts = () if self.prefixes else segments[: len(self.prompts)]
        return [prompt for prompt in prompts if self.lengths[prompt[1]]] + segments[len(self.prompts) :]

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
        """Return the causal mask of a row behind `before` positions, as far as the window reaches.

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
            num_hidden = sum(self.prompts) if self.prefixes else 0
            self._padded[device] = PaddedSegments(self.segments, self.lengths, num_hidden, device)
        return self._padded[device]

    def joined(self, device: torch.device) -> JoinedSegments:
        """Return the segments one after the other, whose indices are copied to a device once for all layers."""
        if device not in self._joined:
            self._joined[device] = JoinedSegments(self.segments, self.lengths, device)
        return self._joined[device]
