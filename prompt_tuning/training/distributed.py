"""Several processes: which rows are whose, and one model whose weights are split among them (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from prompt_tuning.encoding.batching import batches_within
from prompt_tuning.engine.dispatch import get_base, has_prompt
from prompt_tuning.errors import ProcessError, first_line


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn the errors by which torch and gloo report that another process is gone into a ProcessError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = first_line(error).rpartition("] ")[2]
        raise ProcessError(
            f"another process of this run is gone, or its host cannot be reached ({reason}); its own log says why. "
            "Start all of them again with --resume_from_checkpoint true"
        ) from error


def batches_of_process(
    places: Sequence[int], max_rows: int, max_tokens: int, processes: int, number: int
) -> list[list[int]]:
    """The batches of one process, of row numbers in their order: as many on each, and of equal sizes.

    Step by step the batches of all processes, one after the other, are the rows in their order; the last row is
    repeated until the last step is full.

    Args:
        places: how many tokens each row takes of a batch.
        number: of the process, from 0.
    """
    largest = [max(places[start : start + processes]) for start in range(0, len(places), processes)]
    batches = []
    for step in batches_within(largest, max_rows, max_tokens):
        first = step[0] * processes + number * len(step)
        batches.append([min(row, len(places) - 1) for row in range(first, first + len(step))])
    return batches


def loader_of_batches(loader: DataLoader, batches: list[list[int]], args: TrainingArguments) -> DataLoader:
    """A loader of the same rows by these batches, which are one process's own."""
    own = DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=args.dataloader_pin_memory,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
    )
    # As of one process: the rows are divided already.
    return prepare_data_loader(own, args.device, num_processes=1, process_index=0, put_on_device=True)


def num_real_rows(left: int, rows: int, number: int) -> int:
    """How many of the `rows` rows of process `number` are no repetition, where all processes together have `left`."""
    return min(max(left - rows * number, 0), rows)


def keep_gathered_outside_layers(model: torch.nn.Module) -> list[FSDPModule]:
    """The parts of a split model outside its layers, which from now on stay gathered once one has run.

    Batches differ in how often they read embeddings, and processes must gather all else in one order. Nothing for a
    model that is not split.
    """
    if not isinstance(model, FSDPModule):
        return []
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    parts = [module for module in modules if not isinstance(module, GradientCheckpointingLayer)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
    return parts


def remove_duplicate_embedding_name(model: torch.nn.Module) -> None:
    """Let a split model have its embeddings by the base model's name alone.

    PEFT registers those of a model with a prompt as `word_embeddings` too, and torch, which keeps a split model's
    checkpoints by name, raises a KeyError for the second name.
    """
    if isinstance(model, FSDPModule) and "word_embeddings" in model._modules:
        model.__dict__["word_embeddings"] = model._modules.pop("word_embeddings")


@contextmanager
def gather_outside_layers(model: torch.nn.Module) -> Iterator[None]:
    """Within it each process holds the prompt whole, and all else of a split model but its layers.

    Every process has to enter it. Nothing happens to a model that is not split.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model._get_fsdp_state()._lazy_init()  # the root: else whichever part runs first would take itself for it
    parts = keep_gathered_outside_layers(model)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


@contextmanager
def full_state_dict(model: torch.nn.Module, accelerator: Accelerator) -> Iterator[dict[str, torch.Tensor] | None]:
    """Within it `model.save_pretrained(state_dict=...)` of what this gives writes whole tensors.

    Every process has to enter it, and the main one to save. With a prompt the base model stays split.
    """
    if not isinstance(model, FSDPModule):
        yield None
    elif has_prompt(model):
        with gather_outside_layers(model):
            # Not `state_dict()`, which would first split them again.
            yield dict(model.prompt_encoder.named_parameters(prefix="prompt_encoder"))
    else:
        yield accelerator.get_state_dict(model)


@contextmanager
def synchronized_forwards(model: torch.nn.Module) -> Iterator[dict[str, bool]]:
    """Within it each process may run a split causal model as often as its own rows need.

    A layer's weights come from all processes, so that one that ran alone would wait for ever. Here each says before it
    runs the model that it does, and those that have nothing left to run go along with an empty row until none has.

    Yields:
        What `generate` has to be told.
    """
    if not isinstance(model, FSDPModule):
        yield {}
        return
    base = get_base(model)
    device = next(model.parameters()).device

    def anyone_runs(this_one: bool) -> bool:
        running = torch.tensor(int(this_one), device=device)
        dist.all_reduce(running)
        return running.item() > 0

    hook = base.register_forward_pre_hook(lambda *_: anyone_runs(True) and None)
    try:
        yield {"synced_gpus": False}
    finally:
        hook.remove()
    with torch.no_grad():
        while anyone_runs(False):
            base(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
