"""The process that a command runs in: alone, or one of several that `accelerate launch` started."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prompt_tuning.errors import ModelError, Terminated, first_line, without_secrets
from prompt_tuning.support.text import bounded, print_text, printable

SIGNALS = [signal.SIGTERM, signal.SIGHUP]
"""The signals that end a command."""

FORMAT_WARNING = warnings.formatwarning

COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""What turns a colour or bold type of a terminal on or off."""

IMPORTLIB = "<frozen importlib._bootstrap>"


class PrintableFormatter(logging.Formatter):
    """Formats messages, which quote rows, names and errors, without control characters and tokens, and bounded."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record, with its traceback if it has one."""
        return printable(bounded(without_secrets(super().format(record))))


def has_several_processes() -> bool:
    """Return True if a launcher started several processes."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_first_process() -> bool:
    """Return True for the process that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Raise a ProcessError when torch fails to reach another process within the block."""
    try:
        yield
    except RuntimeError:
        if "WORLD_SIZE" not in os.environ:
            raise
        from prompt_tuning.training.distributed import explain_lost_process as explain  # It imports torch.

        with explain():
            raise


@contextmanager
def raise_signals() -> Iterator[None]:
    """Raise `Terminated` for SIGTERM and SIGHUP within the block; a second signal ends the process at once.

    Python would end without removing partial files. Processes of a launcher still end at once, since they may wait for
    each other.
    """
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:
            signal.raise_signal(number)  # A worker of a pool ends as before.
        raise Terminated(signal.Signals(number))

    numbers: list[int] = []
    if threading.current_thread() is threading.main_thread() and not has_several_processes():
        # A shell lets a command of nohup ignore SIGHUP.
        numbers = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def explain_panic() -> Iterator[None]:
    """Raise a ModelError when a library in Rust panics within the block, such as tokenizers at a slow pattern."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # It is not an Exception, and cannot be imported.
            raise
        message = f"tokenizer: {first_line(error)}. Check the files of the model, or take another model."
        raise ModelError(message) from error


@contextmanager
def announce_imports(delay: float = 0.4) -> Iterator[None]:
    """Say on a terminal that libraries are loaded, if the block imports one after some time.

    PyTorch and transformers take seconds, in which nothing else would be printed.

    Args:
        delay: the seconds until then. The interpreter has taken some before.
    """
    main_thread = threading.get_ident()
    ended = threading.Event()

    def say() -> None:
        pause = delay
        while not ended.wait(pause):
            pause = 0.1
            stack = traceback.walk_stack(sys._current_frames()[main_thread])  # noqa: SLF001 - its documented purpose
            if any(frame.f_code.co_filename == IMPORTLIB for frame, _ in stack):
                print_text("loading libraries ...", file=sys.stderr)
                return

    if is_first_process() and sys.stderr.isatty():
        threading.Thread(target=say, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class PrintableRecord(logging.LogRecord):
    """A message of any library, which may quote names of a stranger's file, without control characters and colours."""

    def getMessage(self) -> str:
        """Return the message with its arguments."""
        return printable(bounded(COLOUR.sub("", super().getMessage())))


def printable_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning with its place as Python formats it, without control characters."""
    return printable(bounded(FORMAT_WARNING(message, category, filename, lineno, line))) + "\n"


def set_up_messages() -> None:
    """Send messages to standard error. The first process prints all of them, the others only errors."""
    logging.setLogRecordFactory(PrintableRecord)
    warnings.formatwarning = printable_warning
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logger = logging.getLogger("prompt_tuning")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    if not is_first_process():
        logger.setLevel(logging.ERROR)
        os.environ |= {
            "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
