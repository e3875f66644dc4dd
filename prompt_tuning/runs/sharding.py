"""Refuse what cannot be run on a model that FSDP or ZeRO-3 splits."""

from __future__ import annotations

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.training_args import sharding
from prompt_tuning.engine.dispatch import PACKED_ARCHITECTURES
from prompt_tuning.errors import ErrorList, RecipeError
from prompt_tuning.models.loading import load_config
from prompt_tuning.recipe.recipe import Recipe


def check_sharding(recipe: Recipe) -> None:
    """Raise a RecipeError if FSDP or ZeRO-3 is launched for a method, a model or a teacher that cannot be split."""
    split_by = sharding(recipe.training)
    if not split_by:
        return
    method = METHODS[recipe.prompt.method]
    config = load_config(recipe.model)
    architecture = config.get_text_config().model_type
    refused = []
    if not method.runs_under_fsdp or (method.trains_whole_model and split_by == "ZeRO-3"):
        refused.append(f"method {method.name}")
    if recipe.prompt.teacher_template:
        refused.append("a teacher_template")
    if config.is_encoder_decoder:
        refused.append(f"an encoder-decoder ({architecture})")
    elif method.has_prompt and architecture not in PACKED_ARCHITECTURES:
        refused.append(f"a prompt of a {architecture} model")
    errors = ErrorList()
    for name in refused:
        with errors.collect():
            refuse_sharding(recipe, name)
    errors.raise_all()


def refuse_sharding(recipe: Recipe, name: str) -> None:
    """Raise a RecipeError if a recipe is launched under FSDP or ZeRO-3, where what is named does not run."""
    split_by = sharding(recipe.training)
    if split_by:
        raise RecipeError(
            f"{recipe.path}: {name} does not run under {split_by}. Launch it with recipes/accelerate/ddp.yaml."
        )
