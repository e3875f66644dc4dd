"""What happens during a training besides its steps: its start, a loss that is not finite, early stopping, signals."""

from __future__ import annotations

import errno
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from prompt_tuning.errors import Stopped, TrainingError
from prompt_tuning.training.distributed import (
    keep_gathered_by_deepspeed,
    keep_gathered_outside_layers,
    remove_duplicate_embedding_name,
)
from prompt_tuning.training.preparation import report_repeated_casts
from prompt_tuning.training.resuming import (
    CHANGED_SETTINGS,
    check_optimizer_state,
    restore_hyperparameters,
    restore_intervals,
)
from prompt_tuning.training.sampling import EpochSampler

logger = logging.getLogger(__name__)

# Windows has no SIGHUP.
SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
ROWS_NAMED = 16
STEPS_KEPT = 100


class TrainingStart(TrainerCallback):
    """Prepare a training where Trainer does not: of a split model, of a resumed run, and the order of each epoch.

    Attributes:
        checkpoint: the folder that the training resumes from.
        changed_settings: its settings that differ from those of the resumed run, each with both values.
        hyperparameters: the settings of the optimiser's groups before its state is loaded.
        sampler: the order of the rows, if they are grouped by length.
        first_step: the steps that were taken before.
    """

    def __init__(self) -> None:
        """Expect a training from the start."""
        self.checkpoint: Path | None = None
        self.changed_settings: dict[str, tuple[Any, Any]] = {}
        self.hyperparameters: list[dict[str, Any]] = []
        self.sampler: EpochSampler | None = None
        self.first_step = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: torch.nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        **kwargs: Any,
    ) -> None:
        """Resume with the present settings, and find the best checkpoint of a run whose folder was moved.

        Raises:
            RecipeError: the checkpoint is of an optimiser of another kind.
        """
        keep_gathered_outside_layers(model)
        keep_gathered_by_deepspeed(model, optimizer)
        remove_duplicate_embedding_name(model)
        report_repeated_casts(model, args)
        self.first_step = state.global_step
        if self.checkpoint is None:
            return
        check_optimizer_state(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps it.
        restore_hyperparameters(optimizer, lr_scheduler, self.hyperparameters, args)
        restore_intervals(state, args)
        if self.changed_settings:
            state.log_history.append({"step": state.global_step, CHANGED_SETTINGS: self.changed_settings})
        if not state.best_model_checkpoint:
            best = self.checkpoint.with_name(f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
            if best.is_dir():
                logger.info("the best checkpoint is %s", best)
                state.best_model_checkpoint = str(best)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the sampler the epoch, since accelerate's loader does not in a resumed run of several processes."""
        if self.sampler:
            self.sampler.set_epoch(int(state.epoch or 0))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Skip the evaluation and the checkpoint of an epoch in which a finished run took no step."""
        if state.global_step == self.first_step:
            control.should_log = False
            control.should_evaluate = False
            control.should_save = False


@dataclass
class Step:
    """The losses of one step's batches with their rows, and the norm of its gradient, on the device."""

    losses: list[torch.Tensor] = field(default_factory=list)
    rows: list[dict[str, torch.Tensor]] = field(default_factory=list)
    gradient_norm: torch.Tensor | float = 0.0

    def problem(self) -> str | None:
        """Return what is not finite, or None; waits for the device."""
        for loss in self.losses:
            if not math.isfinite(loss):
                return f"the loss is {loss.item()}"
        if not math.isfinite(self.gradient_norm):
            return f"the norm of the gradient is {float(self.gradient_norm)}"
        return None

    def named_rows(self, name_row: Callable[..., str]) -> list[str]:
        """Name the rows of the batches without a finite loss, or else of all batches."""
        bad = [rows for loss, rows in zip(self.losses, self.rows, strict=True) if not math.isfinite(loss)]
        names = []
        for rows in bad or self.rows:
            numbers = [column.tolist() for column in rows.values()]
            names += [name_row(*row) for row in zip(*numbers, strict=True)]
        return names


class Divergence(TrainerCallback):
    """Stop a training whose loss or gradient is not finite, before anything of it is logged, evaluated or saved.

    Looking at a number waits for the device. So the numbers of many steps are looked at together: when a step logs,
    evaluates, saves or ends the training, and at the latest after `STEPS_KEPT` steps.

    Args:
        name_row: names a row by its `row`, and with several tasks also by its `task_ids`.
    """

    def __init__(self, name_row: Callable[..., str]) -> None:
        """Start without a step."""
        self.name_row = name_row
        self.steps: dict[int, Step] = {}

    def add_batch(self, step: int, loss: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        """Record the loss of one batch of a step."""
        record = self.steps.setdefault(step, Step())
        record.losses.append(loss)
        record.rows.append({name: inputs[name] for name in ("row", "task_ids") if name in inputs and "row" in inputs})

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: AcceleratedOptimizer,
        **kwargs: Any,
    ) -> None:
        """Record the norm of the gradient, unless the scaler of float16 skipped the step, which is ordinary."""
        if optimizer.step_was_skipped:
            return
        # To look for them among the frozen parameters takes two milliseconds a step in a model of 30 layers.
        trained = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in trained if tensor.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.steps.setdefault(state.global_step + 1, Step()).gradient_norm = norm

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the steps if one of them is about to be used."""
        due = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        if due or len(self.steps) >= STEPS_KEPT:
            self.check()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the steps, since an epoch may end with an evaluation, a checkpoint or the training's end."""
        self.check()

    def check(self) -> None:
        """Check all recorded steps, and forget them.

        Raises:
            TrainingError: a loss or the norm of a gradient is nan or infinite; names the first such step.
        """
        steps = self.steps
        self.steps = {}
        for number, step in steps.items():
            problem = step.problem()
            if problem is None:
                continue
            names = step.named_rows(self.name_row)
            more = f" and {len(names) - ROWS_NAMED} more" if len(names) > ROWS_NAMED else ""
            rows = f"; its rows: {', '.join(names[:ROWS_NAMED])}{more}" if names else ""
            raise TrainingError(
                f"step {number}: {problem}, and nothing was saved of it{rows}. Look at these rows, lower "
                "learning_rate, or leave float16; --resume_from_checkpoint true resumes from the last checkpoint"
            )


class EarlyStopping(EarlyStoppingCallback):
    """Stop early with the patience that was left; transformers' own starts a resumed training with all of it."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the patience, and stop at once if none is left."""
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class StopOnSignal(TrainerCallback):
    """After a signal or an error of the output, save a checkpoint at the end of the step and raise `Stopped`.

    Trainer's `enable_jit_checkpoint` waits three seconds and knows only SIGTERM. It saves before the optimiser's step
    and resumes as if after it, and then continues as if the training were done.

    All processes stop if one of them gets a signal. They ask each other at the end of an epoch, and at a step that
    logs, evaluates or saves, when they meet anyway.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        """Start without a signal."""
        self.accelerator = accelerator
        self.received: signal.Signals | OSError | None = None
        self.stopping = False
        self.save_strategy = SaveStrategy.NO

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        received = signal.Signals(number)
        self.received = received
        message = "%s: a checkpoint at the end of this step, then the run stops"
        # torchrun sends every signal twice to several processes, and kills them after 30 seconds.
        if self.accelerator.num_processes == 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for other in SIGNALS[1:]:
                signal.signal(other, signal.SIG_DFL)
            message += "; a second signal stops it at once"
        logger.info(message, received.name)

    def lose_output(self, error: OSError) -> None:
        """Handle an error of standard output or standard error, where Trainer writes its log."""
        self.received = signal.SIGPIPE if error.errno == errno.EPIPE else error
        logger.info("output: %s. A checkpoint at the end of the next step, then the run stops", error.strerror)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint if a signal came; after an epoch's last step its evaluation still belongs to it."""
        if not float(state.epoch).is_integer():
            self._check_signals(
                args, control, meets=control.should_log or control.should_evaluate or control.should_save
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint after the epoch's evaluation if a signal came."""
        self._check_signals(args, control, meets=True)

    def _check_signals(self, args: TrainingArguments, control: TrainerControl, *, meets: bool) -> None:
        """Ask for a checkpoint if a signal came to a process; several ask each other only where `meets` is set.

        An evaluation at this step is made, since the resumed run would not make it.
        """
        if self.accelerator.num_processes == 1:
            self.stopping = self.received is not None
        elif meets:
            if self.received:
                self.accelerator.set_trigger()
            self.stopping = self.accelerator.check_trigger()
        if self.stopping:
            control.should_save = True
            self.save_strategy = args.save_strategy
            if args.save_strategy == SaveStrategy.BEST:
                args.save_strategy = SaveStrategy.STEPS  # Otherwise an evaluation without a better score cancels it.

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raise `Stopped` now that the checkpoint is saved."""
        if self.stopping:
            args.save_strategy = self.save_strategy
            # With should_training_stop Trainer would load the best checkpoint, and perhaps remove this one.
            checkpoint = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            raise Stopped(self.received or signal.SIGTERM, state.global_step, str(checkpoint))


class WatchedStream:
    """Write to a stream at once, report its first error, and drop what is written after that.

    Args:
        stream: standard output or standard error.
        report: takes the error.
    """

    def __init__(self, stream: TextIO, report: Callable[[OSError], None]) -> None:
        """Start without an error."""
        self.stream = stream
        self.report = report
        self.failed = False

    def write(self, text: str) -> int:
        """Write a text and return its length."""
        if not self.failed:
            try:
                self.stream.write(text)
                self.stream.flush()
            except OSError as error:
                self.failed = True
                self.report(error)
        return len(text)

    def flush(self) -> None:
        """Do nothing, since `write` leaves nothing to flush."""

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stream."""
        return getattr(self.stream, name)


@contextmanager
def stopping_on_signals(accelerator: Accelerator) -> Iterator[StopOnSignal]:
    """Yield a callback that signals and errors of the output reach within the block, if it runs in the main thread."""
    callback = StopOnSignal(accelerator)
    if threading.current_thread() is not threading.main_thread():
        yield callback
        return
    handlers = {}
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # A shell lets its background jobs ignore SIGINT.
            handlers[number] = signal.signal(number, callback.receive)
    output: Any = WatchedStream(sys.stdout, callback.lose_output)
    errors: Any = WatchedStream(sys.stderr, callback.lose_output)
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            yield callback
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if isinstance(callback.received, signal.Signals) and callback.received in handlers:
        signal.raise_signal(callback.received)  # It came after the last step.
