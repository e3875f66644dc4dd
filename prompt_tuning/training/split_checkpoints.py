"""Save and resume trainings whose weights or optimiser FSDP or DeepSpeed splits among processes.

Under DeepSpeed a checkpoint has the files of any other training: Trainer would write and read DeepSpeed's pickles.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import load_fsdp_model
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import pad
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from prompt_tuning.engine.dispatch import is_split, is_split_by_deepspeed
from prompt_tuning.training.distributed import full_state_dict, whole_trained_weights
from prompt_tuning.training.evaluation import EvaluatingTrainer
from prompt_tuning.training.resuming import check_optimizer_state


class SplitCheckpointTrainer(EvaluatingTrainer):
    """Save and load the checkpoints of split models and optimisers.

    Attributes:
        whole_optimizer: the optimiser as it was before DeepSpeed split it, without a state.
    """

    whole_optimizer: Optimizer

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[torch.nn.Module, DataLoader]:
        """Resume under DeepSpeed from the files of any training; Trainer would unpickle DeepSpeed's files.

        Needed by test_a_stopped_run_of_two_processes_resumes_to_the_same_weights.
        """
        if resume_from_checkpoint is None or not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._load_from_checkpoint(resume_from_checkpoint)  # DeepSpeed has not split the model yet.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        split = self.optimizer.optimizer  # accelerate wraps it.
        load_split_states(Path(resume_from_checkpoint), split, self.whole_optimizer, self.lr_scheduler)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load only the split model's own file under FSDP; Trainer would load PEFT's whole tensors into split ones.

        Needed by test_a_stopped_run_of_two_processes_resumes_to_the_same_weights.
        """
        if isinstance(self.model, FSDPModule):
            plugin = self.accelerator.state.fsdp_plugin
            load_fsdp_model(plugin, self.accelerator, self.model, resume_from_checkpoint, adapter_only=True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the best weights under DeepSpeed as any training does; Trainer would unpickle DeepSpeed's files.

        Needed by test_the_best_checkpoint_of_two_processes_is_loaded_at_the_end.
        """
        if not self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        with whole_trained_weights(self.model):
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save whole tensors of a model that FSDP or ZeRO-3 splits."""
        if not is_split(self.model):
            super().save_model(output_dir, _internal_call)
            return
        with full_state_dict(self.model, self.accelerator) as state_dict:
            if self.args.should_save:
                self._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the states under DeepSpeed as any training does; Trainer would write DeepSpeed's pickles.

        Needed by test_a_stopped_run_of_two_processes_resumes_to_the_same_weights.
        """
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gathered_optimizer_state(self.optimizer.optimizer, self.whole_optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))


def keep_whole(optimizer: Optimizer) -> Optimizer:
    """Return a copy of a new optimiser for `whole_optimizer`, and remove groups without parameters, as DeepSpeed does.

    DeepSpeed replaces the parameters of the optimiser by parts of them. The copy keeps the parameters themselves.
    """
    whole = copy.copy(optimizer)
    whole.param_groups = [{"initial_lr": group["lr"]} | group for group in optimizer.param_groups]
    whole.state = defaultdict(dict)
    optimizer.param_groups[:] = _groups(optimizer)
    return whole


def gathered_optimizer_state(split: Any, whole: Optimizer) -> dict[str, Any]:
    """Return the state that an optimiser would save if DeepSpeed did not split it; all processes call this together.

    Args:
        split: DeepSpeed's optimiser.
        whole: the optimiser before it was split.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    for group, current in zip(_groups(whole), split.param_groups, strict=True):
        group.update(current, params=group["params"])
    _link_states(split, whole)
    state_of_part: dict[str, Any] = next(iter(split.state.values()), {})
    for parameter in _parameters(whole):
        for name, value in state_of_part.items():
            if _is_split(value):
                whole.state[parameter][name] = safe_get_full_optimizer_state(parameter, name).cpu()
            else:  # Without a copy the parameters would share one tensor of steps, and each would count all steps.
                whole.state[parameter][name] = copy.deepcopy(value)
    state = whole.state_dict()
    whole.state.clear()
    return state


def load_split_states(checkpoint: Path, split: Any, whole: Optimizer, scheduler: LRScheduler) -> None:
    """Load the state of an optimiser into the parts that DeepSpeed made of it, and the state of the schedule.

    Args:
        checkpoint: of a training with or without DeepSpeed, in any number of processes.
        split: DeepSpeed's optimiser, before its first step.
        whole: the optimiser before it was split.
        scheduler: the learning rate's schedule.

    Raises:
        ValueError: the state is of other parameters, or they have not taken the same number of steps.
    """
    whole.load_state_dict(torch.load(checkpoint / OPTIMIZER_NAME, map_location="cpu", weights_only=True))
    check_optimizer_state(whole)
    for group, saved in zip(split.param_groups, _groups(whole), strict=True):
        group.update(saved, params=group["params"])
    _scatter_optimizer_state(split, whole)
    whole.state.clear()
    state = torch.load(checkpoint / SCHEDULER_NAME, map_location="cpu", weights_only=True)
    # Without DeepSpeed a group without parameters has a rate, too. All rates are computed anew when training starts.
    num_rates = len(split.param_groups)
    for name, value in state.items():
        state[name] = value[:num_rates] if isinstance(value, list) else value
    scheduler.load_state_dict(state)


def _scatter_optimizer_state(split: Any, whole: Optimizer) -> None:
    """Copy the state of a whole optimiser to the parts of this process, which have none yet."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    parameters = _parameters(whole)
    first = whole.state[parameters[0]]
    if any(whole.state[parameter].get("step") != first.get("step") for parameter in parameters):
        raise ValueError("its parameters have not taken the same number of steps")
    splits_weights = is_split_by_deepspeed(parameters)
    for part in split.fp32_partitioned_groups_flat if splits_weights else split.single_partition_of_fp32_groups:
        for name, value in first.items():
            split.state[part][name] = torch.zeros_like(part) if _is_split(value) else copy.deepcopy(value)
    _link_states(split, whole)
    for parameter in parameters:
        for name, value in whole.state[parameter].items():
            if not _is_split(value):
                continue
            if splits_weights:
                size = parameter.ds_tensor.numel()
                padded = pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
                safe_set_local_optimizer_state(parameter, padded[size * dist.get_rank() :][:size], name)
            else:
                safe_set_full_optimizer_state(parameter, value, name)


def _link_states(split: Any, whole: Optimizer) -> None:
    """Let ZeRO-2 find the state of each parameter; DeepSpeed does that too early, before all groups have a state."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if not is_split_by_deepspeed(_parameters(whole)):
        for parameters, part in zip(split.bit16_groups, split.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, part, split.state)


def _groups(whole: Optimizer) -> list[dict[str, Any]]:
    """Return the groups that DeepSpeed keeps, those with parameters."""
    return [group for group in whole.param_groups if group["params"]]


def _parameters(whole: Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in whole.param_groups for parameter in group["params"]]


def _is_split(value: Any) -> bool:
    """Return whether an entry of the state has a number for each number of its parameter, unlike the step."""
    return isinstance(value, torch.Tensor) and value.dim() > 0
