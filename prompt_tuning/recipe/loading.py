"""Read recipes: each pair of a flat YAML file becomes a flag, and one parser types it with the command line."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentTypeError
from collections.abc import Iterable
from pathlib import Path

from transformers.hf_argparser import string_to_bool

from prompt_tuning.arguments.arguments import DataArguments, ModelArguments, PromptArguments
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.errors import RecipeError, first_line
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.recipe.old_settings import translate
from prompt_tuning.recipe.other_names import flag_name
from prompt_tuning.recipe.parser import RecipeParser, to_argv
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.recipe.validation import validation_errors
from prompt_tuning.support.files import is_plain_name
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.trust import ADVICE, FLAG
from prompt_tuning.support.yaml_files import TextPair, read_text_pairs

# The settings of Trainer that a finished run predicts with.
PREDICTION_SETTINGS = ("output_dir", "seed", "generation_max_length", "generation_num_beams")
PLATEAU_SCHEDULERS = ("reduce_lr_on_plateau", "greedy")

Blocks = tuple[ModelArguments, DataArguments, PromptArguments, PromptTuningArguments]


def load_recipe(path: str | Path, overrides: list[str] | None = None, *, for_prediction: bool = False) -> Recipe:
    """Read a recipe and type it together with its overrides.

    Args:
        path: a flat YAML file.
        overrides: as on the command line, `["--learning_rate", "0.1", "--bf16"]`.
        for_prediction: the recipe of a finished run, also of version 0.1.0. The data may be missing, and settings
            that only training needs, such as a GPU's number formats, are left out. So is trust_remote_code, because a
            stranger may have written the recipe.

    Returns:
        The recipe, checked unless it is for prediction.

    Raises:
        RecipeError: with every unknown key, wrong type and missing setting at once.
    """
    recipe = _read(Path(path), overrides or [], for_prediction=for_prediction)
    if for_prediction:
        return recipe
    problems = validation_errors(recipe)
    if METHODS[recipe.prompt.method].trains_several_tasks:
        try:
            load_tasks(recipe)
        except RecipeError as error:
            problems += str(error).splitlines()
    if problems:
        raise RecipeError("\n".join(f"{path}: {problem}" for problem in problems))
    return recipe


def _read(path: Path, overrides: list[str], *, for_prediction: bool = False) -> Recipe:
    """Read and type a recipe, and set the defaults that depend on other settings."""
    try:
        pairs = read_pairs(path)
    except RecipeError as error:
        # The value of a misspelt flag before RECIPE is taken for the recipe, so that the flags are reported too.
        raise RecipeError("\n".join([str(error), *RecipeParser().flag_errors(overrides)])) from None
    if for_prediction:
        training_names = {field.name for field in dataclasses.fields(PromptTuningArguments)}
        training_names.difference_update(PREDICTION_SETTINGS)
        pairs = translate(path, [pair for pair in pairs if pair.key not in training_names | {FLAG}])
    blocks = _parse(path, pairs, overrides)
    explicitly_set = _names_set(pairs, overrides, blocks)
    _set_dependent_defaults(blocks, explicitly_set)
    recipe = Recipe(path, *blocks, explicitly_set)
    if not for_prediction:
        _set_computing_type(recipe)
    return recipe


def _parse(path: Path, pairs: list[TextPair], overrides: list[str]) -> Blocks:
    """Type pairs and overrides; raise RecipeError with all that is wrong with any of them."""
    parser = RecipeParser()
    problems = []
    for pair in pairs:
        problem = parser.pair_error(pair.key, pair.value)
        if not problem and pair.key == FLAG:
            problem = _trust_error(pair, overrides)
        if problem:
            problems.append(f"{path}, line {pair.line}: {problem}")
    problems += parser.flag_errors(overrides)
    if problems:
        raise RecipeError("\n".join(problems))
    argv = [f"--output_dir=runs/{path.stem}"]
    for pair in pairs:
        if pair.key != FLAG:
            argv += to_argv(pair.key, pair.value)
    try:
        return parser.parse_args_into_dataclasses(argv + overrides, look_for_args_file=False)
    except (ValueError, TypeError, ImportError, OSError) as error:  # The dataclasses' __post_init__ raise these.
        raise RecipeError(f"{path}: {first_line(error)}") from error


def _trust_error(pair: TextPair, overrides: list[str]) -> str | None:
    """Return what is wrong with a recipe that asks for the code of others, which only the command line can allow."""
    if not string_to_bool(pair.value) or FLAG in map(flag_name, overrides):
        return None
    return f"{FLAG}: the recipe asks to run Python code of others, and only the command line can allow it. {ADVICE}"


def _names_set(pairs: list[TextPair], overrides: list[str], blocks: Blocks) -> frozenset[str]:
    """Return the names of the settings that the recipe or the command line sets."""
    names = {pair.key for pair in pairs}
    for item in overrides:
        if item.startswith("--"):
            names.add(item.lstrip("-").split("=")[0].replace("-", "_"))
    for block in blocks:
        for name in vars(block):
            if f"no_{name}" in names:  # argparse has --no_bf16 for bf16
                names.remove(f"no_{name}")
                names.add(name)
    return frozenset(names)


def _set_computing_type(recipe: Recipe) -> None:
    """Let 4-bit weights compute in the type of the training; the default of transformers is float32."""
    settings = recipe.model.quantization_config
    if isinstance(settings, dict) and settings.get("load_in_4bit") and recipe.computing_type != "float32":
        recipe.model.quantization_config = {"bnb_4bit_compute_dtype": recipe.computing_type} | settings


def _set_dependent_defaults(blocks: Blocks, explicitly_set: frozenset[str]) -> None:
    """Set the settings of Trainer whose defaults depend on other settings."""
    _, data, prompt, training = blocks
    if "learning_rate" not in explicitly_set:
        method = METHODS[prompt.method]
        training.learning_rate = method.default_learning_rate(
            network=prompt.prefix_projection, layer_vectors=prompt.layer_vectors
        )
    if data.streaming:
        if "train_sampling_strategy" not in explicitly_set:
            training.train_sampling_strategy = "sequential"  # The stream itself is shuffled.
        # Otherwise one process reads for all, and cannot send them batches of different lengths.
        training.accelerator_config.dispatch_batches = False
    wants_best = training.load_best_model_at_end or training.save_strategy == "best"
    if wants_best and data.task and "metric_for_best_model" not in explicitly_set:
        training.metric_for_best_model = MAIN_METRIC[data.task]
        training.greater_is_better = True
    if training.lr_scheduler_type in PLATEAU_SCHEDULERS and training.greater_is_better:
        # The default of torch is min.
        training.lr_scheduler_kwargs = {"mode": "max"} | (training.lr_scheduler_kwargs or {})
    if (training.resume_from_checkpoint or "").lower() in ("false", "no"):
        training.resume_from_checkpoint = None


def load_tasks(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipes of the tasks of a multitask recipe by the tasks' names. A task's id is its place here.

    Raises:
        RecipeError: with all that is wrong with any of them.
    """
    tasks: dict[str, Recipe] = {}
    problems: list[str] = []
    for path in map(Path, recipe.prompt.tasks or ()):
        try:
            # The state of accelerate is that of the last recipe read, so that use_cpu must be the same.
            flags = [f"--use_cpu={recipe.training.use_cpu}", f"--{FLAG}={recipe.model.trust_remote_code}"]
            task = _read(path, flags)
        except RecipeError as error:
            problems.append(str(error))
            continue
        if METHODS[task.prompt.method].trains_several_tasks:
            problems.append(f"{path}: its method is {task.prompt.method} too. Name recipes that can be trained alone.")
        elif not is_plain_name(path.stem):
            problems.append(f"{path}: a task has the name of its file, and {path.stem!r} is no name. Rename the file.")
        elif task.data.streaming:
            problems.append(f"{path}: rows of several tasks are not streamed. Set streaming: false.")
        elif RunFolder.is_reserved(path.stem):
            problems.append(f"{path}: a run has a file or folder {path.stem}, so no task has that name. Rename it.")
        elif path.stem in tasks:
            problems.append(
                f"{path}: task {path.stem} is {tasks[path.stem].path} already. Rename one of the two files."
            )
        else:
            tasks[path.stem] = task
            problems += [f"{path}: {problem}" for problem in validation_errors(task)]
    if problems:
        raise RecipeError("\n".join(problems))
    return tasks


