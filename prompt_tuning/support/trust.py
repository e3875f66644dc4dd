"""Decide in one place whether Python code of others runs, and which settings no file decides.

It runs only after `--trust_remote_code` on the command line, or if a caller passes `trust_remote_code=True`. No file
decides it: no recipe, no folder of a run, no model. Every call that can run such code is in this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prompt_tuning.errors import RecipeError

if TYPE_CHECKING:
    from evaluate import EvaluationModule

FLAG = "trust_remote_code"
OF_COMMAND_LINE = (FLAG, "base_url", "api_key_env")
"""The settings that count only from the command line or from a caller."""
ADVICE = f"Read the code first. Then --{FLAG} on the command line runs it."


def load_pretrained(auto: Any, name: str, *, trust_remote_code: bool, **kwargs: Any) -> Any:
    """Return a configuration, a tokenizer or a model of transformers.

    Args:
        auto: its class, such as AutoTokenizer.
        name: a folder or a hub id.
        trust_remote_code: run the Python code that is with it. It is always passed on, because transformers asks at
            the terminal without it.
        kwargs: the other arguments of `from_pretrained`.
    """
    return auto.from_pretrained(name, trust_remote_code=trust_remote_code, **kwargs)


def build_from_config(auto: Any, config: Any, *, trust_remote_code: bool) -> Any:
    """Return a model of this configuration with random weights; the arguments are those of `load_pretrained`."""
    return auto.from_config(config, trust_remote_code=trust_remote_code)


def load_metric_module(name: str, location: str, *, trust_remote_code: bool) -> EvaluationModule:
    """Return a module of `evaluate`, which is Python code.

    Args:
        name: the name in messages.
        location: a path or a hub id.
        trust_remote_code: run the code. It is True for the modules of this package.

    Raises:
        RecipeError: the code is not trusted.
    """
    if not trust_remote_code:
        raise RecipeError(f"metric {name!r}: it is Python code that is not part of this package. {ADVICE}")
    import evaluate  # It imports torch, for which `--help` should not wait.

    # Runs that score at the same time share only the script: values stay in memory, under an id for this process.
    return evaluate.load(location, keep_in_memory=True, experiment_id=uuid4().hex)
