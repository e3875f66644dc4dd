"""Train, evaluate, save: the whole data flow in its order."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import yaml
from accelerate import PartialState
from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from prompt_tuning.config import Recipe
from prompt_tuning.data import split_origin
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.evaluation import describe, predict_and_score, trainer_for, write_run
from prompt_tuning.files import whole_file, whole_folder
from prompt_tuning.model import add_soft_prompt, initial_prompt, load_base_model, prompt_config
from prompt_tuning.model_card import write_card
from prompt_tuning.prepare import Prepared, prepare

logger = logging.getLogger(__name__)


def train(recipe: Recipe) -> Path:
    """Run a recipe.

    Returns:
        The run's folder: the adapter as PEFT saves it, recipe.yaml, template.yaml, results.json, predictions/,
        README.md and the checkpoints.
    """
    folder = Path(recipe.training.output_dir)
    checkpoint = _checkpoint(recipe, folder)
    prepared = prepare(
        recipe, ("train", "validation", "test") if recipe.prompt.method != "none" else ("validation", "test")
    )
    _check_splits(prepared)
    split = "test" if "test" in prepared.encoded else "validation"

    set_seed(recipe.training.seed)
    base = load_base_model(recipe.model, prepared.config)
    results, predictions = describe(prepared, split), {}
    started = time.perf_counter()
    if recipe.prompt.method != "none":
        initial = initial_prompt(base, prepared.tokenizer, recipe.prompt, recipe.training.seed)
        model = add_soft_prompt(base, prompt_config(base, prepared.num_virtual_tokens), initial)
        trainable, total = model.get_nb_trainable_parameters()
        logger.info("training %s of %s parameters (%.3f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)
        trainer = trainer_for(model, prepared, _callbacks(recipe))
        trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - started
        if trainer.is_world_process_zero():
            _save(model, prepared, folder)
        results |= {
            "train_rows": prepared.reports["train"].rows,
            "train_steps": trainer.state.global_step,
            "trainable_parameters": trainable,
            "train_seconds": round(seconds, 1),
        }
        if trainer.state.best_model_checkpoint:
            results["best_checkpoint"] = Path(trainer.state.best_model_checkpoint).name
        logger.info("evaluating the soft prompt on %s", split_origin(recipe.data, split))
        started = time.perf_counter()
        predictions["soft_prompt"], results["soft_prompt"] = predict_and_score(model, prepared, split)

    # A soft prompt changes nothing of the base model, so this is the same loaded model without it.
    logger.info("evaluating the hard prompt alone")
    predictions["hard_prompt"], results["hard_prompt"] = predict_and_score(base, prepared, split)
    results["evaluation_seconds"] = round(time.perf_counter() - started, 1)
    write_run(folder, results, prepared, split, predictions)
    if recipe.prompt.method != "none" and PartialState().is_main_process:
        write_card(folder)
    return folder


def _checkpoint(recipe: Recipe, folder: Path) -> str | None:
    """What to resume from; nothing that an earlier run left is written over unasked."""
    wanted = recipe.training.resume_from_checkpoint
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if wanted and wanted.lower() in ("true", "auto"):
        wanted = wanted.lower()
    elif wanted:
        if not Path(wanted).is_dir():
            raise RecipeError(f"resume_from_checkpoint {wanted}: no such folder; true and auto take the last one")
        return wanted
    if last is None and wanted == "true":
        raise RecipeError(f"resume_from_checkpoint: no checkpoint in {folder}; `auto` starts from the beginning then")
    if (last and not wanted) or (last is None and (folder / "results.json").exists()):
        raise RecipeError(
            f"{folder} holds {Path(last).name if last else 'a finished run'} already; "
            f"{'continue it with --resume_from_checkpoint true, ' if last else ''}name another --output_dir, "
            "or remove the folder"
        )
    return last


def _check_splits(prepared: Prepared) -> None:
    recipe, found = prepared.recipe, set(prepared.encoded)
    if recipe.prompt.method != "none" and "train" not in found:
        raise DataError(f"{recipe.path}: no training rows; set train_file")
    if recipe.training.eval_strategy != "no" and "validation" not in found:
        raise DataError(
            f"{recipe.path}: eval_strategy is {recipe.training.eval_strategy.value} but there are no "
            "validation rows; set validation_file, or eval_strategy: 'no'"
        )
    if not found & {"validation", "test"}:
        raise DataError(f"{recipe.path}: no rows to evaluate on; set test_file or validation_file")


def _callbacks(recipe: Recipe) -> list[EarlyStoppingCallback]:
    if recipe.prompt.early_stopping_patience is None:
        return []
    return [EarlyStoppingCallback(recipe.prompt.early_stopping_patience, recipe.prompt.early_stopping_threshold)]


def _save(model, prepared: Prepared, folder: Path) -> None:
    """The adapter, and what `predict` needs to build the same prompt again."""
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's placeholder card; ours follows the evaluation
    with whole_file(folder / "recipe.yaml") as file:
        yaml.safe_dump(prepared.recipe.resolved(), file, sort_keys=False, allow_unicode=True, width=120)
    with whole_file(folder / "template.yaml") as file:
        file.write(prepared.template.to_yaml())
