"""Choose the settings of `method: auto`, by the scores that docs/how-to/choose-a-method.md names.

The choice replaces `auto` when a recipe is read, so that a run's folder holds the settings themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import PromptTuningError, RecipeError
from prompt_tuning.recipe.recipe import Draft
from prompt_tuning.templates.literals import literals
from prompt_tuning.templates.template import Template

AUTO = "auto"
STARTS = frozenset({"init", "init_text", "init_labels", "init_adapter", "num_virtual_tokens"})
"""The settings by which a user says where the prompt starts."""
CHOSEN = ("init", "trained_text", "layer_vectors")
"""The settings that the choice may set, besides the method."""


def replace_auto(prompt: PromptArguments, explicitly_set: Set[str], *, streaming: bool) -> tuple[PromptArguments, str]:
    """Return the settings in place of `method: auto`, and the reason in one line.

    Args:
        prompt: the settings as the recipe says them. What it sets is kept.
        explicitly_set: the names of the settings that the recipe or the command line sets.
        streaming: training rows are read once, so that no prompt starts from them.

    Raises:
        RecipeError: the recipe continues an adapter, which has a method.
    """
    if prompt.adapter:
        raise RecipeError("method auto chooses for a new prompt. Name the method of the adapter to continue.")
    chosen: dict[str, Any] = {"method": "prompt_tuning", "servable": None}
    if not STARTS & explicitly_set and not streaming:
        chosen["init"] = "demonstrations"
    # Neither is trained beside a network that writes the prompt.
    if "trained_text" not in explicitly_set and not prompt.residual and _has_ending(prompt.template):
        chosen["trained_text"] = "ending"
    if prompt.servable is False and "layer_vectors" not in explicitly_set and not prompt.residual:
        chosen["layer_vectors"] = True
    settings = ", ".join(f"{name}: {str(value).lower()}" for name, value in chosen.items() if value is not None)
    prompt = replace(prompt, **chosen)
    servers = METHODS[prompt.method].servers(vars(prompt))
    return prompt, f"method auto: {settings}; a causal model is served by {servers} (docs/how-to/choose-a-method.md)"


@contextmanager
def naming_choice(recipe: Draft) -> Iterator[None]:
    """Let an error about a setting say that `method: auto` chose the setting.

    The choice is made before model, tokenizer and rows are known, because the learning rate depends on it, and a
    checkpoint is only resumed with the same choice.
    """
    try:
        yield
    except PromptTuningError as error:
        lines = [str(error)]
        for name in CHOSEN if recipe.choice else ():
            if name not in recipe.explicitly_set and re.search(rf"\b{name}(?![a-z])", lines[0]):
                value = str(vars(recipe.prompt)[name]).lower()
                lines.append(f"method auto chose {name}: {value}. Set {name} in the recipe, and auto keeps it.")
        if len(lines) == 1:
            raise
        raise type(error)("\n".join(lines)) from error


def _has_ending(template: str | None) -> bool:
    """Return whether a template's source ends with fixed text. An unreadable one is reported later."""
    try:
        return bool(template and literals(Template.load(template), None, "ending"))
    except PromptTuningError:
        return False
