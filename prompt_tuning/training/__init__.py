"""The trainer and what it needs: callbacks, checkpoints, losses, processes."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.training.callbacks import EarlyStopping, StopOnSignal
    from prompt_tuning.training.choices import ChoiceTrainer
    from prompt_tuning.training.trainer import PromptTuningTrainer

__all__ = ["ChoiceTrainer", "EarlyStopping", "PromptTuningTrainer", "StopOnSignal"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ChoiceTrainer": "choices",
        "EarlyStopping": "callbacks",
        "PromptTuningTrainer": "trainer",
        "StopOnSignal": "callbacks",
    },
)
