"""A recipe: one flat YAML file of flags, parsed once together with the command line.

Each `key: value` pair becomes `--key=value`, overrides follow, and one `HfArgumentParser` types all of it, so YAML and
flags mean the same. This module imports neither torch nor transformers until a recipe is parsed.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from prompt_tuning.arguments.arguments import (
    DataArguments,
    ModelArguments,
    PromptArguments,
)
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import RecipeError, first_line
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.recipe.validation import validation_errors
from prompt_tuning.support.yaml_files import TextPair, read_text_pairs

if TYPE_CHECKING:
    pass

PREDICTION_SETTINGS = ("output_dir", "seed", "generation_max_length", "generation_num_beams")  # of Trainer's settings


def load_recipe(path: str | Path, overrides: list[str] | None = None, for_prediction: bool = False) -> Recipe:
    """Read a recipe and type it together with its overrides.

    Args:
        path: a flat YAML file.
        overrides: as on the command line, `["--learning_rate", "0.1", "--bf16"]`.
        for_prediction: the recipe of a finished run. Its data need not be there, nor what it trained with: a GPU's
            number formats, or where it was logged to.

    Raises:
        RecipeError: with every unknown key, wrong type and missing setting at once.
    """
    recipe = _read(Path(path), overrides or [], for_prediction)
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


def _read(path: Path, overrides: list[str], for_prediction: bool = False) -> Recipe:
    pairs, parser = read_pairs(path), _parser()
    if for_prediction:
        of_training = {each.name for each in dataclasses.fields(parser.dataclass_types[-1])}
        pairs = [pair for pair in pairs if pair.key in PREDICTION_SETTINGS or pair.key not in of_training]
    problems = []
    for pair in pairs:
        problem = parser.problem(pair.key, pair.value)
        if problem:
            problems.append(f"{path}, line {pair.line}: {problem}")
    problems += parser.problems_of(overrides)
    if problems:
        raise RecipeError("\n".join(problems))

    argv = [f"--output_dir=runs/{path.stem}"]
    for pair in pairs:
        argv += to_argv(pair.key, pair.value)
    try:
        blocks = parser.parse_args_into_dataclasses(argv + overrides, look_for_args_file=False)
    except (ValueError, TypeError, ImportError, OSError) as error:  # raised by the dataclasses' own __post_init__
        raise RecipeError(f"{path}: {first_line(error)}") from error
    flags = (item.lstrip("-").split("=")[0].replace("-", "_") for item in overrides if item.startswith("--"))
    off = {f"no_{name}": name for block in blocks for name in vars(block)}  # argparse's --no_bf16
    given = frozenset(off.get(name, name) for name in (*flags, *(pair.key for pair in pairs)))
    model, data, prompt, training = blocks
    if "learning_rate" not in given:
        method = METHODS[prompt.method]
        training.learning_rate = method.default_learning_rate(network=prompt.prefix_projection)
    if data.streaming:
        if "train_sampling_strategy" not in given:
            training.train_sampling_strategy = "sequential"  # in the order of the stream, which is shuffled by itself
        # Else one process reads for all, and cannot send them batches of unlike length.
        training.accelerator_config.dispatch_batches = False
    wants_best = training.load_best_model_at_end or training.save_strategy == "best"
    if wants_best and data.task and "metric_for_best_model" not in given:
        training.metric_for_best_model, training.greater_is_better = MAIN_METRIC[data.task], True
    if training.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and training.greater_is_better:
        training.lr_scheduler_kwargs = {"mode": "max"} | (training.lr_scheduler_kwargs or {})  # torch's own is min
    if (training.resume_from_checkpoint or "").lower() in ("false", "no"):
        training.resume_from_checkpoint = None
    return Recipe(path, model, data, prompt, training, given)


def load_tasks(recipe: Recipe) -> dict[str, Recipe]:
    """The recipes of a multitask recipe's tasks, by the tasks' names; a task's id is its place here.

    Raises:
        RecipeError: with all that is wrong with any of them.
    """
    tasks: dict[str, Recipe] = {}
    problems = []
    for path in map(Path, recipe.prompt.tasks or ()):
        try:
            # Its method decides whether the rest is looked at; accelerate's state is that of the last recipe read.
            task = _read(path, [f"--use_cpu={recipe.training.use_cpu}"])
        except RecipeError as error:
            problems.append(str(error))
            continue
        if METHODS[task.prompt.method].trains_several_tasks:
            problems.append(
                f"{path}: its method is {task.prompt.method} too; name recipes that could each be trained alone"
            )
        elif task.data.streaming:
            problems.append(f"{path}: rows of several tasks are not streamed; set streaming: false")
        elif path.stem in tasks:
            problems.append(
                f"{path}: task {path.stem} is {tasks[path.stem].path} already; rename one of the two files"
            )
        else:
            tasks[path.stem] = task
            problems += [f"{path}: {problem}" for problem in validation_errors(task)]
    if problems:
        raise RecipeError("\n".join(problems))
    return tasks


def print_all_flags() -> None:
    """Every flag with its type and default, the Trainer's too."""
    _parser().print_help()


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
        raise RecipeError(f"{path} is a folder. Name a recipe in it.") from None
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


def to_argv(key: str, value: str | list | dict) -> list[str]:
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(_typed(value)) if isinstance(value, dict) else value}"]


def _typed(value: Any) -> Any:
    """The numbers and truth values in a mapping, which transformers would leave texts where they are as `1e-5`."""
    if isinstance(value, dict):
        return {key: _typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_typed(each) for each in value]
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def _parser():
    from transformers import HfArgumentParser

    from prompt_tuning.arguments.training_args import PromptTuningArguments

    class RecipeParser(HfArgumentParser):
        """Reports a bad flag in place of leaving the process."""

        def error(self, message: str) -> NoReturn:
            raise RecipeError(message)

        def unknown(self, name: str) -> str:
            known = [option.removeprefix("--") for option in self._option_string_actions if "-" not in option[2:]]
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "`prompt-tuning train --help_all` lists them all"
            return f"unknown setting {name}; {hint}"

        def problem(self, key: str, value: str | list | dict) -> str | None:
            """What is wrong with one pair, if anything."""
            if f"--{key}" not in self._option_string_actions:
                return self.unknown(key)
            items = map(str, value) if isinstance(value, list) else ()
            if flag := next((item for item in items if re.match(r"--?[A-Za-z]\S*$|--$", item)), None):
                return f"{key}: the item {flag!r} looks like a flag; word it in another way"
            try:
                _, rest = self.parse_known_args(to_argv(key, value))
            except RecipeError as error:
                return str(error)
            return f"{key}: expected one value, found a list of {len(value)}" if rest else None

        def problems_of(self, overrides: list[str]) -> list[str]:
            """What is wrong with the command line's flags."""
            try:
                _, rest = self.parse_known_args(overrides)
            except RecipeError as error:
                return [f"command line: {error}"]
            names = [item.lstrip("-").split("=")[0] for item in rest if item.startswith("-")] or rest
            return [f"command line: {self.unknown(name)}" for name in names]

    blocks = (ModelArguments, DataArguments, PromptArguments, PromptTuningArguments)
    return RecipeParser(blocks, allow_abbrev=False, add_help=False)
