"""The part of a batch that its targets need, and their loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Batch:
    """The part of a right-padded batch that has to be computed; tensors `[B, T]`.

    Args:
        input_ids: the tokens.
        needed: the tokens that some target follows, and no padding.
        predicts: the positions whose logits predict a target.
        shared: how many tokens open every row, before any prediction.
    """

    input_ids: torch.Tensor
    needed: torch.Tensor
    predicts: torch.Tensor
    shared: int

    @classmethod
    def from_targets(cls, input_ids: torch.Tensor, is_target: torch.Tensor) -> Batch:
        """Return the batch of right-padded ids `[B, T]` whose targets are where `is_target` `[B, T]` is true.

        Without a target it is the second token of the first row. Each process has to run all layers in a step.
        """
        if not is_target.any():
            is_target = is_target.clone()
            is_target[0, 1] = True
        predicts = F.pad(is_target[:, 1:], (0, 1))
        needed = predicts.flip(1).cumsum(1).flip(1) > 0
        alike = ((input_ids == input_ids[:1]) & ~predicts).all(0)
        return cls(input_ids, needed, predicts, int(alike.cumprod(0).sum()))

    @property
    def common_prefix(self) -> torch.Tensor:
        """`[S]`, the ids that open every row."""
        return self.input_ids[0, : self.shared]

    def rest(self) -> Batch:
        """Return the columns after the common prefix."""
        start = self.shared
        return Batch(self.input_ids[:, start:], self.needed[:, start:], self.predicts[:, start:], shared=0)


def target_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the summed cross entropy over a number of targets, which has no dimension.

    Args:
        logits: `[targets, V]`.
        targets: `[targets]`; -100 has no loss.
        num_items_in_batch: what the sum is divided by, such as the targets of an accumulated batch; by default the
            number of these targets.
        label_smoothing: the share of each target that is spread over the vocabulary.
    """
    total = F.cross_entropy(
        logits.float(), targets, reduction="sum", ignore_index=-100, label_smoothing=label_smoothing
    )
    return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)
