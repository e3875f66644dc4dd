"""Rows of a batch right behind their prompt, and what a forward returns for them at the places of the caller's tokens.

Padding on the left would stand between a prompt and its row. So it is moved to the right before a forward, and the
outputs `[B, P + T, ...]` are put back afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast


def rows_first(mask: torch.Tensor) -> torch.Tensor:
    """Return the columns `[B, T]` of each row's tokens in their order, and then those of its padding."""
    return mask.argsort(dim=1, descending=True, stable=True)


def select(states: torch.Tensor, columns: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Return a tensor `[B, ..., T, ...]`, with T columns in dimension `dim`, with the columns `[B, U]` of each row."""
    shape = [1] * states.dim()
    shape[0], shape[dim] = columns.shape
    return states.take_along_dim(columns.view(shape), dim)


def put_back(output: CausalLMOutputWithPast, order: torch.Tensor, *, with_cache: bool = False) -> dict[str, Any]:
    """Return what a forward has returned for rows whose columns are in this order `[B, T]`, with those of the caller.

    Args:
        output: tensors `[B, T, ...]` or `[B, P + T, ...]`.
        order: the column of the caller at each column of the output.
        with_cache: return the cache, too, which is changed.
    """
    back = order.argsort(dim=1)

    def at(states: torch.Tensor, dim: int = 1) -> torch.Tensor:
        virtual = states.shape[dim] - order.shape[1]
        first = torch.arange(virtual, device=order.device).expand(len(order), -1)
        return select(states, torch.cat([first, back + virtual], 1), dim)

    moved: dict[str, Any] = {"logits": at(output.logits)}
    if output.hidden_states is not None:
        moved["hidden_states"] = tuple(map(at, output.hidden_states))
    if output.attentions is not None:
        moved["attentions"] = tuple(at(at(weights, 2), 3) for weights in output.attentions)
    if with_cache:
        for layer in output.cache.layers:
            layer.keys = at(layer.keys, 2)
            layer.values = at(layer.values, 2)
        moved["cache"] = output.cache
    return moved
