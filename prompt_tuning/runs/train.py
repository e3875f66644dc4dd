"""Train, evaluate, save: the whole data flow in its order."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, set_seed

from prompt_tuning.arguments.methods import METHODS, find_method
from prompt_tuning.encoding.streaming import StreamReport
from prompt_tuning.errors import HubError
from prompt_tuning.hub.upload import create_repository, push
from prompt_tuning.models.initialization import frequent_ids, initial_prefix, initial_prompt
from prompt_tuning.models.loading import load_base_model
from prompt_tuning.models.prompts import add_adapter, add_soft_prompt, load_adapter, network_width, prompt_config
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.model_card import card_for_hub
from prompt_tuning.runs.evaluate import describe, evaluate_and_write, trainer_for, write_pages
from prompt_tuning.runs.fitting import callbacks, checkpoint_to_resume, fit, save_adapter, save_recipe
from prompt_tuning.runs.multitask import train_tasks
from prompt_tuning.runs.prepare import Prepared, prepare_run
from prompt_tuning.runs.sharding import check_sharding
from prompt_tuning.support.files import write_json
from prompt_tuning.training.distributed import full_state_dict
from prompt_tuning.training.losses import teacher_states
from prompt_tuning.training.memory import explain_out_of_memory

logger = logging.getLogger(__name__)


def train(recipe: Recipe, evaluate_hard_prompt: bool = True, base: PreTrainedModel | None = None) -> Path:
    """Run a recipe.

    Args:
        evaluate_hard_prompt: also without what was trained; False where another run of the same template has done so.
        base: the recipe's frozen model, where it is in memory already; the run may add to it and hook into it.

    Returns:
        The run's folder: the adapter as PEFT saves it, recipe.yaml, template.yaml, results.json, log_history.json,
        predictions/, report.html, README.md and the checkpoints.
    """
    if METHODS[recipe.prompt.method].trains_several_tasks:
        return train_tasks(recipe, evaluate_hard_prompt)
    check_sharding(recipe)
    folder = Path(recipe.training.output_dir)
    checkpoint = checkpoint_to_resume(recipe, folder)
    prepared = prepare_run(recipe)
    split = prepared.last_split
    if recipe.training.push_to_hub and PartialState().is_main_process:
        create_repository(
            _repository(recipe), private=recipe.training.hub_private_repo
        )  # a refusal now, not after training

    set_seed(recipe.training.seed)
    base = base or load_base_model(recipe.model, prepared.config)
    facts, model = {}, None
    if METHODS[recipe.prompt.method].trains:
        model = _with_trainable(base, prepared)
        facts = _train(model, prepared, checkpoint, folder)
    elif PartialState().is_main_process:
        save_recipe(recipe, folder, prepared.template)
    models = _evaluated(model, base, prepared, evaluate_hard_prompt)
    evaluate_and_write(models, prepared, split, folder, describe(prepared, split) | facts)
    write_pages(folder, *(["card"] if model is not None else []), "report")
    if recipe.training.push_to_hub and PartialState().is_main_process:
        _push(recipe, folder)
    PartialState().wait_for_everyone()  # until the folder is whole
    return folder


def _evaluated(
    model: PeftModel | PreTrainedModel | None, base: PreTrainedModel, prepared: Prepared, evaluate_hard_prompt: bool
) -> Iterator[tuple[str, PeftModel | PreTrainedModel]]:
    """By its name in results.json what was trained, if anything was, and the base model."""
    method = METHODS[prepared.recipe.prompt.method]
    if model is not None:
        yield method.results_key, model
    if evaluate_hard_prompt and method.trains_whole_model:
        base = load_base_model(prepared.recipe.model, prepared.config)
    split = isinstance(model, FSDPModule) and isinstance(model, PeftModel)
    if evaluate_hard_prompt:
        # A prompt changes nothing of the base model, and LoRA's layers can be switched off.
        with model.disable_adapter() if method.trains_layers or split else nullcontext():
            yield "hard_prompt", model if split else base


def _repository(recipe: Recipe) -> str:
    """Where a run is pushed to, as Trainer names it."""
    return recipe.training.hub_model_id or Path(recipe.training.output_dir).absolute().name


def _push(recipe: Recipe, folder: Path) -> None:
    args, repo_id = recipe.training, _repository(recipe)
    try:
        url = push(
            folder,
            repo_id,
            private=args.hub_private_repo,
            revision=args.hub_revision,
            card=partial(card_for_hub, folder),
        )
    except HubError as error:
        again = f"{folder} is complete; `prompt-tuning push {folder} --repo_id {repo_id}` pushes it again"
        raise HubError(f"{error}\n{again}") from error
    logger.info("pushed: %s", url)


def _with_trainable(base: PreTrainedModel, prepared: Prepared) -> PeftModel | PreTrainedModel:
    """The base model with what the recipe trains."""
    args, length, seed = prepared.recipe.prompt, prepared.num_virtual_tokens, prepared.recipe.training.seed
    if args.adapter:
        return load_adapter(base, args.adapter, is_trainable=True)
    method = METHODS[args.method]
    if method.trains_whole_model:
        return base.requires_grad_(True)
    config = prompt_config(base, length, args, prepared.init_ids or ())
    if method.trains_layers:
        return add_adapter(base, config)
    initial, ids = None, prepared.init_ids
    if args.init == "frequent":
        ids = frequent_ids(prepared.encoded["train"]["labels"], prepared.tokenizer, length)
    if method.takes_init and method.trains_embeddings:
        initial = initial_prompt(base, prepared.tokenizer, args, length, seed=seed, ids=ids)
    elif method.trains_keys_and_values and not (args.prefix_projection or base.config.is_encoder_decoder):
        initial = initial_prefix(base, prepared.tokenizer, args, length, seed=seed, ids=ids)
    residual = network_width(base, args) if args.residual else None
    return add_soft_prompt(base, config, initial, residual)


def _train(
    model: PeftModel | PreTrainedModel, prepared: Prepared, checkpoint: str | None, folder: Path
) -> dict[str, Any]:
    """Train and save; returns the facts for results.json."""
    initial = _prompt_of(model)
    started = time.perf_counter()
    trainer = trainer_for(model, prepared, callbacks(prepared.recipe))
    if prepared.teacher_rows is not None:
        base, args = model.get_base_model(), prepared.recipe.training  # which the trainer put on its device
        with explain_out_of_memory("lower per_device_eval_batch_tokens"), model.eagerly():
            trainer.teacher = teacher_states(
                base, prepared.teacher_rows, args.per_device_eval_batch_tokens, args.disable_tqdm
            )
        logger.info("the teacher read %s rows in %.0f s", len(trainer.teacher), time.perf_counter() - started)
    facts = fit(trainer, prepared.recipe, checkpoint)
    report = prepared.reports["train"]
    if isinstance(report, StreamReport):
        logger.info("train: %s", report)
        facts["stream"] = asdict(report)  # of rows read, which is more than were trained on
    else:
        facts["train_rows"] = report.rows
    facts["train_seconds"] = round(time.perf_counter() - started, 1)  # the teacher's too
    tokenizer = prepared.tokenizer if find_method(facts["method"]).trains_whole_model else None
    with full_state_dict(model, trainer.accelerator) as state_dict:
        if trainer.is_world_process_zero():
            save_adapter(model, folder, initial, tokenizer, state_dict)
    if trainer.is_world_process_zero():
        save_recipe(prepared.recipe, folder, prepared.template)
        write_json(folder / "log_history.json", trainer.state.log_history)
    return facts


def _prompt_of(model: PeftModel | PreTrainedModel) -> torch.Tensor | None:
    """`[P, H]` embeddings of a soft prompt; None for other methods."""
    if not isinstance(model, PeftModel) or not find_method(model.active_peft_config.peft_type).trains_embeddings:
        return None
    return model.get_prompt_embedding_to_save("default")
