"""Attention over one packed sequence of prompts and rows: a row sees what stands before it, and itself.

Registered with transformers as the attention implementation "shared_prefix". A model that is given a `row_layout` runs
the sequence [prompt 1, ..., prompt K, row 1, ..., row B] of shape `[1, N, H]` through its linear layers as it is, with
no padding; only here is it taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch.backends import cuda
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from prompt_tuning.engine.row_layout import RowLayout
from prompt_tuning.engine.shared_keys import SharedKeys, flash_forward

ATTENTION = "shared_prefix"

# `scaled_dot_product_attention` runs this on a CPU.
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001 - no public name


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_layout: RowLayout | None = None,
    shared_keys: SharedKeys | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend in one layer; transformers calls this for `attn_implementation="shared_prefix"`.

    Args:
        module: the layer's attention.
        query: `[1, heads, N, D]`; without a layout `[B, heads, T, D]`.
        key: `[1, key heads, N, D]`; without a layout `[B, key heads, U, D]`.
        value: the same as for the keys.
        attention_mask: for transformers' own attention.
        scaling: what products are multiplied by; None for 1 / sqrt(D).
        dropout: the share of weights that are dropped.
        row_layout: where prompts and rows stand in the packed sequence. None for transformers' own attention.
        shared_keys: the keys of a prompt that new tokens attend to without copies of them.
        sliding_window: how many keys a query sees, if not all.
        softcap: the bound of scores in Gemma 2.
        **kwargs: for transformers' own attention.

    Returns:
        `[1, N, heads, D]` or `[B, T, heads, D]`, and None for the weights.
    """
    if shared_keys is not None:
        return shared_keys.attend(module.layer_idx, query, (key, value), attention_mask, scaling), None
    settings: dict[str, Any] = {"scale": scaling, "dropout": dropout, "softcap": softcap}
    # A prefix is float32, and FSDP computes queries in half precision without autocast, which would cast both.
    key, value = key.to(query.dtype), value.to(query.dtype)
    if row_layout is None:
        with _kernels_without_plans(query.device):
            if softcap is not None:
                return _attend(query, key, value, attention_mask, **settings).transpose(1, 2), None
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
            )
    if row_layout.before is not None:
        key_before, value_before = row_layout.before.states[module.layer_idx]
        key = torch.cat([key_before.to(key.dtype), key], 2)
        value = torch.cat([value_before.to(value.dtype), value], 2)
    if row_layout.states is not None:
        row_layout.states[module.layer_idx] = key, value
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (states.to(torch.get_autocast_dtype(device)) for states in (query, key, value))
    # On a CPU padding costs more than a call for each row; on an accelerator the calls do.
    attention = row_by_row if device == "cpu" else side_by_side
    if device == "cuda" and _takes_any_lengths(query, key, value, settings):
        attention = without_padding
    with _kernels_without_plans(query.device):
        return attention(query, key, value, row_layout, window=sliding_window, settings=settings), None


