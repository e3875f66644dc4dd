"""Keep the keys and values of prompts for further batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from prompt_tuning.engine.prompt_names import PromptName


class KeptPrompts:
    """The caches of prompts that are kept.

    Attributes:
        common_prefix: `[S]`, the ids behind each prompt in its cache; None while no cache is kept.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.common_prefix: torch.Tensor | None = None
        self._caches: dict[PromptName, DynamicCache] = {}
        self._reused: dict[PromptName, DynamicCache] = {}
        self._state: object = None

    @contextmanager
    def keep(self, common_prefix: torch.Tensor) -> Iterator[None]:
        """Keep caches of prompts and of these ids `[S]` within the context."""
        self.common_prefix = common_prefix
        try:
            yield
        finally:
            self.common_prefix = None
            self._caches = {}

    @contextmanager
    def reuse(self, state: object, no_ids: torch.Tensor) -> Iterator[None]:
        """Keep caches of prompts within the context and for the next one that has the same state.

        Args:
            state: what the caches depend on, from `cache_state`.
            no_ids: `[0]`.
        """
        if state != self._state:
            self._reused = {}
            self._state = state
        with self.keep(no_ids):
            self._caches = self._reused
            yield

    def caches(self, names: Sequence[PromptName], compute: Callable[[PromptName], DynamicCache]) -> list[DynamicCache]:
        """Return the caches of these prompts, and compute those that are not kept yet."""
        for name in names:
            if name not in self._caches:
                self._caches[name] = compute(name)
        return [self._caches[name] for name in names]


def cache_state(base: nn.Module, prompts: nn.Module, device: str) -> tuple[Any, ...]:
    """Return what keys and values of prompts depend on, to compare.

    The values of the prompts are compared, and for the base model the places of its weights and the number of their
    changes. PyTorch does not count a change in place of a weight's `.data`.

    Args:
        base: the model without its prompts.
        prompts: the modules that make the prompts.
        device: the type of device that the model is on.
    """
    values = [tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes() for tensor in _tensors(prompts)]
    weights = []
    for tensor in _tensors(base):
        # Changes of weights that were loaded in inference mode are not counted, so these never equal others.
        changes = object() if tensor.is_inference() else tensor._version  # noqa: SLF001, PyTorch has no public name
        weights.append((tensor.data_ptr(), tensor.dtype, str(tensor.device), changes))
    # Keys that were made in inference mode cannot be changed outside of it.
    numbers = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), torch.is_inference_mode_enabled()
    return numbers, base.training, values, weights


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())
