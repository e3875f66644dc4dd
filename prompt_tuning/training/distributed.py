"""Divide rows among several processes, and use one model whose weights FSDP2 or ZeRO-3 splits among them."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.state import GradientState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from prompt_tuning.encoding.batching import batches_within
from prompt_tuning.engine.dispatch import get_base, has_prompt, is_split, is_split_by_deepspeed
from prompt_tuning.errors import ProcessError, first_line

# The modules that talk to other processes. DDP does it in the backward pass, too, which autograd runs.
COMMUNICATING = ("torch.distributed.", "torch.nn.parallel.", "torch.autograd.graph")


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Raise a ProcessError when torch fails to reach another process within the block."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _raised_while_communicating(error):
            raise
        reason = first_line(error).rpartition("] ")[2]  # gloo puts the line of its source in front.
        raise ProcessError(
            f"another process of this run is gone, or its host cannot be reached ({reason}); its own log says why. "
            "Start all of them again with --resume_from_checkpoint true"
        ) from error


def _raised_while_communicating(error: RuntimeError) -> bool:
    """Return whether the error comes from a collective, DDP or FSDP; gloo's errors have no type of their own."""
    module = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals["__name__"]
    return type(error) is RuntimeError and module.startswith(COMMUNICATING)


def batches_of_process(
    row_tokens: Sequence[int], max_rows: int, max_tokens: int, num_processes: int, rank: int
) -> list[list[int]]:
    """Return the batches of one process, as row numbers in their order.

    All processes have the same number of batches, which in one step have the same size. The batches of a step hold
    consecutive rows, those of the first process first. The last row is repeated until the last step is full.

    Args:
        row_tokens: how many tokens each row takes of a batch.
        max_rows: of a batch.
        max_tokens: of a batch, rows times the longest one.
        num_processes: of the run.
        rank: the number of this process, from 0.
    """
    starts = range(0, len(row_tokens), num_processes)
    largest = [max(row_tokens[start : start + num_processes]) for start in starts]
    batches = []
    for step in batches_within(largest, max_rows, max_tokens):
        first = step[0] * num_processes + rank * len(step)
        batches.append([min(row, len(row_tokens) - 1) for row in range(first, first + len(step))])
    return batches


def loader_of_batches(loader: DataLoader, batches: list[list[int]], args: TrainingArguments) -> DataLoader:
    """Return a loader of the same rows by the batches of this process."""
    process_loader = DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=args.dataloader_pin_memory,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
    )
    # The rows are divided already, so accelerate is told of one process.
    return prepare_data_loader(process_loader, args.device, num_processes=1, process_index=0, put_on_device=True)


def num_real_rows(rows_left: int, batch_rows: int, rank: int) -> int:
    """Return how many rows of this rank are real, not padding of the last batch.

    Args:
        rows_left: the rows that all processes together have not read before this step.
        batch_rows: the rows of this process's batch.
        rank: the number of this process, from 0.
    """
    return min(max(rows_left - batch_rows * rank, 0), batch_rows)


def without_repeated(
    batches: Iterable[dict[str, Any]], num_rows: int, state: GradientState, args: TrainingArguments
) -> Iterator[dict[str, Any]]:
    """Yield training batches without the targets of rows that accelerate repeats to fill the last one.

    Args:
        batches: of this process.
        num_rows: of an epoch, of all processes together.
        state: knows the last batch.
        args: the training arguments.
    """
    left_over = num_rows % (args.per_device_train_batch_size * args.world_size)
    for batch in batches:
        if left_over and state.end_of_dataloader:
            num_real = num_real_rows(left_over, len(batch["labels"]), args.process_index)
            batch["labels"][num_real:] = -100
        yield batch


