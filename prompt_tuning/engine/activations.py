"""Compute the activations of gated layers again in the backward pass, so that no step keeps them.

A gated layer multiplies `silu(gate)` by another state. For the backward pass autograd keeps `gate`, `silu(gate)` and
the other state. Here `silu(gate)`, a fifth of all that a frozen Llama layer keeps, is computed again from `gate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import Node, saved_tensors_hooks

# The keys are names of autograd's nodes. A node keeps its input as `_saved_self`, a name that torch documents.
COMPUTE: dict[str, Callable[[Any], torch.Tensor]] = {
    "SiluBackward0": lambda node: F.silu(node._saved_self),  # noqa: SLF001 - no public name
    "GeluBackward0": lambda node: F.gelu(node._saved_self, approximate=node._saved_approximate),  # noqa: SLF001
}


def recomputed_activations() -> saved_tensors_hooks:
    """Return a context in which a step keeps no output of SiLU or GELU; the gradients stay the same bit for bit."""
    return saved_tensors_hooks(_pack, _unpack)


def _pack(saved: torch.Tensor) -> torch.Tensor | Node:
    node = saved.grad_fn
    return saved if node is None or node.name() not in COMPUTE else node


def _unpack(packed: torch.Tensor | Node) -> torch.Tensor:
    return packed if isinstance(packed, torch.Tensor) else COMPUTE[packed.name()](packed)
