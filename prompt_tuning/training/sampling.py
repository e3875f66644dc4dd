"""The order in which rows are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.state import GradientState
from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from prompt_tuning.training.shared_text import SharedText, text_families

ORDER = "order.pt"  # Version 0.1.0 kept the order of an epoch in this file.


def interrupted_order(checkpoint: Path | None) -> torch.Tensor | None:
    """Return the state of torch's generator from which version 0.1.0 drew the order of the epoch that was stopped.

    Raises:
        Exception: the file holds something else. It is the error of torch.
    """
    if checkpoint is None or not (checkpoint / ORDER).is_file():
        return None
    order = torch.load(checkpoint / ORDER, weights_only=True)
    torch.Generator().set_state(order)
    return order


class EpochSampler(LengthGroupedSampler):
    """Group rows of like length, in an order that depends only on the seed and the epoch.

    Unlike LengthGroupedSampler, which draws from torch's global generator, an epoch has the same order in a resumed
    run and on every process.

    Args:
        batch_size: rows of a batch of all processes together.
        lengths: tokens of each row.
        seed: the order of an epoch is drawn from `seed + epoch`.
        interrupted_order: see the function of this name. The first pass over the rows uses it.
        shared_text: brings rows that share text into the same batches, in groups of like length.
    """

    def __init__(
        self,
        batch_size: int,
        lengths: list[int],
        seed: int,
        interrupted_order: torch.Tensor | None = None,
        shared_text: SharedText | None = None,
    ) -> None:
        """Start in the first epoch."""
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0
        self.interrupted_order = interrupted_order
        self.shared_text = shared_text
        self.passes = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass over the rows."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of all rows."""
        self.passes += 1
        if self.interrupted_order is None or self.passes > 1:
            self.generator.manual_seed(self.seed + self.epoch)
            # DataLoader drew one number before version 0.1.0 drew the order, so the first epoch keeps its order.
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        else:
            self.generator.set_state(self.interrupted_order)
        if self.shared_text is not None:
            return iter(self.shared_text.order(self.lengths, self.batch_size, self.generator))
        return super().__iter__()

    def save_interrupted_order(self, checkpoint: Path) -> None:
        """Save the order of version 0.1.0 in a checkpoint as long as the interrupted epoch lasts."""
        if self.interrupted_order is not None and self.passes == 1 and not GradientState().end_of_dataloader:
            torch.save(self.interrupted_order, checkpoint / ORDER)


def epoch_sampler(
    sampler: LengthGroupedSampler, rows: Dataset, args: TrainingArguments, checkpoint: Path | None
) -> EpochSampler:
    """Return an EpochSampler of the same rows as Trainer's sampler.

    Args:
        sampler: the sampler of Trainer.
        rows: the training rows.
        args: the training arguments.
        checkpoint: the folder that the training resumes from.
    """
    group_shared = getattr(args, "group_shared", 1)
    shared_text = None
    if group_shared > 1:
        shared_text = SharedText(text_families(rows), group_shared, args.train_batch_size)
    return EpochSampler(
        sampler.batch_size * args.world_size,
        sampler.lengths,
        args.seed if args.data_seed is None else args.data_seed,
        interrupted_order(checkpoint),
        shared_text,
    )
