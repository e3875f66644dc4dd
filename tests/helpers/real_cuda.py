"""A real GPU instead of the pretended one, wherever there is one: the same tests, and PyTorch's word for each wait."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.pretend_cuda import has_kernel, sorts

IS_REAL = torch.cuda.is_available()
GPU = f"cuda:{torch.cuda.device_count() - 1}" if IS_REAL else "cuda:1"
"""The GPU of a test: the last real one, or the second of two pretended ones."""
WAIT = "called a synchronizing CUDA operation"


class RealLog:
    """Counts of what a real GPU did, as those of a pretended one."""

    def __init__(self):
        self.kernels = self.sorts = 0
        self.warnings = []

    @property
    def num_waits(self):
        return len(self.warnings)


class Counts(TorchDispatchMode):
    """A mode that counts operations on a GPU, and runs them as they are."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(isinstance(leaf, torch.Tensor) and leaf.is_cuda for leaf in tree_leaves((args, kwargs))):
            self.log.kernels += has_kernel(operation)
            self.log.sorts += sorts(operation, args)
        return operation(*args, **(kwargs or {}))


@contextmanager
def real_cuda(monkeypatch, device):
    """Let this process run on a GPU within the context; return the counts, or skip the test if the GPU is missing."""
    if torch.device(device).index >= torch.cuda.device_count():
        pytest.skip(f"{device} is missing: there are {torch.cuda.device_count()} GPUs")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
    AcceleratorState._reset_state(reset_partial_state=True)
    log = RealLog()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(), Counts(log):
            warnings.filterwarnings("always", WAIT)
            show = warnings.showwarning
            warnings.showwarning = lambda message, *args, **kwargs: (
                log.warnings.append(message) if WAIT in str(message) else show(message, *args, **kwargs)
            )
            yield log
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        AcceleratorState._reset_state(reset_partial_state=True)
