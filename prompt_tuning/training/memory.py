"""Explain too little memory by an error that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

from prompt_tuning.errors import TrainingError, first_line

IN_TRAINING = (
    "lower per_device_train_batch_size and raise gradient_accumulation_steps, or set activation_checkpointing: true"
)
IN_EVALUATION = "lower per_device_eval_batch_tokens and per_device_eval_batch_size"


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Raise a TrainingError with this advice when a device reports too little memory."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise TrainingError(f"out of memory ({first_line(error)}); {advice}") from error
