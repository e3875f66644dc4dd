"""Read the ranges that a search draws settings from.

It imports nothing large, so that a wrong file is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_tuning.errors import ErrorList, RecipeError
from prompt_tuning.recipe.drafts import checked_draft, read_pairs
from prompt_tuning.recipe.parser import RecipeParser, to_argv

if TYPE_CHECKING:
    from optuna import Trial

KEYS = ("recipe", "ranges")
SEARCHED = (
    "learning_rate", "weight_decay", "warmup_steps", "lr_scheduler_type", "optim", "max_grad_norm", "max_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "label_smoothing_factor",
    "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
"""The settings that a trial may change: those that only the training reads, not the rows or the prompt's start."""
EXPECTED = "{low: NUMBER, high: NUMBER}, with log: true for a logarithmic one, or a list of values"


@dataclass(frozen=True)
class SettingRange:
    """The values of one setting.

    Args:
        low: the least number, for a range.
        high: the largest number, for a range.
        log: draw the logarithm of a number, instead of the number, from the range.
        values: the values themselves, for a list.
    """

    low: float = 0
    high: float = 0
    log: bool = False
    values: tuple[Any, ...] = ()

    def draw(self, name: str, trial: Trial) -> Any:
        """Return the value that optuna draws for a setting in a trial."""
        if self.values:
            return trial.suggest_categorical(name, self.values)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


def read_search(path: str, overrides: list[str]) -> tuple[str, dict[str, SettingRange]]:
    """Return the recipe of a search and its ranges by setting.

    Args:
        path: a YAML file with `recipe`, a file, and `ranges`.
        overrides: flags of the recipe.

    Raises:
        PromptTuningError: all that the text of the file and of the recipe shows to be wrong.
    """
    settings = {pair.key: pair.value for pair in read_pairs(Path(path))}
    recipe, ranges = settings.get("recipe"), settings.get("ranges")
    unknown = sorted(settings.keys() - set(KEYS))
    if unknown:
        raise RecipeError(f"{path}: unknown key {unknown[0]}. A search has {' and '.join(KEYS)}.")
    if not isinstance(recipe, str) or not isinstance(ranges, dict) or not ranges:
        raise RecipeError(f"{path}: expected a file `recipe` and `ranges: {{setting: {{low: 1, high: 2}}}}`.")
    errors = ErrorList()
    read = {}
    for name, value in ranges.items():
        with errors.collect():
            read[name] = _read_range(name, value, f"{path}: ranges: {name}")
    with errors.collect():
        checked_draft(recipe, overrides)
    errors.raise_all()
    return recipe, read


def _read_range(name: str, value: Any, place: str) -> SettingRange:
    """Return a range; raise a RecipeError if it is not one, or has a value that the setting cannot have."""
    if name not in SEARCHED:
        raise RecipeError(f"{place}: a trial cannot change it. It can change {', '.join(SEARCHED)}.")
    if isinstance(value, list) and value:
        return SettingRange(values=tuple(_typed(name, item, place) for item in value))
    if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise RecipeError(f"{place}: found {value!r}. Write it as {EXPECTED}.")
    low, high = _typed(name, value["low"], place), _typed(name, value["high"], place)
    log = value.get("log", "false") == "true"
    if isinstance(low, str) or not low < high or (log and low <= 0):
        raise RecipeError(
            f"{place}: found {dict(value)}. Write it as {EXPECTED}; low is below high, and log needs low above 0."
        )
    return SettingRange(low, high, log)


def _typed(name: str, text: Any, place: str) -> Any:
    """Return a value as the setting's type."""
    try:
        return RecipeParser().typed_flags(to_argv(name, text))[name]
    except RecipeError as error:
        raise RecipeError(f"{place}: {str(error).removeprefix('command line: ')}") from error
