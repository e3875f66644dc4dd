"""The part of a batch that its targets need, and their loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


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


class SummedCrossEntropy(torch.autograd.Function):
    """The cross entropy that keeps no tensor of the size `[targets, V]` but the logits, which the caller has anyway.

    Torch keeps their log-softmax, and makes two gradients of this size.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        """Return the sum over the targets `[targets]`, without those that are -100."""
        most = logits.amax(-1, keepdim=True)  # Beside it the likeliest tokens keep all their digits.
        sums = (logits - most).exp_().sum(-1, keepdim=True).log_()
        ctx.save_for_backward(logits, targets, most, sums)
        ctx.label_smoothing = label_smoothing
        losses = sums - (1 - label_smoothing) * (logits.gather(1, targets.clamp(min=0)[:, None]) - most)
        if label_smoothing:
            losses -= label_smoothing * (logits.mean(-1, keepdim=True) - most)
        return losses.masked_fill(targets[:, None] == -100, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the logits: their probabilities less those that the targets ask for."""
        logits, targets, most, sums = ctx.saved_tensors
        by_logits = (logits - most).sub_(sums).exp_()
        if ctx.label_smoothing:
            by_logits -= ctx.label_smoothing / logits.shape[1]
        places = targets.clamp(min=0)[:, None]
        by_logits.scatter_add_(1, places, by_logits.new_full(places.shape, ctx.label_smoothing - 1))
        return by_logits.mul_(gradient).masked_fill_((targets == -100)[:, None], 0), None, None


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
    total = SummedCrossEntropy.apply(logits.float(), targets, label_smoothing)
    return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)
