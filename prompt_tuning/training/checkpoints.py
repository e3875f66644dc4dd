"""Checkpoints that are whole or not there, whenever the process is killed: made, and removed, by one rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from transformers.trainer_utils import sort_checkpoints

from prompt_tuning.engine.dispatch import has_prompt
from prompt_tuning.errors import AdapterError
from prompt_tuning.support.files import apply_umask

PARTIAL = ".partial-"
PROMPT_ENCODER = "prompt_encoder.safetensors"


@contextmanager
def atomic_checkpoint(checkpoint: Path) -> Iterator[Path]:
    """A run's folder in which to make this checkpoint; it moves to its place only if the block ends without an error.

    Every process has to enter it. One that is there already, of a run that went back to an earlier one, is replaced.
    """
    state = PartialState()
    partial = checkpoint.with_name(PARTIAL + checkpoint.name)
    try:
        yield partial
        state.wait_for_everyone()
        # Of machines that share a disk the first moves it, and the second finds nothing left to move.
        with state.main_process_first():
            if state.is_local_main_process and partial.is_dir():
                if checkpoint.is_dir():
                    remove_folder(checkpoint)
                apply_umask(partial / checkpoint.name)
                os.replace(partial / checkpoint.name, checkpoint)
    finally:
        if state.is_local_main_process:
            shutil.rmtree(partial, ignore_errors=True)


def has_network(model: torch.nn.Module) -> bool:
    """Whether checkpoints need a file of their own: more is trained than what PEFT saves of the prompt.

    So with P-tuning's encoder, a projection, a residual network, and a multitask prompt's matrices. A model that FSDP
    splits is saved whole in any case.
    """
    if not has_prompt(model) or isinstance(model, FSDPModule):
        return False
    return len(list(model.prompt_encoder.parameters())) > 1


def save_network(model: PeftModel, checkpoint: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in model.prompt_encoder.state_dict().items()}
    save_file(state, checkpoint / PROMPT_ENCODER)


def load_network(model: PeftModel, checkpoint: Path) -> None:
    """Load the prompt with the network that writes it; PEFT would load the network's output as its input.

    Raises:
        AdapterError: the checkpoint is not one of PromptTuningTrainer's.
    """
    file = checkpoint / PROMPT_ENCODER
    if not file.is_file():
        raise AdapterError(
            f"{checkpoint}: no {PROMPT_ENCODER} there, and PEFT's file holds only what the prompt's network "
            "wrote; resume from a checkpoint that this trainer saved"
        )
    model.prompt_encoder.load_state_dict(load_file(file))


def remove_folder(folder: Path) -> None:
    """Remove a folder in such a way that no half of it is ever under its name."""
    partial = tempfile.mkdtemp(prefix=PARTIAL, dir=folder.parent)
    os.replace(folder, partial)
    shutil.rmtree(partial, ignore_errors=True)


def rotate_checkpoints(run: Path, limit: int | None, best: str | None) -> None:
    """Keep `limit` checkpoints, the last and the best always among them: Trainer's rotation, by `remove_folder`."""
    if not limit or limit < 0:
        return
    checkpoints = sort_checkpoints(str(run), use_mtime=True, best_model_checkpoint=best)
    kept = max(limit, len({best or checkpoints[-1], checkpoints[-1]}))
    for old in checkpoints[:-kept]:
        remove_folder(Path(old))


def remove_all_but(run: Path, best: str) -> None:
    """Remove all checkpoints of a run but this one, which may be written otherwise."""
    for checkpoint in map(Path, sort_checkpoints(str(run))):
        if not checkpoint.samefile(best):
            remove_folder(checkpoint)


def remove_partial(run: Path) -> None:
    """Remove what a process that was killed left half-written."""
    for path in [*run.glob(".*partial-*"), *(run / "predictions").glob(".*partial-*")]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
