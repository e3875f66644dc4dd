"""The order in which rows are trained on, which a run that goes on can draw again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class RepeatableSampler(LengthGroupedSampler):
    """`LengthGroupedSampler`, whose order of an epoch can be drawn again.

    It draws from torch's own generator, whose state at an epoch's start no checkpoint of Trainer has: a run that goes
    on in a later epoch would go through that epoch's rows in the order of the first.

    Args:
        drawn_from: the state of the generator at the start of the epoch that is gone through.
        draw_from: the state to draw the next order from, once; None for the generator's own.
    """

    drawn_from: torch.Tensor | None = None
    draw_from: torch.Tensor | None = None

    def __iter__(self) -> Iterator[int]:
        if self.draw_from is not None:
            # Trainer sets the state to go on with once the rows that were trained on are past.
            torch.set_rng_state(self.draw_from)
        self.drawn_from, self.draw_from = torch.get_rng_state(), None
        return super().__iter__()
