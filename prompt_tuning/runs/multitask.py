"""Multitask prompt tuning: one prompt for several tasks, times a low-rank matrix of each (Wang et al. 2023).

Task k's prompt is P_k = P* o (u_k v_k): the shared prompt P* `[P, H]`, entry by entry times the product of the task's
u_k `[P, R]` and v_k `[R, H]`. All tasks' rows train together, from products of exactly 1. Afterwards P_k is an
ordinary soft prompt, in a folder of its own. The paper's distillation from prompts trained alone is not done.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from prompt_tuning.arguments.arguments import ENCODING_SETTINGS, GENERATION_SETTINGS, TASK_SETTINGS
from prompt_tuning.data.loading import row_origin
from prompt_tuning.errors import ErrorList, PromptTuningError
from prompt_tuning.models.initialization import frequent_ids, initial_prompt
from prompt_tuning.models.loading import load_base_model
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config
from prompt_tuning.recipe.loading import load_tasks
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.evaluate import describe, evaluate_and_write, write_pages
from prompt_tuning.runs.fitting import callbacks, checkpoint_to_resume, fit, save_adapter, save_recipe
from prompt_tuning.runs.prepare import Prepared, prepare_run
from prompt_tuning.runs.sharding import check_sharding
from prompt_tuning.support.files import write_json
from prompt_tuning.training.trainer import PromptTuningTrainer

logger = logging.getLogger(__name__)


def train_tasks(recipe: Recipe, evaluate_hard_prompt: bool = True) -> Path:
    """Run a multitask recipe.

    Returns:
        The run's folder: the multitask adapter as PEFT saves it, recipe.yaml, results.json, log_history.json,
        report.html, the checkpoints, and for each task a folder that is an ordinary run's, with the task's prompt as
        a plain adapter.
    """
    check_sharding(recipe)
    folder = Path(recipe.training.output_dir)
    checkpoint = checkpoint_to_resume(recipe, folder)
    tasks = prepare_tasks(recipe)

    set_seed(recipe.training.seed)
    of_tasks = list(tasks.values())
    base = load_base_model(recipe.model, of_tasks[0].config)
    initial = _shared_start(base, recipe, of_tasks)
    model = add_soft_prompt(base, prompt_config(base, len(initial), recipe.prompt), initial)
    trainer = PromptTuningTrainer(
        model=model,
        args=recipe.training,
        processing_class=of_tasks[0].tokenizer,
        train_dataset=join_rows(tasks, "train"),
        eval_dataset=join_rows(tasks, "validation"),  # without compute_metrics: their loss alone
        callbacks=callbacks(recipe),
        name_row=lambda row, task: row_origin(of_tasks[task].recipe.data, "train", row),
    )
    facts = fit(trainer, recipe, checkpoint) | {"train_rows": len(trainer.train_dataset)}
    if trainer.is_world_process_zero():
        save_adapter(model, folder, initial)
        save_recipe(recipe, folder)
        write_json(folder / "log_history.json", trainer.state.log_history)

    results: dict[str, dict[str, Any]] = {}
    for number, (name, prepared) in enumerate(tasks.items()):
        prompt = task_prompt(model, number)
        of_task = facts | {
            "train_rows": prepared.reports["train"].rows,
            "trainable_parameters": prompt.numel(),
            "total_parameters": base.num_parameters() + prompt.numel(),
            "trained_with": [other for other in tasks if other != name],
        }
        plain = add_soft_prompt(base, prompt_config(base, len(prompt)), prompt)
        if PartialState().is_main_process:
            by = recipe.prompt.method
            comment = f"# One task of ../recipe.yaml, which trained its prompt together with other tasks' by {by}.\n"
            save_adapter(plain, folder / name, initial)
            save_recipe(prepared.recipe, folder / name, prepared.template, comment)
        models = [("soft_prompt", plain), *([("hard_prompt", base)] if evaluate_hard_prompt else [])]
        of_task = describe(prepared, prepared.last_split) | of_task
        results[name] = evaluate_and_write(models, prepared, prepared.last_split, folder / name, of_task)
        write_pages(folder / name, "card")
    if PartialState().is_main_process:
        write_json(folder / "results.json", {"tasks": results, "seed": recipe.training.seed} | facts)
    write_pages(folder, "report")  # and that of each task
    PartialState().wait_for_everyone()  # until the folder is whole
    return folder


def prepare_tasks(recipe: Recipe) -> dict[str, Prepared]:
    """Each task's rows, by the task's name.

    Raises:
        PromptTuningError: with all that is wrong with any of the tasks, a line each.
    """
    tasks: dict[str, Prepared] = {}
    problems = ErrorList()
    for name, task in load_tasks(recipe).items():
        logger.info("task %s", name)
        try:
            tasks[name] = prepare_run(_recipe_of_task(recipe, name, task))
        except PromptTuningError as error:
            problems.append(error)
    problems.raise_all()
    return tasks


def join_rows(tasks: dict[str, Prepared], split: str) -> Dataset | None:
    """All tasks' rows of a split, each with its task's number as `task_ids`; None if no task has any."""
    parts = []
    for number, prepared in enumerate(tasks.values()):
        if split in prepared.encoded:
            rows = prepared.encoded[split].select_columns(["input_ids", "labels", "row"])
            parts.append(rows.add_column("task_ids", [number] * len(rows)))
    return concatenate_datasets(parts) if parts else None


@torch.no_grad()
def task_prompt(model: PeftModel, task: int) -> torch.Tensor:
    """The prompt of one task of a multitask model, `[P, H]`."""
    return model.get_prompt(1, task_ids=torch.tensor([task], device=model.device))[0].cpu()


def _recipe_of_task(recipe: Recipe, name: str, task: Recipe) -> Recipe:
    """An ordinary recipe: what the task's own says of the task, what the multitask recipe says of everything else."""
    own = {key: vars(task.prompt)[key] for key in ENCODING_SETTINGS}
    training = copy.copy(recipe.training)
    training.output_dir = str(Path(recipe.training.output_dir, name))
    for key in GENERATION_SETTINGS:
        setattr(training, key, vars(task.training)[key])
    return Recipe(
        path=task.path,
        model=recipe.model,
        data=task.data,
        prompt=replace(recipe.prompt, method="prompt_tuning", tasks=None, **own),
        training=training,
        explicitly_set=recipe.explicitly_set | (task.explicitly_set & TASK_SETTINGS),
    )


def _shared_start(base: PreTrainedModel, recipe: Recipe, tasks: list[Prepared]) -> torch.Tensor:
    """Where the shared prompt starts, `[P, H]`: as a prompt of one task would, from the rows of all."""
    args, ids, length, tokenizer = recipe.prompt, tasks[0].init_ids, tasks[0].num_virtual_tokens, tasks[0].tokenizer
    if args.init == "frequent":
        labels = (row for prepared in tasks for row in prepared.encoded["train"]["labels"])
        ids = frequent_ids(labels, tokenizer, length)
    return initial_prompt(base, tokenizer, args, length, seed=recipe.training.seed, ids=ids)
