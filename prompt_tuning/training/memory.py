"""Too little memory: smaller batches that make the same steps, or an error that says what to change."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from prompt_tuning.errors import TrainingError, first_line

logger = logging.getLogger(__name__)

IN_TRAINING = (
    "set auto_find_batch_size: true, which lowers per_device_train_batch_size and makes up for it by "
    "gradient_accumulation_steps, or activation_checkpointing: true"
)
OF_SEVERAL = (
    "lower per_device_train_batch_size and raise gradient_accumulation_steps, or set activation_checkpointing: true"
)
IN_EVALUATION = "lower per_device_eval_batch_tokens and per_device_eval_batch_size"


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turn the errors by which devices report too little memory into a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise TrainingError(f"out of memory ({first_line(error)}); {advice}") from error


def keep_global_batch(trainer: Trainer, attempt: Callable[[int], TrainOutput], rows: int) -> TrainOutput:
    """Train with as many rows at once as memory holds, and accumulate so many batches that a step has the same rows.

    accelerate would take nine tenths of the rows after each failure and Trainer accumulate no more of them, from the
    prompt and the optimiser as the failed attempt left them.

    Args:
        attempt: trains with so many rows a batch.
        rows: to begin with; less than the recipe's in a run that goes on with what it found before.

    Raises:
        TrainingError: not even one row at once fits, or one of several processes is out of memory.
    """
    args = trainer.args
    given = args.per_device_train_batch_size, args.gradient_accumulation_steps
    in_step, restart = given[0] * given[1], restart_of(trainer)
    sizes = [size for size in range(rows // max(1, args.n_gpu), 0, -1) if in_step % size == 0]
    try:
        for size in sizes:
            args.per_device_train_batch_size, args.gradient_accumulation_steps = size, in_step // size
            try:
                return attempt(args.train_batch_size)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if args.world_size > 1:  # the others go on with this step, and would wait
                    raise TrainingError(
                        f"out of memory on process {args.process_index} of {args.world_size}, with {size} rows at "
                        f"once, and auto_find_batch_size is for one process; {OF_SEVERAL}"
                    ) from error
            logger.warning("out of memory with %d rows at once, %d times a step", size, in_step // size)
            restart()
    finally:
        args.per_device_train_batch_size, args.gradient_accumulation_steps = given
    raise TrainingError("out of memory with a single row at once; shorten the rows or the prompt")


def restart_of(trainer: Trainer) -> Callable[[], None]:
    """What puts the trainer back to where it is now."""
    optimizer, generator = trainer.optimizer, torch.get_rng_state()
    optimizer_state = copy.deepcopy(optimizer and optimizer.state_dict())
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    values = [parameter.detach().cpu().clone() for parameter in trained]

    @torch.no_grad()
    def restart() -> None:
        clear_device_cache(garbage_collection=True)
        for parameter, value in zip(trained, values, strict=True):
            parameter.copy_(value)
        trainer.optimizer = optimizer
        if optimizer:
            optimizer.load_state_dict(optimizer_state)
        trainer.divergence.steps.clear()
        torch.set_rng_state(generator)

    return restart
