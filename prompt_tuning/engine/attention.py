"""Attention over one packed sequence of prompts and rows: a row sees its prompt and itself.

Registered with transformers as the attention implementation "shared_prefix". A model that is given a `row_layout` runs
the sequence [prompt 1, ..., prompt K, row 1, ..., row B] of shape `[1, N, H]` through its linear layers as it is, with
no padding; only here is it taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

ATTENTION = "shared_prefix"

# What `scaled_dot_product_attention` runs on a CPU.
flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Batch:
    """What of a right-padded batch has to be computed; tensors `[B, T]`.

    Args:
        needed: the tokens that some target follows, and no padding.
        predicts: the positions whose logits predict a target.
        shared: how many tokens open every row, before any prediction.
    """

    input_ids: torch.Tensor
    needed: torch.Tensor
    predicts: torch.Tensor
    shared: int

    @classmethod
    def of(cls, input_ids: torch.Tensor, wanted: torch.Tensor) -> Batch:
        predicts = F.pad(wanted[:, 1:], (0, 1))
        needed = predicts.flip(1).cumsum(1).flip(1) > 0
        opening = ((input_ids == input_ids[:1]) & ~predicts).all(0)
        return cls(input_ids, needed, predicts, int(opening.cumprod(0).sum()))

    @property
    def opening(self) -> torch.Tensor:
        """`[S]`, the ids that open every row."""
        return self.input_ids[0, : self.shared]

    def rest(self) -> Batch:
        """What follows the opening."""
        parts = (each[:, self.shared :] for each in (self.input_ids, self.needed, self.predicts))
        return Batch(*parts, shared=0)


@dataclass(frozen=True)
class RowLayout:
    """Where prompts and rows stand in a packed sequence.

    Args:
        prompts: length of each prompt.
        rows: length of each row.
        owners: for each row the number of its prompt.
        prefixes: the keys and values of each prompt where they are known, one row each; the packed sequence then holds
            rows alone.
        kept: by layer the keys and values of the packed sequence, both `[1, key heads, N, D]`, if they are wanted.
    """

    prompts: tuple[int, ...]
    rows: tuple[int, ...]
    owners: tuple[int, ...]
    prefixes: tuple[Cache, ...] = ()
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None
    _masks: dict[Any, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def lengths(self) -> list[int]:
        """Of all segments that have keys: the prompts, then the rows."""
        return [*self.prompts, *self.rows]

    def segments(self) -> list[tuple[int | None, int]]:
        """Each segment that has queries, as the segment it sees before itself and its own number."""
        prompts = [] if self.prefixes else [(None, number) for number in range(len(self.prompts))]
        return prompts + [(owner, len(self.prompts) + number) for number, owner in enumerate(self.owners)]

    def positions(self, device: torch.device) -> torch.Tensor:
        """`[1, N]`: a prompt counts from 0, a row goes on where its prompt ends."""
        lengths = self.lengths
        starts = [0 if before is None else lengths[before] for before, _ in self.segments()]
        spans = [
            torch.arange(start, start + lengths[own], device=device)
            for start, (_, own) in zip(starts, self.segments(), strict=True)
        ]
        return torch.cat(spans)[None]

    def mask(self, before: int, own: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """`[own, before + own]`, 0 where a token may look and -inf elsewhere: causal, as far as the window reaches."""
        key = (before, window, like.dtype)
        if key not in self._masks:  # one for the longest row, made once a step
            longest = max(self.lengths)
            query = torch.arange(before, before + longest, device=like.device)[:, None]
            self._masks[key] = _additive(query, torch.arange(before + longest, device=like.device)[None], window, like)
        return self._masks[key][:own, : before + own]

    @cached_property
    def padded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Segments side by side: indices of queries and which are real, both `[S, T]`; of keys `[S, U]`, -1 for none;
        and how many keys stand before a segment's own, `[S]`.
        """
        lengths = self.lengths
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
        hidden = sum(self.prompts) if self.prefixes else 0
        width = max(lengths[own] for _, own in self.segments())
        reach = width + max(self.prompts, default=0)
        query, real, key, first = [], [], [], []
        for before, own in self.segments():
            tokens = list(range(starts[own], starts[own] + lengths[own]))
            seen = [] if before is None else list(range(starts[before], starts[before] + lengths[before]))
            query.append([token - hidden for token in tokens] + [0] * (width - len(tokens)))
            real.append([True] * len(tokens) + [False] * (width - len(tokens)))
            key.append(seen + tokens + [-1] * (reach - len(seen) - len(tokens)))
            first.append(len(seen))
        return tuple(torch.tensor(each) for each in (query, real, key, first))

    def padded_mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """`[S, 1, T, U]` for the padded segments."""
        if window not in self._masks:
            query, real, key, first = (each.to(like.device) for each in self.padded)
            place = first[:, None, None] + torch.arange(query.shape[1], device=like.device)[:, None]
            mask = _additive(place, torch.arange(key.shape[1], device=like.device), window, like)
            # A padded query sees everything: its output is dropped, and must only not be NaN.
            self._masks[window] = mask.masked_fill(~real[..., None], 0)[:, None]
        return self._masks[window]