def keep_losses_in_float32(accelerator: Accelerator) -> None:
    """Let a model that FSDP splits return its loss, and sum its gradients over processes, in float32.

    accelerate would round both to the type of the computation, bfloat16 or float16. DeepSpeed would round all weights,
    the trained ones too; here it computes under autocast instead.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision == "bf16":
        accelerator.deepspeed_plugin.deepspeed_config |= {
            "bf16": {"enabled": False},
            "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }
    if accelerator.is_fsdp2 and accelerator.mixed_precision != "no":
        plugin = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, output_dtype=torch.float32, reduce_dtype=torch.float32
        )


@contextmanager
def without_deepspeed(trainer: Trainer) -> Iterator[None]:
    """Let a trainer evaluate, within the block, a model that DeepSpeed has not prepared for training.

    Each process has all weights of it. Trainer would refuse every ZeRO except the third.
    """
    enabled = trainer.is_deepspeed_enabled
    trainer.is_deepspeed_enabled = enabled and trainer.deepspeed is not None
    try:
        yield
    finally:
        trainer.is_deepspeed_enabled = enabled


def keep_gathered_outside_layers(model: torch.nn.Module) -> list[FSDPModule]:
    """Keep the parts of a split model outside its layers gathered after their first forward, and return them.

    Batches differ in how often they read embeddings, and processes must gather all else in one order. Nothing is done
    for a model that is not split.
    """
    if not isinstance(model, FSDPModule):
        return []
    parts = []
    for module in model.modules():
        if isinstance(module, FSDPModule) and not isinstance(module, GradientCheckpointingLayer):
            module.set_reshard_after_forward(False, recurse=False)
            parts.append(module)
    return parts


@contextmanager
def whole_trained_weights(model: torch.nn.Module) -> Iterator[None]:
    """Let each process hold and write, within the block, the trained weights of a model that ZeRO-3 splits.

    Every process has to enter the block and to write the same. Nothing happens to another model.
    """
    if not is_split_by_deepspeed(model.parameters()):
        yield
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained[0].all_gather(trained)
    yield
    trained[0].partition(trained, has_been_updated=True)
    outside = [parameter for parameter in trained if parameter.is_external_param]
    if outside:
        outside[0].all_gather(outside)  # `keep_gathered_by_deepspeed` keeps them.


def keep_gathered_by_deepspeed(model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Keep all of a model that ZeRO-3 splits gathered, except its layers.

    Args:
        model: nothing is done for one that is not split.
        optimizer: as accelerate wraps DeepSpeed's.
    """
    if not is_split_by_deepspeed(model.parameters()):
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    of_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in of_layers]
    for parameter in outside:
        parameter.is_external_param = True  # DeepSpeed then keeps it after its module's forward.
    zero3 = optimizer.optimizer
    zero3.persistent_parameters[:] = outside  # DeepSpeed gathers them after each step.
    outside[0].all_gather(outside)
    # This hook records the order of modules, which is not the same in every batch.
    zero3.parameter_offload.fwd_pre_hook.remove()


def remove_duplicate_embedding_name(model: torch.nn.Module) -> None:
    """Let a split model have its embeddings only by the base model's name.

    PEFT registers those of a model with a prompt as `word_embeddings` too. torch keeps the checkpoint of a split model
    by name, and raises a KeyError for the second name.
    """
    if isinstance(model, FSDPModule) and "word_embeddings" in dict(model.named_children()):
        embeddings = model.word_embeddings
        del model.word_embeddings
        model.__dict__["word_embeddings"] = embeddings


@contextmanager
def gather_outside_layers(model: torch.nn.Module) -> Iterator[None]:
    """Let each process hold, within the block, the prompt whole, and all else of a split model except its layers.

    Every process has to enter the block. Nothing happens to a model that is not split.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    # The root has to come first. Otherwise the part that runs first would take itself for the root.
    model._get_fsdp_state()._lazy_init()  # noqa: SLF001 - no public name
    parts = keep_gathered_outside_layers(model)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


@contextmanager
def _whole_prompts(model: torch.nn.Module) -> Iterator[None]:
    """Let each process hold, within the block, the prompts of a split model whole and as they are trained.

    FSDP would gather them in the type of the computation, such as bfloat16.
    """
    model.reshard()
    split = dict(model.prompt_encoder.items())
    for name, encoder in split.items():
        copies = {id(parameter): torch.nn.Parameter(parameter.full_tensor()) for parameter in encoder.parameters()}
        model.prompt_encoder[name] = copy.deepcopy(encoder, copies)
    try:
        yield
    finally:
        model.prompt_encoder.update(split)


@contextmanager
def full_state_dict(model: torch.nn.Module, accelerator: Accelerator) -> Iterator[dict[str, torch.Tensor] | None]:
    """Yield the `state_dict` with which `save_pretrained` writes whole tensors; None for a model that is not split.

    Every process has to enter the block, and the main one to save in it. With a prompt the base model stays split.
    """
    if is_split_by_deepspeed(model.parameters()):
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        in_layers = [parameter for parameter in trained.values() if not parameter.is_external_param]
        for parameter in in_layers:
            parameter.all_gather()
        yield {name: parameter.detach().clone() for name, parameter in trained.items()}
        for parameter in in_layers:
            parameter.partition()
    elif not isinstance(model, FSDPModule):
        yield None
    elif has_prompt(model):
        with _whole_prompts(model):
            yield dict(model.prompt_encoder.named_parameters(prefix="prompt_encoder"))
    else:
        yield accelerator.get_state_dict(model)


@contextmanager
def synchronized_forwards(model: torch.nn.Module) -> Iterator[dict[str, bool]]:
    """Let each process run a split causal model, within the block, as often as its own rows need.

    A layer's weights come from all processes, so that a process that ran alone would wait for ever. Here each process
    announces each of its forwards. At the end those that are done run an empty row until all are done.

    Yields:
        The arguments that `generate` needs for it.
    """
    if not is_split(model):
        yield {}
        return
    base = get_base(model)
    device = next(model.parameters()).device

    def count_running(this_process: int) -> int:
        running = torch.tensor(this_process, device=device)
        dist.all_reduce(running)
        return int(running.item())

    def announce(*_: object) -> None:
        count_running(1)

    hook = base.register_forward_pre_hook(announce)
    try:
        yield {"synced_gpus": False}
    finally:
        hook.remove()
    with torch.no_grad():
        while count_running(0):
            base(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
