"""Runs that stop before their last step, and go on from there: on a signal, or for want of a better score."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import Accelerator
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from prompt_tuning.errors import Stopped

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class EarlyStopping(EarlyStoppingCallback):
    """Transformers' own, which a resumed training starts with all its patience again; this one has what it had."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.get(type(self).__name__, self.state())
        self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class StopOnSignal(TrainerCallback):
    """After a signal, saves a checkpoint at the end of the step and raises `Stopped`.

    Trainer's own way, `enable_jit_checkpoint`, waits three seconds, knows SIGTERM alone, saves before the optimiser's
    step what a resumed run then takes for the time after it, and goes on as if the training were done.

    Of several processes all stop if one got a signal. They ask each other when they meet anyway, at a step that logs,
    evaluates or saves.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received: signal.Signals | None = None
        self.stopping = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        self.received = signal.Signals(number)
        said = "%s: a checkpoint at the end of this step, then the run stops"
        if self.accelerator.num_processes == 1:  # else torchrun sends every signal twice, and kills after 30 s
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            said += "; a second signal stops it at once"
        logger.info(said, self.received.name)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.accelerator.num_processes == 1:
            self.stopping = self.received is not None
        elif control.should_log or control.should_evaluate or control.should_save:
            if self.received:
                self.accelerator.set_trigger()
            self.stopping = self.accelerator.check_trigger()
        control.should_save |= self.stopping

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stopping:
            # Not should_training_stop: the best checkpoint would be loaded, and this one perhaps be removed.
            checkpoint = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            raise Stopped(self.received or signal.SIGTERM, state.global_step, str(checkpoint))


@contextmanager
def stopping_on_signals(accelerator: Accelerator) -> Iterator[StopOnSignal]:
    """A callback that SIGINT and SIGTERM reach within the block; in any thread but the main one they do not."""
    callback = StopOnSignal(accelerator)
    if threading.current_thread() is not threading.main_thread():
        yield callback
        return
    heard = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]  # as SIGINT in a shell's background
    before = {each: signal.signal(each, callback.receive) for each in heard}
    try:
        yield callback
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if callback.received:
        signal.raise_signal(callback.received)  # which came after the last step
