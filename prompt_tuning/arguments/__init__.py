"""The settings of a recipe and of the command line, as dataclasses."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.arguments.data_args import DataArguments
    from prompt_tuning.arguments.methods import METHODS, Method, find_method
    from prompt_tuning.arguments.model_args import ModelArguments
    from prompt_tuning.arguments.prompt_args import PromptArguments
    from prompt_tuning.arguments.training_args import PromptTuningArguments

__all__ = [
    "METHODS",
    "DataArguments",
    "Method",
    "ModelArguments",
    "PromptArguments",
    "PromptTuningArguments",
    "find_method",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "METHODS": "methods",
        "DataArguments": "data_args",
        "Method": "methods",
        "ModelArguments": "model_args",
        "PromptArguments": "prompt_args",
        "PromptTuningArguments": "training_args",
        "find_method": "methods",
    },
)
