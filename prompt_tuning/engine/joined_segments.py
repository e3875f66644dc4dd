"""Prompts and rows of a packed sequence for a kernel that takes segments of any length without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prompt_tuning.engine.padded_segments import Segment, key_places, to_device


class JoinedSegments:
    """The indices with which the keys of all segments are joined, where what a row sees stands before its own keys.

    Attributes:
        key_places: `[K]`, for each of the joined keys its place in the packed sequence.
        query_ends: `[S + 1]` in int32, 0 and the place behind the last query of each segment.
        key_ends: `[S + 1]` in int32, the same for the joined keys.
        most_queries: of a segment.
        most_keys: of a segment.
    """

    def __init__(self, segments: Sequence[Segment], lengths: Sequence[int], device: torch.device) -> None:
        """Make the indices on the CPU, and copy them together.

        Args:
            segments: for each those that it sees before itself, and its own number.
            lengths: of all segments that have keys.
            device: where the packed sequence is.
        """
        places = key_places(segments, lengths)
        num_queries = torch.tensor([lengths[number] for _, number in segments])
        num_keys = torch.tensor(list(map(len, places)))
        self.most_queries = int(num_queries.max())
        self.most_keys = int(num_keys.max())
        self.key_places, query_ends, key_ends = to_device(
            device, torch.cat(places), _ends(num_queries), _ends(num_keys)
        )
        self.query_ends = query_ends.int()
        self.key_ends = key_ends.int()


def _ends(lengths: torch.Tensor) -> torch.Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
