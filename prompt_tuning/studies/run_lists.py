"""Read which runs a sweep, a comparison or a ranking has, and check the text of their recipes.

It imports nothing large, so that wrong recipes are refused at once.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prompt_tuning.errors import ErrorList, PromptTuningError, RecipeError
from prompt_tuning.recipe.drafts import checked_draft, read_pairs
from prompt_tuning.recipe.other_names import flag_name, split_flags
from prompt_tuning.recipe.parser import list_error, to_argv
from prompt_tuning.recipe.ranges import RATE
from prompt_tuning.recipe.recipe import RecipeSource
from prompt_tuning.support.files import is_plain_name
from prompt_tuning.support.trust import ADVICE, FLAG, OF_COMMAND_LINE

KEYS = ("recipe", "runs")
RATES = "learning_rates"
TABLES = ("sweep.json", "sweep.md")
SWEEP_SETTINGS = ("output_dir", "resume_from_checkpoint")


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Args:
        recipe: its recipe.
        flags: its other settings, as flags of the recipe.
        learning_rates: those that `compare` tries; none if the recipe's is taken.
    """

    recipe: RecipeSource
    flags: list[str]
    learning_rates: tuple[float, ...] = ()


def runs_of_sweep(path: str, overrides: list[str], folder: Path) -> dict[str, SweepRun]:
    """Return the runs of a sweep by name, each with the flags for all runs and with its folder.

    Raises:
        PromptTuningError: all that the text of any recipe shows to be wrong.
    """
    runs = {}
    errors = ErrorList()
    for name, run in read_sweep(Path(path)).items():
        flags = [*run.flags, *overrides, f"--output_dir={folder / name}", "--resume_from_checkpoint=auto"]
        runs[name] = SweepRun(run.recipe, flags)
        with naming_run(name, errors):
            checked_draft(run.recipe, flags)
    errors.raise_all()
    return runs


@contextlib.contextmanager
def naming_run(name: str, errors: ErrorList) -> Iterator[None]:
    """Keep an error of the block, whose lines then name the run, and continue after the block."""
    try:
        yield
    except PromptTuningError as error:
        errors.append(type(error)(textwrap.indent(str(error), f"run {name}: ")))


def runs_of_comparison(
    sources: Sequence[str] | Mapping[str, RecipeSource], overrides: list[str], learning_rates: Sequence[float]
) -> dict[str, SweepRun]:
    """Return the recipes by their place in the table, each with the flags and rates for all.

    Args:
        sources: files of one recipe or of several; or recipes by their names in the table.
        overrides: flags for all recipes.
        learning_rates: those that are tried for each recipe that has none of its own.

    Raises:
        PromptTuningError: two of them have the same name, a recipe has a setting that the comparison sets, or the
            text of a recipe is wrong.
    """
    runs: dict[str, SweepRun] = {}
    named = [_read_runs(path) for path in sources] if not isinstance(sources, Mapping) else [_named_runs(sources)]
    for of_file in named:
        for name, run in of_file.items():
            if name in runs:
                raise RecipeError(f"{', '.join(sources)}: two recipes have the same file name. Rename one of them.")
            flags = [*run.flags, *overrides]
            rates = run.learning_rates or tuple(dict.fromkeys(learning_rates))
            _check_flags(name, flags, rates)
            checked_draft(run.recipe, flags)
            runs[name] = SweepRun(run.recipe, flags, rates)
    return runs


def flags_of_ranking(counts: Sequence[int] | None) -> list[str]:
    """Return the flags with which a ranking reads its recipe: the largest number of demonstrations, to check it."""
    flags = [f"--num_demonstrations={max(counts)}"] if counts else []
    if counts and not max(counts):
        # A recipe that chooses demonstrations in another way is refused if it shows none.
        flags.append("--demonstration_selection=random")
    return flags


