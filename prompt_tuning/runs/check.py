"""Check a recipe as `train` does before a model loads."""

from __future__ import annotations

import logging
from pathlib import Path

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.multitask import join_rows, prepare_tasks
from prompt_tuning.runs.prepare import Prepared, prepare_run
from prompt_tuning.runs.resume import checkpoint_to_resume
from prompt_tuning.runs.sharding import check_sharding
from prompt_tuning.runs.trained_text import check_checkpoint_text
from prompt_tuning.training.resuming import check_position

logger = logging.getLogger(__name__)


def check(recipe: Recipe) -> dict[str, Prepared]:
    """Prepare a recipe, or each of its tasks, for training.

    Unlike in `train`, a folder that holds a run is only a warning, because it is not the recipe that is wrong.

    Returns:
        What `train` would train on, by the name of the task; the name is empty for a recipe of one task.

    Raises:
        PromptTuningError: everything that `train` would raise before it loads a model.
    """
    check_sharding(recipe)
    checkpoint = None
    try:
        checkpoint = checkpoint_to_resume(recipe, Path(recipe.training.output_dir))
    except RecipeError as error:
        if recipe.training.resume_from_checkpoint:
            raise
        logger.warning("%s: train would not overwrite a run: %s", recipe.path, error)
    if METHODS[recipe.prompt.method].trains_several_tasks:
        tasks = prepare_tasks(recipe)
        rows = join_rows(tasks, "train")
    else:
        tasks = {"": prepare_run(recipe)}
        rows = tasks[""].encoded.get("train")
        if checkpoint:
            check_checkpoint_text(Path(checkpoint), tasks[""].trained_text)
    if checkpoint:
        check_position(Path(checkpoint), rows, recipe.training)
    return tasks
