"""Multitask prompt tuning: one prompt for several tasks, times a low-rank matrix of each (Wang et al. 2023).

Task k's prompt is P_k = P* o (u_k v_k): the shared prompt P* `[P, H]`, entry by entry times the product of the task's
u_k `[P, R]` and v_k `[R, H]`. All tasks' rows train together, from products of exactly 1. Afterwards P_k is an
ordinary soft prompt, in a folder of its own. The paper's distillation from prompts of single tasks is not done.
"""

from __future__ import annotations

import copy
import logging
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from prompt_tuning.arguments.methods import HARD_PROMPT
from prompt_tuning.arguments.task_settings import ENCODING_SETTINGS, GENERATION_SETTINGS, TASK_SETTINGS
from prompt_tuning.data.loading import row_origin
from prompt_tuning.errors import ErrorList
from prompt_tuning.models.base_model import write_base_model
from prompt_tuning.models.initialization import frequent_ids, initial_prompt
from prompt_tuning.models.loading import load_base_model
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config
from prompt_tuning.recipe.loading import load_tasks
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.evaluate import evaluate_models
from prompt_tuning.runs.fitting import early_stopping, fit, save_adapter, save_recipe
from prompt_tuning.runs.output_folder import hold_folder
from prompt_tuning.runs.prepare import Prepared, prepare_run
from prompt_tuning.runs.results import describe, write_pages
from prompt_tuning.runs.resume import checkpoint_to_resume
from prompt_tuning.runs.sharding import check_sharding
from prompt_tuning.support.files import write_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.training.resuming import check_position
from prompt_tuning.training.trainer import PromptTuningTrainer

logger = logging.getLogger(__name__)


def train_tasks(recipe: Recipe, *, evaluate_hard_prompt: bool = True) -> None:
    """Run a multitask recipe in its output_dir, which `train` holds.

    The folder then has the multitask adapter as PEFT saves it, recipe.yaml, results.json, log_history.json,
    report.html, the checkpoints, and for every task a folder such as an ordinary run has, with the task's prompt as a
    plain adapter.

    Args:
        recipe: the multitask recipe, which names the recipes of its tasks.
        evaluate_hard_prompt: also evaluate every task without its prompt.

    Raises:
        PromptTuningError: as `train` does, for all tasks at once.
    """
    folder = Path(recipe.training.output_dir)
    check_sharding(recipe)
    checkpoint = checkpoint_to_resume(recipe, folder)
    tasks = prepare_tasks(recipe)
    with ExitStack() as held:
        for name in tasks:
            held.enter_context(hold_folder(folder / name, RunFolder.TRAINED))
        _train_tasks(recipe, folder, tasks, checkpoint, evaluate_hard_prompt=evaluate_hard_prompt)


def _train_tasks(
    recipe: Recipe, folder: Path, tasks: dict[str, Prepared], checkpoint: str | None, *, evaluate_hard_prompt: bool
) -> None:
    if checkpoint:
        check_position(Path(checkpoint), join_rows(tasks, "train"), recipe.training)

    set_seed(recipe.training.seed)
    first, *_ = tasks.values()
    base = load_base_model(recipe.model, first.config)
    initial = _initial_shared_prompt(base, recipe, tasks)
    model = add_soft_prompt(base, prompt_config(base, len(initial), recipe.prompt), initial)
    facts = _fit_and_save(model, recipe, tasks, initial, checkpoint)

    results: dict[str, dict[str, Any]] = {}
    for number, (name, prepared) in enumerate(tasks.items()):
        prompt = task_prompt(model, number)
        plain = add_soft_prompt(base, prompt_config(base, len(prompt)), prompt)
        if PartialState().is_main_process:
            method = recipe.prompt.method
            comment = (
                f"# One task of ../recipe.yaml, which trained its prompt together with other tasks' by {method}.\n"
            )
            save_adapter(plain, folder / name, initial)
            save_recipe(prepared.recipe, folder / name, prepared.template, comment)
            write_base_model(folder / name, recipe.model, prepared.tokenizer)
        models: list[tuple[str, PreTrainedModel | PeftModel]] = [("soft_prompt", plain)]
        if evaluate_hard_prompt:
            models.append((HARD_PROMPT, base))
        of_task = {
            **describe(prepared, prepared.last_split),
            **facts,
            "train_rows": prepared.reports["train"].rows,
            "trainable_parameters": prompt.numel(),
            "total_parameters": base.num_parameters() + prompt.numel(),
            "trained_with": [other for other in tasks if other != name],
        }
        results[name] = evaluate_models(models, prepared, prepared.last_split, folder / name, of_task)
        write_pages(folder / name, "card")
    if PartialState().is_main_process:
        write_json(RunFolder(folder).results, {"tasks": results, "seed": recipe.training.seed} | facts)
    # This also writes the report of every task.
    write_pages(folder, "report", trust_remote_code=recipe.model.trust_remote_code)
    # The other processes must not return before the folder is whole.
    PartialState().wait_for_everyone()


