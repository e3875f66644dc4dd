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
        shared: the number of tokens with which all rows begin, before any prediction.
    """

    input_ids: torch.Tensor
    needed: torch.Tensor
    predicts: torch.Tensor
    shared: int

    @classmethod
    def from_targets(cls, input_ids: torch.Tensor, is_target: torch.Tensor) -> Batch:
        """Return the batch of right-padded ids `[B, T]` whose targets are where `is_target` `[B, T]` is true.

        Rows without any target get the second token of the first row as one. Each process has to run all layers in a
        step.
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
        """`[S]`, the ids with which all rows begin."""
        return self.input_ids[0, : self.shared]

    def rest(self) -> Batch:
        """Return the columns after the common prefix."""
        start = self.shared
        return Batch(self.input_ids[:, start:], self.needed[:, start:], self.predicts[:, start:], shared=0)


class SummedCrossEntropy(torch.autograd.Function):
    """Cross entropy that keeps no tensor of the size `[targets, V]` except the logits, which the caller keeps anyway.

    `torch.nn.functional.cross_entropy` also keeps the log-softmax, and makes two gradients of this size.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        """Return the sum over the targets `[targets]`, without those that are -100."""
        # All terms are differences from the largest logit, so that a loss near 0 loses no digits.
        largest = logits.amax(-1, keepdim=True)
        log_sums = (logits - largest).exp_().sum(-1, keepdim=True).log_()
        ctx.save_for_backward(logits, targets, largest, log_sums)
        ctx.label_smoothing = label_smoothing
        losses = log_sums - (1 - label_smoothing) * (logits.gather(1, targets.clamp(min=0)[:, None]) - largest)
        if label_smoothing:
            losses -= label_smoothing * (logits.mean(-1, keepdim=True) - largest)
        return losses.masked_fill(targets[:, None] == -100, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the logits: the model's probabilities minus those of the targets."""
        logits, targets, largest, log_sums = ctx.saved_tensors
        logit_gradient = (logits - largest).sub_(log_sums).exp_()
        if ctx.label_smoothing:
            logit_gradient -= ctx.label_smoothing / logits.shape[1]
        columns = targets.clamp(min=0)[:, None]
        logit_gradient.scatter_add_(1, columns, logit_gradient.new_full(columns.shape, ctx.label_smoothing - 1))
        return logit_gradient.mul_(gradient).masked_fill_((targets == -100)[:, None], 0), None, None


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
        num_items_in_batch: divides the sum, such as the number of targets in an accumulated batch; by default the
            number of these targets.
        label_smoothing: the share of each target that is spread over the vocabulary.
    """
    total = SummedCrossEntropy.apply(logits.float(), targets, label_smoothing)
    return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)
