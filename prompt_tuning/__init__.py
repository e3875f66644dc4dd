"""Adapt a frozen language model to a task by its prompt: hard-prompt templates and soft prompts.

    Template                  a hard prompt: .columns, .render(row)
    Encoder, encode           rows -> token ids within a limit
    prompt_config             PEFT's configuration of a soft prompt
    add_soft_prompt           a model with a trainable soft prompt
    SharedPrefixModel         a causal model that computes shared text once for a batch
    load_adapter              a model with a saved soft prompt
    PromptTuningTrainer       a Seq2SeqTrainer that evaluates the generated texts
    PromptTuningArguments     its arguments, with defaults for prompts
    load_metrics              score(predictions, references), offline
    Predictor                 a finished run, ready to predict
    train, evaluate           what the commands of these names do, also with rows in memory
    rank, compare             the same
    Run                       a finished run: its results, its report, its predictor
    __version__               the version of the package
    PromptTuningError         base of all errors that a user can correct

A name is imported when it is first used, so that `import prompt_tuning` is quick.
"""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.api import Run, compare, evaluate, rank, train
    from prompt_tuning.arguments.training_args import PromptTuningArguments
    from prompt_tuning.encoding.dataset import encode
    from prompt_tuning.encoding.row_encoder import Encoder
    from prompt_tuning.engine.shared_prefix import SharedPrefixModel
    from prompt_tuning.errors import PromptTuningError
    from prompt_tuning.metrics.loading import load_metrics
    from prompt_tuning.models.prompts import add_soft_prompt, load_adapter, prompt_config
    from prompt_tuning.runs.predictor import Predictor
    from prompt_tuning.templates.template import Template
    from prompt_tuning.training.trainer import PromptTuningTrainer

__version__ = "0.2.0.dev0"

__all__ = [
    "Encoder",
    "Predictor",
    "PromptTuningArguments",
    "PromptTuningError",
    "PromptTuningTrainer",
    "Run",
    "SharedPrefixModel",
    "Template",
    "__version__",
    "add_soft_prompt",
    "compare",
    "encode",
    "evaluate",
    "load_adapter",
    "load_metrics",
    "prompt_config",
    "rank",
    "train",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Encoder": "encoding.row_encoder",
        "Predictor": "runs.predictor",
        "Run": "api",
        "PromptTuningArguments": "arguments.training_args",
        "PromptTuningError": "errors",
        "PromptTuningTrainer": "training.trainer",
        "SharedPrefixModel": "engine.shared_prefix",
        "Template": "templates.template",
        "add_soft_prompt": "models.prompts",
        "compare": "api",
        "encode": "encoding.dataset",
        "evaluate": "api",
        "load_adapter": "models.prompts",
        "load_metrics": "metrics.loading",
        "prompt_config": "models.prompts",
        "rank": "api",
        "train": "api",
    },
)
