"""Provide pretended GPUs."""

import pytest
from helpers.pretend_cuda import pretended_cuda


@pytest.fixture
def on_gpu(monkeypatch):
    """Return a context in which the process runs on a pretended GPU, by default the second of two."""
    return lambda device="cuda:1": pretended_cuda(monkeypatch, device)
