"""Refuse what cannot be run on a model that FSDP splits."""

from __future__ import annotations

from accelerate.utils import parse_flag_from_env

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.engine.dispatch import PACKED_ARCHITECTURES
from prompt_tuning.errors import RecipeError
from prompt_tuning.models.loading import load_config
from prompt_tuning.recipe.recipe import Recipe


def check_sharding(recipe: Recipe) -> None:
    """Raise a RecipeError for what cannot be done with a model that FSDP splits among processes."""
    if not (recipe.training.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
        return
    method, config, refused = METHODS[recipe.prompt.method], load_config(recipe.model), []
    if not method.runs_under_fsdp:
        refused.append(f"method {method.name} does")
    if recipe.prompt.teacher_template:
        refused.append("a teacher_template does")
    kind = config.get_text_config().model_type
    if config.is_encoder_decoder:
        refused.append(f"an encoder-decoder ({kind}) does")
    elif method.has_prompt and kind not in PACKED_ARCHITECTURES:
        refused.append(f"a prompt of a {kind} model does")
    if refused:
        advice = "not run under FSDP; launch it with recipes/accelerate/ddp.yaml"
        raise RecipeError("\n".join(f"{recipe.path}: {what} {advice}" for what in refused))
