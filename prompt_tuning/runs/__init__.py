"""What a recipe can be run for: one file for each."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.runs.multitask import train_tasks
    from prompt_tuning.runs.predictor import Predictor
    from prompt_tuning.runs.prepare import Prepared
    from prompt_tuning.runs.push import push_run

__all__ = ["Predictor", "Prepared", "push_run", "train_tasks"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"Predictor": "predictor", "Prepared": "prepare", "push_run": "push", "train_tasks": "multitask"},
)
