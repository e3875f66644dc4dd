"""Several runs in one process: which are finished, and one base model for all that do not change it."""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from prompt_tuning.arguments.arguments import ModelArguments
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.data.loading import SPLITS, split_origin
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.models.loading import load_base_model, load_config
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.fingerprints import input_fingerprints
from prompt_tuning.runs.prepare import Prepared
from prompt_tuning.runs.train import train
from prompt_tuning.support.files import read_json


def is_finished(recipe: Recipe) -> bool:
    """Whether the recipe's folder holds its finished run.

    Raises:
        RecipeError: a run with other settings, finished or begun.
    """
    run = Path(recipe.training.output_dir)
    if (run / "recipe.yaml").is_file() and (changed := recipe.changed_since(run)):
        raise RecipeError(
            f"{run} was run with other settings ({', '.join(changed)}); remove it, or name another --output_dir"
        )
    return (run / "results.json").is_file()


def check_unchanged(prepared: Prepared) -> None:
    """Raise a DataError if a finished run had other rows, other words in its template, or other weights than now."""
    recipe, run = prepared.recipe, Path(prepared.recipe.training.output_dir)
    known, now = read_json(run / "results.json").get("inputs", {}), input_fingerprints(prepared)
    if changed := [name for name in known if known[name] != now.get(name)]:
        settings = recipe.resolved()
        named = [
            f"{split_origin(recipe.data, name)}, or the template's words or answers" if name in SPLITS
            else f"{name} {settings.get(name, '')}"
            for name in changed
        ]  # fmt: skip
        raise DataError(
            f"{run} was run before this changed: {'; '.join(named)}; remove it, or name another --output_dir"
        )


@dataclass
class SharedBaseModel:
    """The base model of one run after the other, read again only where a recipe names another."""

    args: ModelArguments | None = None
    model: PreTrainedModel | None = None

    def train(self, recipe: Recipe, *, evaluate_hard_prompt: bool = True) -> Path:
        """`train` with this model; bit for bit what it gives alone, on a CPU."""
        if METHODS[recipe.prompt.method].trains_whole_model:  # which changes the weights themselves
            return train(recipe, evaluate_hard_prompt=evaluate_hard_prompt)
        if self.args != recipe.model:
            self.args = self.model = None
            gc.collect()
            self.model, self.args = load_base_model(recipe.model, load_config(recipe.model)), recipe.model
        try:
            return train(recipe, evaluate_hard_prompt=evaluate_hard_prompt, base=sharing_weights(self.model))
        finally:
            gc.collect()  # a trainer and its model refer to each other


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Another model of the same weights in memory: what is added to it or hooked into it does not reach the first."""
    shared = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