def read_sweep(path: Path, *, takes_learning_rates: bool = False) -> dict[str, SweepRun]:
    """Read a sweep, and return its runs by name.

    Args:
        path: a YAML file.
        takes_learning_rates: a run may have a list `learning_rates`.

    Raises:
        RecipeError: it is not a sweep, or a run has a name or a setting that it cannot have.
    """
    settings = {pair.key: pair.value for pair in read_pairs(path)}
    unknown = sorted(settings.keys() - set(KEYS))
    if unknown:
        advice = ". Search ranges with --backend optuna." if unknown == ["ranges"] else ""
        raise RecipeError(f"{path}: unknown key {unknown[0]}; a sweep has {' and '.join(KEYS)}{advice}")
    entries = settings.get("runs")
    if not isinstance(entries, dict) or not entries:
        raise RecipeError(f"{path}: expected `runs: {{name: {{setting: value}}}}`, found {entries!r}")
    runs = {}
    errors = ErrorList()
    for name, entry in entries.items():
        with errors.collect():
            learning_rates: tuple[float, ...] = ()
            if takes_learning_rates and isinstance(entry, dict) and RATES in entry:
                learning_rates = _read_learning_rates(entry[RATES], f"{path}: run {name}: {RATES}")
                entry = {key: value for key, value in entry.items() if key != RATES}
            run = _read_run(name, entry or {}, settings.get("recipe"), path)
            runs[name] = replace(run, learning_rates=learning_rates)
    errors.raise_all()
    return runs


def _read_run(name: str, settings: Any, common_recipe: Any, path: Path) -> SweepRun:
    """Return a run of a sweep.

    Raises:
        RecipeError: all errors of its name and settings.
    """
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: run {name}: expected `{{setting: value}}`, found {settings!r}")
    recipe = settings.get("recipe", common_recipe)
    errors = _name_errors(name)
    if not isinstance(recipe, str):
        errors.append("it has no recipe. Set `recipe` to a file for this run or for all runs.")
    flags = []
    for key, value in settings.items():
        error = _setting_error(key, value)
        if error:
            errors.append(error)
        elif key != "recipe":
            flags += to_argv(key, "null" if value == "~" else value)
    if errors:
        raise RecipeError(textwrap.indent("\n".join(errors), f"{path}: run {name}: "))
    return SweepRun(str(recipe), flags)


def _read_learning_rates(value: Any, place: str) -> tuple[float, ...]:
    """Return a list of learning rates; raise a RecipeError if it is not one."""
    texts = value if isinstance(value, list) else [value]
    try:
        rates = tuple(dict.fromkeys(map(float, texts)))
    except (TypeError, ValueError):
        rates = ()
    if not rates or not all(rate in RATE for rate in rates):
        raise RecipeError(f"{place}: expected numbers {RATE}, found {value!r}. Write a list such as [1e-3, 3e-3].")
    return rates


def _setting_error(key: str, value: Any) -> str | None:
    """Return what is wrong with one setting of a run, or None."""
    if key in SWEEP_SETTINGS:
        return f"the sweep sets {key}. Leave it out."
    if flag_name(key) == FLAG:
        return f"{key}: only the command line can allow Python code of others. Leave it out. {ADVICE}"
    if flag_name(key) in OF_COMMAND_LINE:
        return f"{key} is {value!r}: only the command line decides which server gets rows and a key. Leave it out."
    return list_error(key, value)


def _name_errors(name: str) -> list[str]:
    """Return what is wrong with the name of a run, which is also that of its folder."""
    errors = []
    if not is_plain_name(name) or name.startswith("."):
        errors.append("its folder has its name. Write the name without / and without a leading dot.")
    if name.lower() in TABLES:
        errors.append(f"the sweep writes its table to {name}. Give the run another name.")
    return errors


def _read_runs(path: str) -> dict[str, SweepRun]:
    """Return the runs of a file of several recipes, or a recipe as one run."""
    keys: set[str] = set()
    with contextlib.suppress(RecipeError):  # The recipe's own loading reports it together with wrong flags.
        keys = {pair.key for pair in read_pairs(Path(path))}
    if "runs" in keys:
        return read_sweep(Path(path), takes_learning_rates=True)
    return {Path(path).stem: SweepRun(path, [])}


def _named_runs(sources: Mapping[str, RecipeSource]) -> dict[str, SweepRun]:
    """Return recipes by their names; raise a RecipeError if a name cannot be that of a folder."""
    for name in sources:
        errors = _name_errors(name)
        if errors:
            raise RecipeError(f"recipe {name!r}: {errors[0]}")
    return {name: SweepRun(source, []) for name, source in sources.items()}


def _check_flags(name: str, flags: list[str], learning_rates: Sequence[float]) -> None:
    """Raise a RecipeError if a flag has no effect, because the comparison sets it."""
    names = {flag_name(words[0]) for words in split_flags(flags)}
    if "seed" in names:
        raise RecipeError("seed has no effect, since every recipe is trained with every one of --seeds. Set --seeds.")
    if "learning_rate" in names and learning_rates:
        raise RecipeError(f"{name}: learning_rate has no effect beside learning_rates. Leave one of them out.")
