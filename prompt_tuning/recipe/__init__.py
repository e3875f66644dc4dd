"""Read, type and check recipes."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.recipe.loading import load_recipe, load_tasks
    from prompt_tuning.recipe.recipe import Recipe

__all__ = ["Recipe", "load_recipe", "load_tasks"]

__getattr__, __dir__ = lazy_names(__name__, {"Recipe": "recipe", "load_recipe": "loading", "load_tasks": "loading"})
