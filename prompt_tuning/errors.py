"""Everything this package raises on purpose.

    PromptTuningError           exit code 1
    ├── RecipeError             exit code 2: a recipe, a flag or a metric's name
    ├── TemplateError           exit code 2: a hard prompt that cannot be read or does not fit the data
    │   └── OverlongError       exit code 2: a row that does not fit its budget
    ├── DataError               exit code 1: files, splits, rows
    ├── ModelError              exit code 1: a base model or its tokenizer
    ├── AdapterError            exit code 1: a saved soft prompt
    ├── HubError                exit code 1: the hub, its answers and the way to it
    ├── ProcessError            exit code 1: another process of the same run
    └── TrainingError           exit code 1: a loss that is no number, too little memory

A message says what was found, what was expected and what to do next. An error may carry several problems, one a line.
`Stopped` stands beside the tree: a signal is no error.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class PromptTuningError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 1


class RecipeError(PromptTuningError):
    exit_code = 2


class TemplateError(PromptTuningError):
    exit_code = 2


class OverlongError(TemplateError):
    """A row that does not fit its budget."""


class DataError(PromptTuningError):
    pass


class ModelError(PromptTuningError):
    pass


class AdapterError(PromptTuningError):
    pass


class HubError(PromptTuningError):
    pass


class ProcessError(PromptTuningError):
    pass


class TrainingError(PromptTuningError):
    pass


class ErrorList(list[PromptTuningError]):
    """Errors that are raised together, so that a user sees all of them at once."""

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep an error of ours that the block raises, and go on after the block."""
        try:
            yield
        except PromptTuningError as error:
            self.append(error)

    def raise_all(self) -> None:
        """Raise one error of the first one's kind with every message on a line of its own, each message once."""
        if self:
            lines = [line for error in self for line in str(error).splitlines()]
            raise type(self[0])("\n".join(dict.fromkeys(lines)))


def first_line(error: object) -> str:
    """The first line of an error's text that says something; the error's kind if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class Stopped(KeyboardInterrupt):
    """A signal stopped a training, which saved a checkpoint first.

    Exit code 128 plus the signal's number, as shells have it: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, received: signal.Signals, step: int, checkpoint: str) -> None:
        super().__init__(f"{received.name}: stopped after step {step}, whose checkpoint is saved")
        self.checkpoint = checkpoint
        self.exit_code = 128 + received
