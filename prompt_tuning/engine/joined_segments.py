"""Prompts and rows of a packed sequence for a kernel that takes segments of any length without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prompt_tuning.engine.padded_segments import to_device


class JoinedSegments:
    """The indices with which the keys of all segments are joined, where a row's prompt stands before its own keys.

    Attributes:
        key_places: `[K]`, for each of the joined keys its place in the packed sequence.
        query_ends: `[S + 1]` in int32, 0 and the place behind the last query of each segment.
        key_ends: `[S + 1]` in int32, the same for the joined keys.
        most_queries: of a segment.
        most_keys: of a segment.
    """

    def __init__(
        self, segments: Sequence[tuple[int | None, int]], lengths: Sequence[int], device: torch.device
    ) -> None:
        """Make the indices on the CPU, and copy them together.

        Args:
            segments: for each the segment that it sees before itself, and its own number.
            lengths: of all segments that have keys.
            device: where the packed sequence is.
        """
        starts = torch.tensor([0, *lengths]).cumsum(0)
        num_queries = torch.tensor([lengths[number] for _, number in segments])
        num_before = torch.tensor([0 if before is None else lengths[before] for before, _ in segments])
        num_keys = num_before + num_queries
        key_starts = num_keys.cumsum(0) - num_keys
        column = torch.arange(int(num_keys.sum())) - key_starts.repeat_interleave(num_keys)
        start_before = starts[[before or 0 for before, _ in segments]].repeat_interleave(num_keys)
        start = (starts[[number for _, number in segments]] - num_before).repeat_interleave(num_keys)
        places = torch.where(column < num_before.repeat_interleave(num_keys), start_before, start) + column
        self.most_queries = int(num_queries.max())
        self.most_keys = int(num_keys.max())
        self.key_places, query_ends, key_ends = to_device(device, places, _ends(num_queries), _ends(num_keys))
        self.query_ends = query_ends.int()
        self.key_ends = key_ends.int()


def _ends(lengths: torch.Tensor) -> torch.Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
