"""Losses and gradients that are no numbers: found before anything is logged, evaluated or saved of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from prompt_tuning.errors import TrainingError

ROWS_NAMED = 16
STEPS_KEPT = 100


@dataclass
class Step:
    """What a step left on the device: the loss of each of its batches with its rows, and the norm of its gradient."""

    losses: list[torch.Tensor] = field(default_factory=list)
    rows: list[dict[str, torch.Tensor]] = field(default_factory=list)
    gradient_norm: torch.Tensor | float = 0.0

    def problem(self) -> str | None:
        """What is not finite, if anything; waits for the device."""
        bad = [loss.item() for loss in self.losses if not math.isfinite(loss)]
        if bad:
            return f"the loss is {bad[0]}"
        return (
            None if math.isfinite(self.gradient_norm) else f"the norm of the gradient is {float(self.gradient_norm)}"
        )

    def named_rows(self, name_row: Callable[..., str]) -> list[str]:
        """The rows of the batches without a finite loss, or of all."""
        bad = [rows for loss, rows in zip(self.losses, self.rows, strict=True) if not math.isfinite(loss)]
        numbers = [zip(*(each.tolist() for each in rows.values()), strict=True) for rows in bad or self.rows]
        return [name_row(*row) for batch in numbers for row in batch]


class Divergence:
    """The steps since the last look.

    Looking at a number waits for the device, and so is done for many steps at once, when a step logs, evaluates or
    saves, or ends the training, and at the latest after `STEPS_KEPT` steps.

    Args:
        name_row: what a row is called, by its `row`, and with several tasks also by its `task_ids`.
    """

    def __init__(self, name_row: Callable[..., str]) -> None:
        self.name_row = name_row
        self.steps: dict[int, Step] = {}

    def add_batch(self, step: int, loss: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        kept = self.steps.setdefault(step, Step())
        kept.losses.append(loss)
        kept.rows.append({name: inputs[name] for name in ("row", "task_ids") if name in inputs and "row" in inputs})

    def add_gradient(self, step: int, norm: torch.Tensor | float) -> None:
        self.steps.setdefault(step, Step()).gradient_norm = norm

    def check(self) -> None:
        """Look at all steps, and forget them.

        Raises:
            TrainingError: a loss or the norm of a gradient is nan or infinite; of the first such step.
        """
        steps, self.steps = self.steps, {}
        number, problem = next(((n, found) for n, step in steps.items() if (found := step.problem())), (0, None))
        if problem is None:
            return
        names = steps[number].named_rows(self.name_row)
        more = f" and {len(names) - ROWS_NAMED} more" if len(names) > ROWS_NAMED else ""
        rows = f"; its rows: {', '.join(names[:ROWS_NAMED])}{more}" if names else ""
        raise TrainingError(
            f"step {number}: {problem}, and nothing was saved of it{rows}. Look at these rows, lower learning_rate, "
            "or leave float16; --resume_from_checkpoint true goes on from the last checkpoint, if one was saved"
        )
