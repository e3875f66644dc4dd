"""Read recipes as their text says them: each pair of a flat YAML file becomes a flag, typed with the command line.

It imports nothing large, so that a wrong recipe is refused at once.
"""

from __future__ import annotations

import argparse
import dataclasses
from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.flags import truth_value
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import ErrorList, RecipeError, first_line
from prompt_tuning.recipe.automatic import AUTO, replace_auto
from prompt_tuning.recipe.old_settings import translate
from prompt_tuning.recipe.other_names import flag_name
from prompt_tuning.recipe.parser import RecipeParser, to_argv
from prompt_tuning.recipe.recipe import Draft, RecipeSource
from prompt_tuning.recipe.validation import text_errors
from prompt_tuning.support.files import is_plain_name
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.trust import ADVICE, FLAG, OF_COMMAND_LINE
from prompt_tuning.support.yaml_files import TextPair, read_text_pairs, text_pairs, to_yaml
from prompt_tuning.templates.template import Template

# The settings of Trainer that a finished run predicts with.
PREDICTION_SETTINGS = ("output_dir", "seed", "generation_max_length", "generation_num_beams")

OF_PYTHON = Path("recipe")
"""What messages call a recipe that is a mapping."""

Block = TypeVar("Block")


def checked_draft(source: RecipeSource, overrides: list[str]) -> Draft:
    """Read a recipe, and check all that its text and the files that it names show.

    Args:
        source: a flat YAML file, or its settings as a mapping.
        overrides: as on the command line, `["--learning_rate", "0.1", "--bf16"]`.

    Raises:
        PromptTuningError: with every unknown key, wrong type, missing setting and wrong template at once.
    """
    draft = read_draft(source, overrides)
    errors = ErrorList()
    with errors.collect():
        problems = text_errors(draft)
        tasks: dict[str, Draft] = {}
        if METHODS[draft.prompt.method].trains_several_tasks:
            try:
                tasks = draft_tasks(draft)
            except RecipeError as error:
                problems += str(error).splitlines()
        if problems:
            raise RecipeError("\n".join(f"{draft.path}: {problem}" for problem in problems))
    for part in (draft, *tasks.values()):
        for template in filter(None, (part.prompt.template, part.prompt.teacher_template)):
            with errors.collect():
                Template.load(template)
    errors.raise_all()
    return draft


def read_draft(source: RecipeSource, overrides: list[str], *, for_prediction: bool = False) -> Draft:
    """Read and type a recipe.

    Args:
        source: a flat YAML file, or its settings as a mapping.
        overrides: as on the command line. One that is `null` takes back the recipe's setting.
        for_prediction: the recipe is that of a finished run.

    Raises:
        RecipeError: with every unknown key and wrong type at once.
    """
    parser = RecipeParser()
    path = OF_PYTHON if isinstance(source, Mapping) else Path(source)
    try:
        pairs = pairs_of_settings(source) if isinstance(source, Mapping) else read_pairs(path)
    except RecipeError as error:
        # The value of a misspelt flag before RECIPE is taken for the recipe, so that the flags are reported too.
        raise RecipeError("\n".join([str(error), *parser.flag_errors(overrides)])) from None
    if for_prediction:
        pairs = translate(path, [pair for pair in pairs if _is_for_prediction(pair.key, parser)])
    taken_back, overrides = parser.take_back(overrides)
    pairs = [pair for pair in pairs if pair.key not in taken_back]
    values = _parse(path, parser, pairs, overrides)
    explicitly_set = parser.settings_of([*(f"--{pair.key}" for pair in pairs), *overrides])
    try:
        model = build(ModelArguments, values, explicitly_set)
        data = build(DataArguments, values, explicitly_set)
        prompt = build(PromptArguments, values, explicitly_set)
        choice = ""
        if prompt.method == AUTO:
            prompt, choice = replace_auto(prompt, explicitly_set, streaming=data.streaming)
    except (ValueError, RecipeError) as error:
        raise RecipeError(f"{path}: {first_line(error)}") from error
    if data.streaming and "train_sampling_strategy" not in explicitly_set:
        values["train_sampling_strategy"] = "sequential"  # The stream itself is shuffled.
    return Draft(path, model, data, prompt, argparse.Namespace(**values), explicitly_set, choice)


def build(block: type[Block], values: Mapping[str, Any], names: Iterable[str]) -> Block:
    """Return a block of settings, with its own defaults for all except the named ones."""
    settings = {field.name for field in dataclasses.fields(block)}  # type: ignore[arg-type]
    return block(**{name: values[name] for name in settings.intersection(names)})


