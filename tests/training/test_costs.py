"""The seconds of a step leave out evaluations and checkpoints, and the memory of a training is its own."""

import sys

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from prompt_tuning.training import costs
from prompt_tuning.training.costs import TrainingCosts

MIB = 2**20


@pytest.fixture
def event(tmp_path):
    """Return a function that calls a callback as Trainer does."""
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    return lambda callback, name: getattr(callback, name)(args, TrainerState(), TrainerControl())


def test_evaluations_and_checkpoints_are_not_counted(event, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(costs.time, "perf_counter", lambda: clock[0])
    measured = TrainingCosts()
    for name, seconds in (
        ("on_train_begin", 5), ("on_step_end", 2), ("on_evaluate", 70), ("on_save", 30), ("on_step_end", 3),
    ):  # fmt: skip
        clock[0] += seconds
        event(measured, name)
    assert measured.facts()["seconds_per_step"] == 2.5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_a_later_training_is_not_said_to_add_less_memory(event):
    added = []
    last = []
    for _ in range(2):
        measured = TrainingCosts()
        event(measured, "on_train_begin")
        # The allocator keeps such small tensors when they are freed, if a later one is not freed.
        tensors = [torch.ones(MIB // 256) for _ in range(4096)]
        last.append(tensors[-1])
        del tensors
        added.append(measured.facts()["added_memory_bytes"])
    assert all(60 * MIB < size < 96 * MIB for size in added)


def test_without_a_peak_nothing_is_said_about_memory(event, monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "PROCESS", tmp_path / "none")
    measured = TrainingCosts()
    event(measured, "on_train_begin")
    assert measured.facts() == {}
