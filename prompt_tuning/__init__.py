"""Adapt a frozen language model to a task by its prompt: hard-prompt templates and soft prompts.

    Template                  a hard prompt: .columns, .render(row)
    Encoder, encode           rows -> token ids within a budget
    prompt_config             PEFT's configuration of a soft prompt
    add_soft_prompt           a model with a trainable soft prompt, computed once for a batch
    SharedPrefixModel         what that is for a causal model
    load_adapter              a model with a saved soft prompt
    PromptTuningTrainer       Seq2SeqTrainer that evaluates what the model writes
    PromptTuningArguments     its arguments, with defaults for prompts
    load_metrics              score(predictions, references), offline
    Predictor                 a finished run, ready to predict
    PromptTuningError         base of all errors that a user can mend

Names are imported when first used, so `import prompt_tuning` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_tuning.encoding import Encoder, encode
    from prompt_tuning.errors import PromptTuningError
    from prompt_tuning.metrics import load_metrics
    from prompt_tuning.model import add_soft_prompt, load_adapter, prompt_config
    from prompt_tuning.prediction import Predictor
    from prompt_tuning.shared_prefix import SharedPrefixModel
    from prompt_tuning.template import Template
    from prompt_tuning.trainer import PromptTuningTrainer
    from prompt_tuning.training_args import PromptTuningArguments

_MODULES = {
    "Encoder": "encoding",
    "Predictor": "prediction",
    "PromptTuningArguments": "training_args",
    "PromptTuningError": "errors",
    "PromptTuningTrainer": "trainer",
    "SharedPrefixModel": "shared_prefix",
    "Template": "template",
    "add_soft_prompt": "model",
    "encode": "encoding",
    "load_adapter": "model",
    "load_metrics": "metrics",
    "prompt_config": "model",
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'prompt_tuning' has no attribute {name!r}")
    return getattr(import_module(f"prompt_tuning.{_MODULES[name]}"), name)
