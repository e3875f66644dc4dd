"""Which prompt stands before which row of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from peft import PeftConfig

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.errors import AdapterError
from prompt_tuning.support.text import counted


class PromptName(NamedTuple):
    """The adapter whose prompt stands before a row, and the row's task if the prompt is a multitask one."""

    adapter: str
    task: int | None = None


def index_prompts(
    configs: Mapping[str, PeftConfig],
    adapter_names: Sequence[str],
    task_ids: torch.Tensor | None,
    num_rows: int,
) -> tuple[list[PromptName], list[int]]:
    """Return the different prompts of a batch, and for each row the index of its prompt among them.

    Args:
        configs: the loaded adapters by name.
        adapter_names: for each of the B rows the adapter whose prompt stands before it.
        task_ids: `[B]`, or `[1]` for all rows: the task, for multitask prompts, else None.
        num_rows: B.

    Raises:
        AdapterError: names or tasks are missing, too few, or not loaded.
    """
    tasks = [None] if task_ids is None else task_ids.reshape(-1).tolist()
    if len(tasks) == 1:
        tasks = tasks * num_rows
    if len(adapter_names) != num_rows:
        raise AdapterError(
            f"adapter_names: {counted(len(adapter_names), 'name')} for {counted(num_rows, 'row')}; give one for each"
        )
    if len(tasks) != num_rows:
        raise AdapterError(
            f"task_ids: {counted(len(tasks), 'id')} for {counted(num_rows, 'row')}; give one for each row"
        )
    for name in dict.fromkeys(adapter_names):
        if name not in configs:
            raise AdapterError(f"adapter {name} is not loaded; there are {', '.join(configs)}")
    by_row = [_prompt_name(configs[name], name, task) for name, task in zip(adapter_names, tasks, strict=True)]
    names = list(dict.fromkeys(by_row))
    return names, [names.index(name) for name in by_row]


def _prompt_name(config: PeftConfig, adapter: str, task: int | None) -> PromptName:
    if not find_method(config.peft_type).trains_several_tasks:
        return PromptName(adapter)
    if task is None or not 0 <= task < config.num_tasks:
        problem = "no task_ids" if task is None else f"task id {task}"
        raise AdapterError(f"{problem} for adapter {adapter}; give each row one from 0 to {config.num_tasks - 1}")
    return PromptName(adapter, task)
