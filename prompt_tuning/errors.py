"""The exceptions of this package.

    PromptTuningError           exit code 1
    ├── RecipeError             exit code 2: a recipe, a flag or a metric's name
    ├── TemplateError           exit code 2: a hard prompt that cannot be read or does not fit the data
    │   ├── OverlongError       exit code 2: a row that is longer than its limit
    │   │   └── OverlongTargetError    exit code 2: a target that is longer than its limit
    │   └── EmptyRowError       exit code 2: a row for which a template writes no source or no target
    ├── DataError               exit code 1: files, splits, rows
    ├── ModelError              exit code 1: a base model or its tokenizer
    ├── AdapterError            exit code 1: a saved soft prompt
    ├── HubError                exit code 1: the hub, its answers and the connection to it
    ├── ProcessError            exit code 1: another process of the same run
    └── TrainingError           exit code 1: a loss that is not finite, or too little memory

A message names what is wrong and what to do: `<thing>: <what is wrong>. <what to do>.` An error may carry several
messages, one a line. `Stopped` is not in the tree, because a signal is not an error.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# What looks like a token or a password, with what stays of it: the text of a hub or of a library may quote one.
_SECRETS = (
    (re.compile(r"\bhf_(?:(?:oauth|jwt)_[\w.-]+|(?=\w*[A-Z0-9])[A-Za-z0-9]{8,})"), "hf_***"),
    (re.compile(r"""(?i)(\bauthorization["']?\s*[:=]\s*["']?)(?:(?:bearer|basic|token)\s+)?[^\s"',;]+"""), r"\1***"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), r"\1***"),
    (re.compile(r"""(?i)([?&][\w-]*(?:token|signature|credential|key|password|secret)=)[^&\s"'<>]+"""), r"\1***"),
    (re.compile(r"(\b[a-zA-Z][\w+.-]{0,30}://)[^/\s@]+@"), r"\1***@"),
)


def without_secrets(text: str) -> str:
    """Return a text with stars instead of all that looks like a token or a password.

    >>> without_secrets("GET https://ann:pw@hub/api?token=abc with Authorization: Bearer hf_AbCdEfGh12")
    'GET https://***@hub/api?token=*** with Authorization: ***'
    """
    for pattern, rest in _SECRETS:
        text = pattern.sub(rest, text)
    return text


class PromptTuningError(Exception):
    """Base of all errors that a user can correct. Its message quotes no token."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        """Keep the message without what looks like a token or a password."""
        super().__init__(without_secrets(message))


class RecipeError(PromptTuningError):
    """A recipe, a flag or the name of a metric is wrong."""

    exit_code = 2


class TemplateError(PromptTuningError):
    """A hard prompt cannot be read, or does not fit the data."""

    exit_code = 2


class OverlongError(TemplateError):
    """A row is longer than its limit, and nothing is left to cut."""


class OverlongTargetError(OverlongError):
    """A target is longer than its limit; it is never cut."""


class EmptyRowError(TemplateError):
    """A template writes no source or no target for a row."""


class DataError(PromptTuningError):
    """A file, a split or a row is missing or wrong."""


class ModelError(PromptTuningError):
    """A base model or its tokenizer cannot be loaded or used."""


class AdapterError(PromptTuningError):
    """A saved adapter cannot be loaded, or belongs to another model."""


class HubError(PromptTuningError):
    """The hub refuses a request, or cannot be reached."""


class ProcessError(PromptTuningError):
    """Another process of the same run has failed."""


class TrainingError(PromptTuningError):
    """Training cannot continue: the loss is not finite, or the memory is full."""


class ErrorList(list[PromptTuningError]):
    """Errors that are raised together, so that a user sees all of them at once."""

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep a PromptTuningError that the block raises, and continue after the block."""
        try:
            yield
        except PromptTuningError as error:
            self.append(error)

    def raise_all(self) -> None:
        """Raise one error with every message on a line, each message once.

        Raises:
            PromptTuningError: of the type of the first error. An empty list raises nothing.
        """
        if not self:
            return
        lines: list[str] = []
        for error in self:
            lines += str(error).splitlines()
        raise type(self[0])("\n".join(dict.fromkeys(lines)))


def first_line(error: object) -> str:
    """Return the first line of an error's text that is not empty, or the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def signal_exit_code(received: signal.Signals) -> int:
    """Return the exit code of a command that a signal ends, the same as in shells: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + received


class Stopped(KeyboardInterrupt):
    """A signal, or an output that takes no more, stopped a training, which had saved a checkpoint first.

    The exit code is `signal_exit_code`, or 1 for an error of the output; a pipe without a reader counts as SIGPIPE.

    Args:
        received: the signal, or the error of standard output or standard error.
        step: the last step that was trained.
        checkpoint: folder of that step's checkpoint.
    """

    def __init__(self, received: signal.Signals | OSError, step: int, checkpoint: str) -> None:
        """Keep the checkpoint and the exit code, and compose the message."""
        if isinstance(received, OSError):
            reason, self.exit_code = f"output: {received.strerror}", 1
        else:
            reason, self.exit_code = received.name, signal_exit_code(received)
        super().__init__(f"{reason}: stopped after step {step}, whose checkpoint is saved")
        self.checkpoint = checkpoint


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP ended a command, which had removed its partial files first.

    Args:
        received: the signal.
    """

    def __init__(self, received: signal.Signals) -> None:
        """Keep the exit code, and compose the message."""
        super().__init__(f"ended by {received.name}")
        self.exit_code = signal_exit_code(received)
