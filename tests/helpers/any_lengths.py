"""The kernel of `torch.nn.attention.varlen` for machines without CUDA: the same arguments, computed by definition."""

from itertools import pairwise

import torch

from helpers.pretend_cuda import on_cpu


def varlen_attn(
    query, key, value, query_ends, key_ends, most_queries, most_keys, *, scale, window_size, enable_gqa
):  # fmt: skip
    """Return attention `[N, heads, D]` of segments that end at these places; the last query sees the last key."""
    heads, size = query.shape[1:]
    assert key.shape == value.shape
    assert key.shape[2] == size
    assert enable_gqa == (heads != key.shape[1])
    assert {states.stride(2) for states in (query, key, value)} == {1}
    assert {states.dtype for states in (query, key, value)} == {query.dtype}
    assert {ends.dtype for ends in (query_ends, key_ends)} == {torch.int32}
    assert {tensor.device for tensor in (key, query_ends, key_ends)} == {query.device}
    # The kernel reads the ends on the device, so that Python does not wait for them.
    ends = list(zip(on_cpu(query_ends).tolist(), on_cpu(key_ends).tolist(), strict=True))
    assert ends[0] == (0, 0)
    assert ends[-1] == (len(query), len(key))
    assert max(end - start for (start, _), (end, _) in pairwise(ends)) == most_queries
    assert max(last - first for (_, first), (_, last) in pairwise(ends)) == most_keys
    left, right = window_size
    assert right == 0
    attended = []
    for (start, first), (end, last) in pairwise(ends):
        keys, values = (states[first:last].repeat_interleave(heads // key.shape[1], 1) for states in (key, value))
        place = torch.arange(last - first, device=query.device)
        distance = place[last - first - (end - start) :, None] - place
        hidden = (distance < 0) | (distance > left) if left >= 0 else distance < 0
        scores = torch.einsum("qhd,khd->hqk", query[start:end].float(), keys.float()) * (scale or size**-0.5)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        attended.append(torch.einsum("hqk,khd->qhd", weights, values.float()).to(query.dtype))
    return torch.cat(attended)