def _kernels_without_plans(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which no attention on CUDA takes cuDNN, which plans anew for each shape, so at each token.

    Each layer enters it, not each step, since activation checkpointing runs a layer again after its step.
    """
    if device.type != "cuda" or not (cuda.flash_sdp_enabled() and cuda.mem_efficient_sdp_enabled()):
        return nullcontext()  # With a kernel switched off, the user has chosen kernels.
    return _without_cudnn()


@contextmanager
def _without_cudnn() -> Iterator[None]:
    enabled = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(enabled=False)
    try:
        yield
    finally:
        cuda.enable_cudnn_sdp(enabled)


def _takes_any_lengths(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: dict[str, Any]) -> bool:
    """Return whether FlashAttention for segments of any length takes these states: in half precision, with CUDA."""
    size = query.shape[-1]
    if settings["softcap"] is not None or settings["dropout"] or size % 8 or size != value.shape[-1]:
        return False
    if torch.version.hip is not None:  # Nobody has read how its kernel places a window.
        return False
    causal, groups = False, True  # The shapes of a causal call would have to be square.
    return cuda.can_use_flash_attention(cuda.SDPAParams(query, key, value, None, 0.0, causal, groups))


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: RowLayout,
    *,
    window: int | None,
    settings: dict[str, Any],
) -> torch.Tensor:
    """Attend by one call for each prompt and row, without padding; the arguments are those of `side_by_side`."""
    if settings["softcap"] is None and not settings["dropout"] and query.shape[-1] == value.shape[-1]:
        return RowAttention.apply(query, key, value, (layout, window, settings["scale"]))
    attended = []
    for states, keys, values, mask in _rows(query, key, value, layout, window):
        attended.append(_attend(states, keys, values, mask, **settings).transpose(1, 2))
    return torch.cat(attended, 1)


def _rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, window: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield for each segment its queries, the keys and values that it sees, and its mask."""
    lengths = layout.lengths
    keys = key.split(lengths, 2)
    values = value.split(lengths, 2)
    queries = query.split([lengths[segment] for _, segment in layout.segments], 2)
    for states, (ancestors, segment) in zip(queries, layout.segments, strict=True):
        seen = (*ancestors, segment)
        mask = layout.mask(layout.num_before(ancestors), lengths[segment], window, query)
        yield states, _joined(keys, seen), _joined(values, seen), mask


def _joined(states: tuple[torch.Tensor, ...], seen: tuple[int, ...]) -> torch.Tensor:
    """Return the states of these segments, one after the other; those of a single segment are no copy."""
    return states[seen[0]] if len(seen) == 1 else torch.cat([states[segment] for segment in seen], 2)


def _visibility(mask: torch.Tensor, window: int | None) -> dict[str, Any]:
    """Return the arguments that hide later keys; where no mask is needed, kernels skip what they hide."""
    length, num_keys = mask.shape
    causal = length == num_keys and (not window or window >= length)
    return {"dropout_p": 0.0, "is_causal": causal, "attn_mask": None if causal else mask}


class RowAttention(torch.autograd.Function):
    """Attention of each prompt and row on a CPU, without a copy of the prompt's keys and values for each row.

    Autograd over `_rows` would hold every row's joined keys, and add up the gradients of the prompt's keys through a
    buffer of zeros for each row. It calls the kernels of `scaled_dot_product_attention` for a CPU (FlashAttention).
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: tuple[Any, ...]
    ) -> torch.Tensor:
        """Return the attended values `[1, N, heads, D]`; `settings` are layout, window and scale of `side_by_side`."""
        layout, window, scale = settings
        attended = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        sums = []
        start = 0
        for states, keys, values, mask in _rows(query, key, value, layout, window):
            rows, logsumexp = flash_forward(states, keys, values, **_visibility(mask, window), scale=scale)
            attended[:, start : start + states.shape[2]] = rows.transpose(1, 2)
            sums.append(logsumexp)
            start += states.shape[2]
        ctx.save_for_backward(query, key, value, attended, *sums)
        ctx.layout, ctx.window, ctx.scale = layout, window, scale
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value from that of the output `[1, N, heads, D]`."""
        query, key, value, attended, *sums = ctx.saved_tensors
        lengths = ctx.layout.lengths
        starts = [0, *accumulate(lengths)]
        query_gradient = torch.empty_like(query)
        key_gradient = torch.zeros_like(key)
        value_gradient = torch.zeros_like(value)
        start = 0
        rows = zip(_rows(query, key, value, ctx.layout, ctx.window), ctx.layout.segments, sums, strict=True)
        for (states, keys, values, mask), (ancestors, segment), logsumexp in rows:
            here = slice(start, start + states.shape[2])
            by_query, by_key, by_value = flash_backward(
                gradient[:, here].transpose(1, 2), states, keys, values, attended[:, here].transpose(1, 2), logsumexp,
                **_visibility(mask, ctx.window), scale=ctx.scale,
            )  # fmt: skip
            query_gradient[:, :, here] = by_query
            first = 0
            for seen in (*ancestors, segment):
                target = slice(starts[seen], starts[seen + 1])
                part = slice(first, first + lengths[seen])
                key_gradient[:, :, target] += by_key[:, :, part]
                value_gradient[:, :, target] += by_value[:, :, part]
                first += lengths[seen]
            start = here.stop
        return query_gradient, key_gradient, value_gradient, None


def side_by_side(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: RowLayout,
    *,
    window: int | None,
    settings: dict[str, Any],
) -> torch.Tensor:
    """Attend by one call for all prompts and rows of like length, padded.

    Args:
        query: `[1, heads, N, D]`.
        key: `[1, key heads, N, D]`.
        value: `[1, key heads, N, D]`.
        layout: the places of prompts and rows.
        window: the sliding window of the layer, if it has one.
        settings: `scale`, `dropout` and `softcap`.

    Returns:
        `[1, N, heads, D]`.
    """
    padded = layout.padded(query.device)
    attended = []
    for queries, keys, values, mask in padded.groups_of(query, key, value, window):
        # [S, heads, T, D] -> [S * T, heads, D]
        attended.append(_attend(queries, keys, values, mask, **settings).transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, padded.packed_places)[None]


def without_padding(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: RowLayout,
    *,
    window: int | None,
    settings: dict[str, Any],
) -> torch.Tensor:
    """Attend by one call for all prompts and rows, with neither padding nor mask; the arguments of `side_by_side`.

    A segment's last query sees the last of its keys, as in FlashAttention since version 2.1.
    """
    joined = layout.joined(query.device)
    keys, values = (states[0].index_select(1, joined.key_places).transpose(0, 1) for states in (key, value))
    attended = varlen_attn(
        query[0].transpose(0, 1),  # [heads, N, D] -> [N, heads, D]
        keys,
        values,
        joined.query_ends,
        joined.key_ends,
        joined.most_queries,
        joined.most_keys,
        scale=settings["scale"],
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[None]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float | None,
    dropout: float,
    softcap: float | None,
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=groups > 1
        )
    key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    weights = (scores if mask is None else scores + mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value


def _mask(*args: Any, config: Any = None, **kwargs: Any) -> torch.Tensor | None:
    # Capped scores are not for sdpa, which may be given no mask at all.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return (eager_mask if capped else sdpa_mask)(*args, config=config, **kwargs)


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, _mask)
