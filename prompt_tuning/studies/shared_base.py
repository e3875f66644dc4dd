"""Run several recipes in one process: skip finished runs, and share one base model that no run changes."""

from __future__ import annotations

import copy
import gc
import logging
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from prompt_tuning.arguments.data_args import SPLITS
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.training_args import sharding
from prompt_tuning.data.loading import split_origin
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.models.loading import load_base_model, load_config
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.run_files import read_results
from prompt_tuning.runs.fingerprints import input_fingerprints
from prompt_tuning.runs.prepare import Prepared
from prompt_tuning.runs.resume import BASE_MODEL, changed_since
from prompt_tuning.runs.train import train
from prompt_tuning.support.run_folder import RunFolder

logger = logging.getLogger(__name__)


def is_finished(recipe: Recipe) -> bool:
    """Return whether the recipe's folder holds its finished run.

    Raises:
        RecipeError: the folder holds a run with other settings, finished or not.
    """
    run = RunFolder(Path(str(recipe.training.output_dir)))
    changed = changed_since(recipe, run.path)
    if run.results.is_file():
        changed.pop(BASE_MODEL, None)  # `check_unchanged` names everything besides the settings.
    if changed:
        raise RecipeError(
            f"{run.path} was run with other settings ({', '.join(changed)}). Remove it, or name another --output_dir."
        )
    return run.results.is_file()


def has_runs(folder: Path) -> bool:
    """Return whether a folder holds runs of `train`, by which a sweep or comparison of version 0.1.0 is known."""
    return any(RunFolder(path.parent).is_run() for path in folder.glob(f"*/{RunFolder.RECIPE}"))


def check_unchanged(prepared: Prepared) -> None:
    """Compare the rows, template and weights of a finished run with those that its recipe has now.

    Raises:
        DataError: they differ.
    """
    recipe = prepared.recipe
    run = RunFolder(Path(str(recipe.training.output_dir)))
    saved = read_results(run.path).get("inputs", {})
    current = input_fingerprints(prepared)
    settings = recipe.resolved()
    changed = []
    for name, fingerprint in saved.items():
        if fingerprint == current.get(name):
            continue
        if name in SPLITS:
            changed.append(f"{split_origin(recipe.data, name)}, or the template's words or answers")
        else:
            changed.append(f"{name} {settings.get(name, '')}")
    if changed:
        raise DataError(
            f"{run.path} was run before this changed: {'; '.join(changed)}. Remove it, or name another --output_dir."
        )


@dataclass
class SharedBaseModel:
    """The base model of several runs, read again only if a recipe names another model.

    Args:
        args: names the model that was read last.
        model: the model that was read last.
        planned: the number of runs, for messages.
        begun: the number of those that have begun, or were finished before.
    """

    args: ModelArguments | None = None
    model: PreTrainedModel | None = None
    planned: int = 0
    begun: int = 0

    def announce(self, name: str, *, finished: bool) -> None:
        """Count a run, and say which one of how many begins unless it is finished."""
        self.begun += 1
        if not finished:
            logger.info("== run %s of %s: %s", self.begun, self.planned, name)

    def train(self, recipe: Recipe, *, evaluate_hard_prompt: bool = True, split: str | None = None) -> Path:
        """Train a recipe with this model, evaluate a split as `runs.train.train` does, and return the run's folder.

        On a CPU the result is bit for bit that of `runs.train.train`, which reads the model by itself.
        """
        # No other run may use weights that change or that ZeRO-3 splits. A model behind an API has none here.
        changes = METHODS[recipe.prompt.method].trains_whole_model or sharding(recipe.training) == "ZeRO-3"
        if changes or recipe.model.api_name is not None:
            return train(recipe, evaluate_hard_prompt=evaluate_hard_prompt, split=split)
        if self.args != recipe.model:
            self.args = None
            self.model = None
            gc.collect()
            self.model = load_base_model(recipe.model, load_config(recipe.model))
            self.args = recipe.model
        try:
            base = sharing_weights(self.model)
            return train(recipe, evaluate_hard_prompt=evaluate_hard_prompt, base=base, split=split)
        finally:
            gc.collect()  # A trainer and its model refer to each other.


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return another model with the same weights in memory.

    Modules and hooks that are added to it do not reach the first model.
    """
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, dict(zip(map(id, tensors), tensors, strict=True)))