def _is_for_prediction(name: str, parser: RecipeParser) -> bool:
    """Return whether a setting of a finished run is read to predict with it, or is not a setting any more."""
    if name in OF_COMMAND_LINE:
        return False
    read_settings = vars(ModelArguments()) | vars(DataArguments()) | vars(PromptArguments())
    return name in read_settings or name in PREDICTION_SETTINGS or not parser.has_setting(name)


def _parse(path: Path, parser: RecipeParser, pairs: list[TextPair], overrides: list[str]) -> dict[str, Any]:
    """Type pairs and overrides; raise RecipeError with all that is wrong with any of them."""
    problems = []
    for pair in pairs:
        problem = parser.pair_error(pair.key, pair.value)
        if not problem and pair.key in OF_COMMAND_LINE:
            problem = _trust_error(pair, overrides)
        if problem:
            line = "" if path is OF_PYTHON else f", line {pair.line}"
            problems.append(f"{path}{line}: {problem}")
    problems += parser.flag_errors(overrides)
    if problems:
        raise RecipeError("\n".join(problems))
    argv = [f"--output_dir=runs/{path.stem}"]
    for pair in pairs:
        if pair.key not in OF_COMMAND_LINE:
            argv += to_argv(pair.key, pair.value)
    return vars(parser.parse_args(argv + overrides))


def _trust_error(pair: TextPair, overrides: list[str]) -> str | None:
    """Return what is wrong with a recipe that asks for what only the command line can allow.

    That is the code of others, and the server that gets rows and a key.
    """
    if pair.key in map(flag_name, overrides):
        return None
    if pair.key != FLAG:
        return (
            f"{pair.key}: the recipe sets it to {pair.value!r}, and only the command line decides which server gets "
            f"rows and a key. Give --{pair.key} there if you trust the server."
        )
    if not truth_value(str(pair.value)):
        return None
    return f"{FLAG}: the recipe asks to run Python code of others, and only the command line can allow it. {ADVICE}"


def draft_tasks(recipe: Draft) -> dict[str, Draft]:
    """Return the recipes of the tasks of a multitask recipe by the tasks' names. A task's id is its place here.

    Raises:
        RecipeError: with all that is wrong with the text of any of them.
    """
    tasks: dict[str, Draft] = {}
    problems: list[str] = []
    for path in map(Path, recipe.prompt.tasks or ()):
        try:
            # The state of accelerate is that of the last recipe read, so that use_cpu must be the same.
            flags = [f"--use_cpu={recipe.training.use_cpu}", f"--{FLAG}={recipe.model.trust_remote_code}"]
            task = read_draft(path, flags)
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
            problems += [f"{path}: {problem}" for problem in text_errors(task)]
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
            switches[name] = truth_value(str(values.get(name, "no")))
        except ArgumentTypeError as error:
            raise RecipeError(f"{path}: {name}: {first_line(error)}") from error
    return switches


def read_pairs(path: Path) -> list[TextPair]:
    """Return the settings of a recipe, with every scalar as text: `no` is Norwegian, and a flag types `5e-5`.

    Keys have underscores instead of dashes. Settings that are null are left out.

    Raises:
        RecipeError: the file is missing, is not a mapping in YAML, or sets a key twice.
    """
    try:
        pairs = read_text_pairs(path, RecipeError)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe. Name a YAML file; `prompt-tuning recipes` lists ours.") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: this is a folder. Name a recipe in it.") from None
    return _without_nulls(pairs, path)


def pairs_of_settings(settings: Mapping[str, Any]) -> list[TextPair]:
    """Return the settings of a mapping as `read_pairs` returns those of a file; a setting that is None is left out.

    Raises:
        RecipeError: a key is not a text, or a value is not one that a file can hold.
    """
    plain = {}
    for key, value in settings.items():
        if not isinstance(key, str):
            raise RecipeError(f"{OF_PYTHON}: the key {key!r} is not a text. Name a setting.")
        plain[key] = str(value) if isinstance(value, Path) else value
        try:
            to_yaml(plain[key])
        except TypeError:
            kind = type(value).__name__
            raise RecipeError(
                f"{OF_PYTHON}: {key} is or holds an object that no file of settings can hold ({kind}). Set a text, a "
                "number, a truth value, a list or a dict."
            ) from None
    return _without_nulls(text_pairs(to_yaml(plain), OF_PYTHON, RecipeError), OF_PYTHON)


def _without_nulls(pairs: list[TextPair], path: Path) -> list[TextPair]:
    """Return settings without those that are null, their keys with underscores; raise RecipeError for a key twice."""
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
