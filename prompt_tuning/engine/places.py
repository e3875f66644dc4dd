"""Move rows right behind their prompt, and put what a forward returns back at the places of the caller's tokens.

Padding on the left would stand between a prompt and its row. So it is moved to the right before a forward, and the
outputs `[B, P + T, ...]` are put back afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import ModelOutput

from prompt_tuning.errors import AdapterError


def starts_with_padding(mask: torch.Tensor) -> bool:
    """Return whether a row of the mask `[B, T]` has padding before a token."""
    return bool((mask[:, 1:] > mask[:, :-1]).any())


def rows_first(mask: torch.Tensor) -> torch.Tensor:
    """Return the columns `[B, T]` of each row's tokens in their order, and then those of its padding."""
    return mask.argsort(dim=1, descending=True, stable=True)


def select(states: torch.Tensor, columns: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Return a tensor `[B, ..., T, ...]`, with T columns in dimension `dim`, with the columns `[B, U]` of each row."""
    shape = [1] * states.dim()
    shape[0], shape[dim] = columns.shape
    return states.take_along_dim(columns.view(shape), dim)


def put_back(output: ModelOutput, order: torch.Tensor, *, with_cache: bool = False) -> ModelOutput:
    """Return the output of a forward on reordered rows, with its columns in the order of the caller.

    Args:
        output: tensors `[B, T, ...]` or `[B, P + T, ...]`.
        order: the column of the caller at each column of the output.
        with_cache: return the cache, too, which is changed.

    Raises:
        AdapterError: the output has tensors of another shape, such as the logits of a router.
    """
    back = order.argsort(dim=1)

    def at(states: torch.Tensor, dim: int = 1) -> torch.Tensor:
        virtual = states.shape[dim] - order.shape[1]
        first = torch.arange(virtual, device=order.device).expand(len(order), -1)
        return select(states, torch.cat([first, back + virtual], 1), dim)

    further = output.keys() - {"logits", "hidden_states", "attentions", "cache"}
    if further:
        raise AdapterError(f"forward: {', '.join(further)} of rows with padding before tokens. Pad them on the right.")
    moved: dict[str, Any] = {"logits": at(output.logits)}
    if "hidden_states" in output:
        moved["hidden_states"] = tuple(map(at, output.hidden_states))
    if "attentions" in output:
        moved["attentions"] = tuple(at(at(weights, 2), 3) for weights in output.attentions)
    if with_cache:
        for layer in output.cache.layers:
            layer.keys = at(layer.keys, 2)
            layer.values = at(layer.values, 2)
        moved["cache"] = output.cache
    return type(output)(**moved)
