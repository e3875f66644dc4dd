"""Measure what a training costs: the seconds of a step, and the memory that it adds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

PROCESS = Path("/proc/self")


class TrainingCosts(TrainerCallback):
    """Measure the seconds of the steps, without evaluations and checkpoints, and the peak of the memory.

    The memory is that of the accelerator. On a CPU it is that of this process, without the files that are mapped into
    it, such as the frozen weights; only Linux tells its peak.
    """

    def __init__(self) -> None:
        """Start without a step."""
        self.seconds = 0.0
        self.num_steps = 0
        self.last = 0.0
        self.before: int | None = None
        self.on_accelerator = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, and the search for the peak."""
        self.on_accelerator = args.device.type != "cpu" and torch.accelerator.is_available()
        gc.collect()
        if self.on_accelerator:
            torch.accelerator.reset_peak_memory_stats()
            self.before = torch.accelerator.memory_allocated()
        else:
            self.before = _start_peak_of_process()
        self.last = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a step, with the loading of its batch."""
        now = time.perf_counter()
        self.seconds += now - self.last
        self.num_steps += 1
        self.last = now

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave out the seconds of an evaluation."""
        self.last = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave out the seconds of a checkpoint."""
        self.last = time.perf_counter()

    def facts(self) -> dict[str, float]:
        """Return the costs for results.json; those that were not measured are missing."""
        costs: dict[str, float] = {}
        if self.num_steps:
            costs["seconds_per_step"] = round(self.seconds / self.num_steps, 4)
        if self.before is not None:
            peak = torch.accelerator.max_memory_allocated() if self.on_accelerator else _peak_of_process()
            costs["added_memory_bytes"] = max(peak - self.before, 0)
        return costs


def _start_peak_of_process() -> int | None:
    """Return the bytes that this process holds, and let Linux search their peak anew; None on other systems."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # Otherwise glibc keeps what earlier runs freed, and a run seems to add less.
    try:
        (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # See proc(5): it resets VmHWM.
        return _status("RssAnon")
    except (OSError, KeyError):
        return None


def _peak_of_process() -> int:
    """Return the most bytes that this process has held since the start, without the pages of mapped files."""
    return _status("VmHWM") - _status("RssFile")


def _status(name: str) -> int:
    """Return an entry of /proc/self/status in bytes; raise a KeyError if this Linux does not have it."""
    entries = {}
    for line in (PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        entries[key] = value
    return int(entries[name].split()[0]) * 1024