def _fit_and_save(
    model: PeftModel, recipe: Recipe, tasks: dict[str, Prepared], initial: torch.Tensor, checkpoint: str | None
) -> dict[str, Any]:
    """Train on the rows of all tasks and save the multitask adapter; return the facts for results.json."""
    folder = Path(recipe.training.output_dir)
    prepared = list(tasks.values())
    trainer = PromptTuningTrainer(
        model=model,
        args=recipe.training,
        processing_class=prepared[0].tokenizer,
        train_dataset=join_rows(tasks, "train"),
        # Without compute_metrics only the loss is evaluated: the tasks have different metrics.
        eval_dataset=join_rows(tasks, "validation"),
        callbacks=early_stopping(recipe),
        name_row=lambda row, task: row_origin(prepared[task].recipe.data, "train", row),
    )
    facts = fit(trainer, recipe, checkpoint) | {"train_rows": len(trainer.train_dataset)}
    if trainer.is_world_process_zero():
        save_adapter(model, folder, initial)
        save_recipe(recipe, folder)
        write_json(RunFolder(folder).log_history, trainer.state.log_history)
    return facts


def prepare_tasks(recipe: Recipe) -> dict[str, Prepared]:
    """Prepare every task, by its name.

    Raises:
        PromptTuningError: everything that is wrong with any of the tasks, a line each.
    """
    tasks: dict[str, Prepared] = {}
    errors = ErrorList()
    for name, task in load_tasks(recipe).items():
        logger.info("task %s", name)
        with errors.collect():
            tasks[name] = prepare_run(_task_recipe(recipe, name, task))
    errors.raise_all()
    return tasks


def join_rows(tasks: dict[str, Prepared], split: str) -> Dataset | None:
    """Return the rows of all tasks, with the number of the task as `task_ids`; None if no task has the split."""
    parts = []
    for number, prepared in enumerate(tasks.values()):
        if split in prepared.encoded:
            rows = prepared.encoded[split].select_columns(["input_ids", "labels", "row"])
            parts.append(rows.add_column("task_ids", [number] * len(rows)))
    return concatenate_datasets(parts) if parts else None


@torch.no_grad()
def task_prompt(model: PeftModel, task: int) -> torch.Tensor:
    """Return the prompt `[P, H]` of one task of a multitask model."""
    return model.get_prompt(1, task_ids=torch.tensor([task], device=model.device))[0].cpu()


def _task_recipe(recipe: Recipe, name: str, task: Recipe) -> Recipe:
    """Return the recipe of an ordinary run of a task, which takes everything else from the multitask recipe."""
    encoding = {key: vars(task.prompt)[key] for key in ENCODING_SETTINGS}
    training = copy.copy(recipe.training)
    training.output_dir = str(Path(recipe.training.output_dir, name))
    for key in GENERATION_SETTINGS:
        setattr(training, key, vars(task.training)[key])
    return Recipe(
        path=task.path,
        model=recipe.model,
        data=task.data,
        prompt=replace(recipe.prompt, method="prompt_tuning", tasks=None, **encoding),
        training=training,
        explicitly_set=recipe.explicitly_set | (task.explicitly_set & TASK_SETTINGS),
    )


def _initial_shared_prompt(base: PreTrainedModel, recipe: Recipe, tasks: dict[str, Prepared]) -> torch.Tensor:
    """Return the embeddings `[P, H]` that the shared prompt starts from, chosen from the rows of all tasks."""
    first, *_ = tasks.values()
    ids, length = first.init_ids, first.num_virtual_tokens
    if recipe.prompt.init == "frequent":
        labels = chain.from_iterable(prepared.encoded["train"]["labels"] for prepared in tasks.values())
        ids = frequent_ids(labels, first.tokenizer, length)
    return initial_prompt(base, first.tokenizer, recipe.prompt, length, seed=recipe.training.seed, ids=ids)
