"""Load recipes: the text is checked first, then Trainer's own class completes the settings."""

from __future__ import annotations

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.errors import ErrorList, RecipeError, first_line
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.recipe.drafts import build, checked_draft, draft_tasks, read_draft
from prompt_tuning.recipe.machine_validation import validation_errors
from prompt_tuning.recipe.recipe import Draft, Recipe, RecipeSource

DRAFTED = {"output_dir", "train_sampling_strategy"}
"""The settings of Trainer for which a draft has a default of its own."""
SCORED_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""The schedules whose learning rate depends on earlier scores, so that no other one can replace them."""


def load_recipe(source: RecipeSource, overrides: list[str] | None = None, *, for_prediction: bool = False) -> Recipe:
    """Read a recipe and type it together with its overrides.

    Args:
        source: a flat YAML file, or its settings as a mapping.
        overrides: as on the command line, `["--learning_rate", "0.1", "--bf16"]`.
        for_prediction: the recipe of a finished run, also of version 0.1.0. The data may be missing, and settings
            that only training needs, such as a GPU's number formats, are left out. So is trust_remote_code, because a
            stranger may have written the recipe.

    Returns:
        The recipe, checked unless it is for prediction.

    Raises:
        PromptTuningError: with all that the recipe's text and the files that it names show to be wrong; if that is
            nothing, with all that is wrong on this machine.
    """
    if for_prediction:
        return _complete(read_draft(source, overrides or [], for_prediction=True), for_prediction=True)
    return complete(checked_draft(source, overrides or []))


def complete(draft: Draft) -> Recipe:
    """Return the recipe of a checked draft.

    Raises:
        RecipeError: with all that is wrong with it on this machine.
    """
    recipe = _complete(draft)
    problems = validation_errors(recipe)
    if METHODS[recipe.prompt.method].trains_several_tasks:
        try:
            load_tasks(recipe)
        except RecipeError as error:
            problems += str(error).splitlines()
    if problems:
        raise RecipeError("\n".join(f"{draft.path}: {problem}" for problem in problems))
    return recipe


def load_tasks(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipes of the tasks of a multitask recipe by the tasks' names. A task's id is its place here.

    Raises:
        RecipeError: with all that is wrong with any of them.
    """
    tasks: dict[str, Recipe] = {}
    errors = ErrorList()
    for name, draft in draft_tasks(recipe).items():
        with errors.collect():
            tasks[name] = complete(draft)
    errors.raise_all()
    return tasks


def _complete(draft: Draft, *, for_prediction: bool = False) -> Recipe:
    """Return the recipe of a draft, with the defaults that depend on other settings."""
    names = draft.explicitly_set | DRAFTED
    try:
        training = build(PromptTuningArguments, vars(draft.training), names)
    except (ValueError, TypeError, ImportError, OSError) as error:  # The class's __post_init__ raises these.
        raise RecipeError(f"{draft.path}: {first_line(error)}") from error
    recipe = Recipe(draft.path, draft.model, draft.data, draft.prompt, training, draft.explicitly_set, draft.choice)
    _set_dependent_defaults(recipe)
    if not for_prediction:
        _set_computing_type(recipe)
    return recipe


def _set_computing_type(recipe: Recipe) -> None:
    """Let 4-bit weights compute in the type of the training; the default of transformers is float32."""
    settings = recipe.model.quantization_config
    if isinstance(settings, dict) and settings.get("load_in_4bit") and recipe.computing_type != "float32":
        recipe.model.quantization_config = {"bnb_4bit_compute_dtype": recipe.computing_type} | settings


def _set_dependent_defaults(recipe: Recipe) -> None:
    """Set the settings of Trainer whose defaults depend on other settings."""
    data, prompt, training, explicitly_set = recipe.data, recipe.prompt, recipe.training, recipe.explicitly_set
    if "learning_rate" not in explicitly_set:
        training.learning_rate = METHODS[prompt.method].default_learning_rate(vars(prompt))
    if data.streaming:
        # Otherwise one process reads for all, and cannot send them batches of different lengths.
        training.accelerator_config.dispatch_batches = False
    wants_best = training.load_best_model_at_end or training.save_strategy == "best"
    if wants_best and data.task and "metric_for_best_model" not in explicitly_set:
        training.metric_for_best_model = MAIN_METRIC[data.task]
        training.greater_is_better = True
    if training.lr_scheduler_type in SCORED_SCHEDULES and training.greater_is_better:
        # The default of torch is min.
        training.lr_scheduler_kwargs = {"mode": "max"} | (training.lr_scheduler_kwargs or {})
    if (training.resume_from_checkpoint or "").lower() in ("false", "no"):
        training.resume_from_checkpoint = None
