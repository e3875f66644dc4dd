"""The values that a number may have: one table for recipes and command lines.

It imports nothing large, so that `--help` shows it at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The numbers that a setting takes; none of them is infinite.

    Args:
        low: the least number.
        high: the largest number, or None.
        above: `low` itself is too small.
        below: `high` itself is too large.
        steps: a number from 1 is whole, because it counts steps; a smaller one is a share of all steps.
        besides: another number that has a meaning of its own.
    """

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False
    steps: bool = False
    besides: int | None = None

    def __contains__(self, value: float) -> bool:
        """Return whether a setting takes a number."""
        if value == self.besides:
            return True
        if not abs(value) <= sys.float_info.max or value < self.low or (self.above and value == self.low):
            return False
        if self.steps and value >= 1 and value != int(value):
            return False
        return self.high is None or value < self.high or (value == self.high and not self.below)

    def __str__(self) -> str:
        """Return words that follow "it must be"."""
        text = f"{'above' if self.above else 'at least'} {self.low}"
        if self.high is not None:
            text += f" and {'below' if self.below else 'at most'} {self.high}"
        if self.steps:
            text += ", and whole from 1 on"
        return text if self.besides is None else f"{text}, or {self.besides}"


COUNT = Range(1)
PERCENT = Range(0, 100)
SEED = Range(0, 2**32 - 1)  # NumPy takes no larger one.
NOT_NEGATIVE = Range(0)
RATE = Range(0, above=True)
_POSITIVE = Range(0, above=True)
_SHARE = Range(0, 1, below=True)
_WRITTEN = Range(1, 100_000)  # The recipe of a run may be a stranger's, and its model may never end a text.
_STEPS = Range(0, above=True, steps=True)

RANGES = {
    # What an API may be asked, and cost.
    "api_concurrency": COUNT,
    "max_cost": NOT_NEGATIVE,
    # How much data is read.
    "max_train_samples": COUNT,
    "max_eval_samples": COUNT,
    "max_predict_samples": COUNT,
    "preprocessing_num_workers": COUNT,
    "buffer_size": COUNT,
    "split_seed": SEED,
    # What a prompt is, and how rows are encoded.
    "num_virtual_tokens": NOT_NEGATIVE,  # With 0 only text of the template is trained.
    "num_frozen_tokens": NOT_NEGATIVE,
    "num_ranks": COUNT,
    "init_demonstrations": COUNT,
    "init_demonstration_tokens": COUNT,
    "encoder_hidden_size": COUNT,
    "lora_r": COUNT,
    "lora_alpha": COUNT,
    "lora_dropout": _SHARE,
    "num_demonstrations": NOT_NEGATIVE,
    "max_source_tokens": COUNT,
    "max_target_tokens": _WRITTEN,
    "max_teacher_tokens": COUNT,
    # How it is trained.
    "per_device_train_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "num_train_epochs": _POSITIVE,
    "max_steps": Range(1, besides=-1),
    "learning_rate": NOT_NEGATIVE,  # With 0 a run measures where its prompt starts.
    "layer_vectors_learning_rate": NOT_NEGATIVE,
    "warmup_steps": Range(0, steps=True),
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "label_smoothing_factor": _SHARE,
    "neftune_noise_alpha": _POSITIVE,
    "early_stopping_patience": COUNT,
    "early_stopping_threshold": NOT_NEGATIVE,
    "seed": SEED,
    "data_seed": SEED,
    "group_shared": COUNT,
    # When it is evaluated, saved and logged.
    "per_device_eval_batch_size": COUNT,
    "per_device_eval_batch_tokens": COUNT,
    "eval_accumulation_steps": COUNT,
    "eval_delay": NOT_NEGATIVE,
    "eval_steps": _STEPS,
    "save_steps": _STEPS,
    "logging_steps": _STEPS,
    "save_total_limit": NOT_NEGATIVE,  # Trainer keeps all checkpoints for 0.
    "generation_max_length": _WRITTEN,
    "generation_num_beams": Range(1, 100),
    # The machine.
    "torch_empty_cache_steps": COUNT,
    "dataloader_num_workers": NOT_NEGATIVE,
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "local_rank": Range(0, besides=-1),
}
"""The range of every setting that is a number, except the sizes of splits, which are shares or numbers of rows."""


def range_error(name: str, value: object) -> str | None:
    """Return what is wrong with the number that a setting has, or None."""
    allowed = RANGES.get(name)
    if allowed is None or not isinstance(value, int | float) or value in allowed:
        return None
    return f"{name} is {value}; it must be {allowed}"
