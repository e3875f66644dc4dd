"""Activations of a gated layer that are computed again in the backward pass, so that no step keeps them.

A gated layer multiplies `silu(gate)` by another state, for which autograd keeps the product's two sides, and the gate
too. One of the three follows from another by one cheap operation: a fifth of all that a frozen Llama layer keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import Node, saved_tensors_hooks

# By the name of autograd's node; a node keeps its operation's input under the name that torch documents for hooks.
COMPUTE: dict[str, Callable[[Any], torch.Tensor]] = {
    "SiluBackward0": lambda node: F.silu(node._saved_self),  # noqa: SLF001 - no public name
    "GeluBackward0": lambda node: F.gelu(node._saved_self, approximate=node._saved_approximate),  # noqa: SLF001
}


def recomputed_activations() -> saved_tensors_hooks:
    """Return a context in which a step keeps no output of SiLU or GELU, but how to compute it; gradients are equal."""
    return saved_tensors_hooks(_keep, _restore)


def _keep(saved: torch.Tensor) -> torch.Tensor | Node:
    node = saved.grad_fn
    return saved if node is None or node.name() not in COMPUTE else node


def _restore(kept: torch.Tensor | Node) -> torch.Tensor:
    return kept if isinstance(kept, torch.Tensor) else COMPUTE[kept.name()](kept)