def _additive(query: torch.Tensor, key: torch.Tensor, window: int | None, like: torch.Tensor) -> torch.Tensor:
    distance = query - key
    hidden = (distance < 0) | (distance >= window) if window else distance < 0
    return torch.zeros(distance.shape, dtype=like.dtype, device=like.device).masked_fill(hidden, float("-inf"))


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_layout: RowLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query `[1, heads, N, D]` over key and value `[1, key heads, N, D]`; returns `[1, N, heads, D]`.

    Without a layout it is transformers' own sdpa attention (and for a capped score, Gemma 2's).
    """
    settings = {"scale": scaling, "dropout": dropout, "softcap": softcap}
    if row_layout is None:
        if softcap is not None:
            return _attend(query, key, value, attention_mask, **settings).transpose(1, 2), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if row_layout.kept is not None:
        row_layout.kept[module.layer_idx] = key, value
    if row_layout.prefixes:
        layers = [prefix.layers[module.layer_idx] for prefix in row_layout.prefixes]
        key = torch.cat([*(layer.keys.to(key.dtype) for layer in layers), key], 2)
        value = torch.cat([*(layer.values.to(value.dtype) for layer in layers), value], 2)
    # On a CPU padding costs more than a call for each row; on an accelerator the calls do.
    attention = row_by_row if query.device.type == "cpu" else side_by_side
    return attention(query, key, value, row_layout, sliding_window, settings), None


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: RowLayout,
    window: int | None,
    settings: dict[str, Any],
) -> torch.Tensor:
    """One call for each prompt and row, without padding."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (states.to(torch.get_autocast_dtype("cpu")) for states in (query, key, value))
    if settings["softcap"] is None and not settings["dropout"] and query.shape[-1] == value.shape[-1]:
        return RowAttention.apply(query, key, value, layout, window, settings["scale"])
    attended = [_attend(*each, **settings).transpose(1, 2) for each in _rows(query, key, value, layout, window)]
    return torch.cat(attended, 1)


def _rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout, window: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each segment its queries, the keys and values it sees, and its mask."""
    lengths, segments = layout.lengths, layout.segments()
    keys, values = key.split(lengths, 2), value.split(lengths, 2)
    for states, (before, own) in zip(query.split([lengths[own] for _, own in segments], 2), segments, strict=True):
        if before is None:
            yield states, keys[own], values[own], layout.mask(0, lengths[own], window, query)
        else:
            seen = (torch.cat([each[before], each[own]], 2) for each in (keys, values))
            yield states, *seen, layout.mask(lengths[before], lengths[own], window, query)


class RowAttention(torch.autograd.Function):
    """sdpa of each prompt and row on a CPU, that keeps no copy of the prompt's keys and values for each row.

    Autograd over `_rows` would hold every row's joined keys, and add up the gradients of the prompt's through a buffer
    of zeros for each row.
    """

    @staticmethod
    def forward(ctx, query, key, value, layout, window, scale):
        attended = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        sums, start = [], 0
        for states, keys, values, mask in _rows(query, key, value, layout, window):
            rows, logsumexp = flash_forward(states, keys, values, 0.0, False, attn_mask=mask, scale=scale)
            attended[:, start : start + states.shape[2]] = rows.transpose(1, 2)
            sums.append(logsumexp)
            start += states.shape[2]
        ctx.save_for_backward(query, key, value, attended, *sums)
        ctx.layout, ctx.window, ctx.scale = layout, window, scale
        return attended

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, attended, *sums = ctx.saved_tensors
        lengths, segments = ctx.layout.lengths, ctx.layout.segments()
        starts = [0, *accumulate(lengths)]
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        start = 0
        rows = zip(_rows(query, key, value, ctx.layout, ctx.window), segments, sums, strict=True)
        for (states, keys, values, mask), (before, own), logsumexp in rows:
            here = slice(start, start + states.shape[2])
            by_query, by_key, by_value = flash_backward(
                gradient[:, here].transpose(1, 2), states, keys, values, attended[:, here].transpose(1, 2), logsumexp,
                0.0, False, attn_mask=mask, scale=ctx.scale,
            )  # fmt: skip
            of_query[:, :, here] = by_query
            first = 0
            for segment in (own,) if before is None else (before, own):
                there, part = slice(starts[segment], starts[segment + 1]), slice(first, first + lengths[segment])
                of_key[:, :, there] += by_key[:, :, part]
                of_value[:, :, there] += by_value[:, :, part]
                first += lengths[segment]
            start = here.stop
        return of_query, of_key, of_value, None, None, None


def side_by_side(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: RowLayout,
    window: int | None,
    settings: dict[str, Any],
) -> torch.Tensor:
    """One call for all prompts and rows, padded."""
    places, real, seen, _ = (each.to(query.device) for each in layout.padded)
    # [1, heads, N, D] -> [S, heads, T, D]
    query = query[0].transpose(0, 1)[places].transpose(1, 2)
    key, value = (states[0].transpose(0, 1)[seen].transpose(1, 2) for states in (key, value))
    attended = _attend(query, key, value, layout.padded_mask(window, query), **settings)
    return attended.transpose(1, 2)[real][None]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
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
