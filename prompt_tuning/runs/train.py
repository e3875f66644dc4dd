"""Train, evaluate and save a recipe: the whole data flow in its order."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, set_seed

from prompt_tuning.arguments.methods import HARD_PROMPT, METHODS
from prompt_tuning.encoding.streaming import StreamReport
from prompt_tuning.errors import HubError, RecipeError
from prompt_tuning.hub.upload import create_repository
from prompt_tuning.models.loading import load_base_model
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.evaluate import evaluate_models, load_model, trainer_for
from prompt_tuning.runs.fitting import early_stopping, fit, save_adapter, save_recipe
from prompt_tuning.runs.multitask import train_tasks
from prompt_tuning.runs.output_folder import hold_folder
from prompt_tuning.runs.prepare import Prepared, prepare_run
from prompt_tuning.runs.push import push_run
from prompt_tuning.runs.results import describe, write_pages
from prompt_tuning.runs.resume import checkpoint_to_resume
from prompt_tuning.runs.sharding import check_sharding
from prompt_tuning.runs.trainable import add_trainable, soft_prompt_of
from prompt_tuning.runs.trained_text import check_checkpoint_text
from prompt_tuning.support.files import write_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted
from prompt_tuning.training.distributed import full_state_dict
from prompt_tuning.training.losses import teacher_states
from prompt_tuning.training.memory import explain_out_of_memory
from prompt_tuning.training.resuming import check_position
from prompt_tuning.training.trainer import PromptTuningTrainer

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    *,
    evaluate_hard_prompt: bool = True,
    base: PreTrainedModel | None = None,
    split: str | None = None,
) -> Path:
    """Run a recipe: prepare its rows, train, evaluate with and without the prompt, and write everything to a folder.

    Args:
        recipe: the recipe.
        evaluate_hard_prompt: also evaluate without what was trained. Set it to False if another run of the same
            template has done so.
        base: the recipe's frozen model, if it is already in memory. The run adds to it and hooks into it.
        split: the split to evaluate, for a recipe of one task; by default test, or validation if there is no test.

    Returns:
        The run's folder: the adapter as PEFT saves it, recipe.yaml, template.yaml, results.json, log_history.json,
        predictions/, report.html, README.md and the checkpoints.

    Raises:
        PromptTuningError: everything that is wrong with the recipe, before a model loads; or what stops the training.
        Stopped: a signal stopped the training, which saved a checkpoint.
    """
    folder = Path(recipe.training.output_dir)
    with hold_folder(folder, RunFolder.TRAINED):
        if METHODS[recipe.prompt.method].trains_several_tasks:
            train_tasks(recipe, evaluate_hard_prompt=evaluate_hard_prompt)
        else:
            _train(recipe, folder, split, evaluate_hard_prompt=evaluate_hard_prompt, base=base)
    return folder


def _train(
    recipe: Recipe, folder: Path, split: str | None, *, evaluate_hard_prompt: bool, base: PreTrainedModel | None
) -> None:
    """Run a recipe of one task in a folder that this process holds."""
    method = METHODS[recipe.prompt.method]
    if method.trains and recipe.model.api_name is not None:
        raise RecipeError(f"method {method.name}: {recipe.model.model_name_or_path} is not trained. Set method: none.")
    check_sharding(recipe)
    checkpoint = checkpoint_to_resume(recipe, folder)
    prepared = prepare_run(recipe)
    if checkpoint:
        check_checkpoint_text(Path(checkpoint), prepared.trained_text)
        check_position(Path(checkpoint), prepared.encoded["train"], recipe.training)
    pushes = recipe.training.push_to_hub and PartialState().is_main_process
    if pushes:
        # A hub that refuses the repository does so now, not after hours of training.
        create_repository(_repository(recipe), private=recipe.training.hub_private_repo)

    set_seed(recipe.training.seed)
    if base is None:
        base = load_model(prepared)
    model = None
    facts: dict[str, Any] = {}
    if method.trains:
        model = add_trainable(base, prepared)
        facts = _fit_and_save(model, prepared, checkpoint)
    elif PartialState().is_main_process:
        save_recipe(recipe, folder, prepared.template)

    split = split or prepared.last_split
    models = _evaluated_models(model, base, prepared, evaluate_hard_prompt=evaluate_hard_prompt)
    evaluate_models(models, prepared, split, folder, describe(prepared, split) | facts)
    if model is not None:
        write_pages(folder, "card")
    write_pages(folder, "report", trust_remote_code=recipe.model.trust_remote_code)
    if pushes:
        _push(recipe, folder)
    # The other processes must not return before the folder is whole.
    PartialState().wait_for_everyone()


def _fit_and_save(model: PeftModel | PreTrainedModel, prepared: Prepared, checkpoint: str | None) -> dict[str, Any]:
    """Train a model and save its adapter, the recipe and the log; return the facts for results.json."""
    recipe, folder = prepared.recipe, Path(prepared.recipe.training.output_dir)
    initial = soft_prompt_of(model)
    started = time.perf_counter()
    trainer = trainer_for(model, prepared, early_stopping(recipe))
    if prepared.teacher_rows is not None:
        _read_teacher(trainer, prepared)
    facts = fit(trainer, recipe, checkpoint)
    # The seconds include those of the teacher.
    facts["train_seconds"] = round(time.perf_counter() - started, 1)
    report = prepared.reports["train"]
    if isinstance(report, StreamReport):
        # These are the rows that were read. Some of them wait in the buffer and are never trained on.
        logger.info("train: %s", report)
        facts["stream"] = asdict(report)
    else:
        facts["train_rows"] = report.rows
    tokenizer = prepared.tokenizer if METHODS[recipe.prompt.method].trains_whole_model else None
    with full_state_dict(model, trainer.accelerator) as state_dict:
        if trainer.is_world_process_zero():
            save_adapter(model, folder, initial, tokenizer, state_dict)
    if trainer.is_world_process_zero():
        save_recipe(recipe, folder, prepared.template)
        write_json(RunFolder(folder).log_history, trainer.state.log_history)
    return facts


def _read_teacher(trainer: PromptTuningTrainer, prepared: Prepared) -> None:
    """Give the trainer the states of the teacher, which is the base model with teacher_template."""
    args = prepared.recipe.training
    started = time.perf_counter()
    with explain_out_of_memory("lower per_device_eval_batch_tokens"), trainer.model.eagerly():
        # The trainer has moved the base model to its device.
        trainer.teacher = teacher_states(
            trainer.model.get_base_model(),
            prepared.teacher_rows,
            args.per_device_eval_batch_tokens,
            disable_tqdm=args.disable_tqdm,
        )
    logger.info("the teacher read %s in %.0f s", counted(len(trainer.teacher), "row"), time.perf_counter() - started)


def _evaluated_models(
    model: PeftModel | PreTrainedModel | None,
    base: PreTrainedModel,
    prepared: Prepared,
    *,
    evaluate_hard_prompt: bool,
) -> Iterator[tuple[str, PeftModel | PreTrainedModel]]:
    """Yield the trained model, if there is one, and the base model, each with its name in results.json."""
    method = METHODS[prepared.recipe.prompt.method]
    if model is not None:
        yield method.results_key, model
    if not evaluate_hard_prompt:
        return
    if method.trains_whole_model:
        base = load_base_model(prepared.recipe.model, prepared.config)
    if isinstance(model, PeftModel) and isinstance(model, FSDPModule):
        # FSDP has split the base model within the PEFT model, so that it only runs through the PEFT model.
        with model.disable_adapter():
            yield HARD_PROMPT, model
    else:
        # A prompt does not change the base model, but LoRA's layers are in it and are switched off.
        with model.disable_adapter() if isinstance(model, PeftModel) and method.trains_layers else nullcontext():
            yield HARD_PROMPT, base


def _repository(recipe: Recipe) -> str:
    """Return the repository that a run is pushed to, named as Trainer names it."""
    return recipe.training.hub_model_id or Path(recipe.training.output_dir).absolute().name


def _push(recipe: Recipe, folder: Path) -> None:
    args, repo_id = recipe.training, _repository(recipe)
    try:
        url = push_run(folder, repo_id, private=args.hub_private_repo, revision=args.hub_revision)
    except HubError as error:
        again = f"{folder} is complete; `prompt-tuning push {folder} --repo_id {repo_id}` pushes it again"
        raise HubError(f"{error}\n{again}") from error
    logger.info("pushed: %s", url)
