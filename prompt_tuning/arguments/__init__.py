"""The settings of a recipe and of the command line, as dataclasses."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.arguments.arguments import DataArguments, ModelArguments, PromptArguments
    from prompt_tuning.arguments.methods import METHODS, Method, find_method
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
        "DataArguments": "arguments",
        "Method": "methods",
        "ModelArguments": "arguments",
        "PromptArguments": "arguments",
        "PromptTuningArguments": "training_args",
        "find_method": "methods",
    },
)
