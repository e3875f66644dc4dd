"""Provide GPUs: real ones where there are some, otherwise pretended ones."""

import pytest
from helpers.pretend_cuda import pretended_cuda
from helpers.real_cuda import GPU, IS_REAL, real_cuda


@pytest.fixture
def on_gpu(monkeypatch):
    """Return a context in which the process runs on a GPU; a test skips if the GPU that it names is missing."""
    on_device = real_cuda if IS_REAL else pretended_cuda
    return lambda device=GPU: on_device(monkeypatch, device)
