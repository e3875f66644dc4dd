"""Check a recipe against the saved adapter that it trains further."""

from __future__ import annotations

import logging

from peft import PeftConfig

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.arguments.prompt_args import PREFIX_PLACES, PromptArguments
from prompt_tuning.engine.trained_config import TrainedTokensConfig
from prompt_tuning.errors import ErrorList, RecipeError
from prompt_tuning.recipe.recipe import Recipe

logger = logging.getLogger(__name__)

SAVED_SETTINGS = {
    "num_virtual_tokens": "num_virtual_tokens", "num_frozen_tokens": "num_frozen_tokens", "lora_r": "r",
    "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "lora_use_rslora": "use_rslora",
    "lora_use_dora": "use_dora", **{name: name for name in PREFIX_PLACES},
}  # fmt: skip
"""The settings that a saved adapter holds, with their names in its configuration."""

START_SETTINGS = (
    "init", "init_text", "init_labels", "init_demonstrations", "init_demonstration_tokens", "init_adapter", "residual",
    "prefix_projection", "encoder_hidden_size", "lora_target_modules",
)  # fmt: skip
"""The settings of a new adapter that a saved one does not hold, or holds in another form."""


def check_adapter_settings(recipe: Recipe, config: PeftConfig) -> None:
    """Raise a RecipeError if the recipe has another method, or other sizes, than the saved adapter that it continues.

    Saved P-tuning and CPT adapters are plain embeddings, so prompt_tuning continues them. Settings that have no effect
    are reported. The recipe of a run names the defaults too, so that a default contradicts no adapter.
    """
    prompt, defaults = recipe.prompt, PromptArguments()
    saved = find_method(config.peft_type)
    if prompt.method != saved.continues_as:
        raise RecipeError(
            f"adapter {prompt.adapter} is of method {saved.name}, which is continued as {saved.continues_as}; "
            f"set method: {saved.continues_as}"
        )
    has_vectors = isinstance(config, TrainedTokensConfig) and config.layer_vectors
    if prompt.layer_vectors != has_vectors:
        raise RecipeError(
            f"adapter {prompt.adapter} has {'' if has_vectors else 'no '}layer vectors. Set layer_vectors: "
            f"{str(has_vectors).lower()}."
        )
    errors = ErrorList()
    unused = [name for name in START_SETTINGS if vars(prompt)[name] != vars(defaults)[name]]
    if prompt.init == "template" and prompt.num_demonstrations:
        unused.remove("init")  # Rows are written without the demonstrations.
    for name, field in SAVED_SETTINGS.items():
        value, of_adapter = vars(prompt)[name], vars(config).get(field)
        if of_adapter is None or value == of_adapter:
            continue
        if value != vars(defaults)[name]:
            shown = str(of_adapter).lower()
            errors.append(RecipeError(f"adapter {prompt.adapter} has {name}: {shown}. Set {name}: {shown}."))
        elif name in recipe.explicitly_set:
            unused.append(name)
    errors.raise_all()
    if unused:
        reason = f"beside adapter {prompt.adapter}, which is trained further as it was saved"
        logger.warning("no effect %s: %s", reason, ", ".join(unused))