def read_switches(path: Path, names: Iterable[str]) -> dict[str, bool]:
    """Return switches of a saved recipe, typed as their flags type them: `no` is false. A missing one is false.

    Args:
        path: the recipe of a run.
        names: the settings to read.

    Raises:
        RecipeError: the recipe cannot be read, or a value is not a truth value.
    """
    values = {pair.key: pair.value for pair in read_pairs(path)}
    switches = {}
    for name in names:
        try:
            switches[name] = string_to_bool(values.get(name, False))
        except ArgumentTypeError as error:
            raise RecipeError(f"{path}: {name}: {first_line(error)}") from error
    return switches


def print_all_flags() -> None:
    """Print every flag with its type and default, also those of Trainer."""
    RecipeParser().print_help()


def read_pairs(path: Path) -> list[TextPair]:
    """Return the settings of a recipe, with every scalar as text: `no` is Norwegian, and a flag types `5e-5`.

    Keys have underscores instead of dashes. Settings that are null are left out.

    Raises:
        RecipeError: the file is missing, is not a mapping in YAML, or sets a key twice.
    """
    try:
        pairs = read_text_pairs(path, RecipeError)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe. Name a YAML file, such as recipes/quickstart/qa.yaml.") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: this is a folder. Name a recipe in it.") from None
    lines: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        key = pair.key.replace("-", "_")
        if key in lines:
            raise RecipeError(
                f"{path}, line {pair.line}: {key} was set on line {lines[key]} already. Keep one of the two."
            )
        lines[key] = pair.line
        pairs[number] = dataclasses.replace(pair, key=key)
    return [pair for pair in pairs if pair.value is not None]
