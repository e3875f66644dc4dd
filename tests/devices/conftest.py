"""Provide GPUs: real ones where there are some, otherwise pretended ones."""

import pytest
import torch
from helpers.any_lengths import varlen_attn
from helpers.pretend_cuda import pretended_cuda
from helpers.real_cuda import GPU, IS_REAL, real_cuda

from prompt_tuning.engine import attention


@pytest.fixture
def on_gpu(monkeypatch):
    """Return a context in which the process runs on a GPU; a test skips if the GPU that it names is missing."""
    on_device = real_cuda if IS_REAL else pretended_cuda
    return lambda device=GPU: on_device(monkeypatch, device)


@pytest.fixture
def any_lengths(monkeypatch):
    """Let a kernel take segments of any length, in these types of numbers; return the shapes of its calls."""
    made = []

    def noted(query, key, *args, **kwargs):
        made.append((query.shape, key.shape))
        return varlen_attn(query, key, *args, **kwargs)

    def allow(*dtypes):
        monkeypatch.setattr(attention, "varlen_attn", noted)
        monkeypatch.setattr(
            torch.backends.cuda, "can_use_flash_attention", lambda states: states.query.dtype in dtypes
        )
        return made

    return allow
