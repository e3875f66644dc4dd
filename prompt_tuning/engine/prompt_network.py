"""Save and load the network that writes a prompt, so that its training can resume.

PEFT saves only what P-tuning's encoder, a prefix's projection or a residual network wrote. A checkpoint also holds the
network, in a file of its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import CartridgeEncoder, PeftModel
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.module import _IncompatibleKeys

from prompt_tuning.engine.adapter_weights import ADVICE, check_finite
from prompt_tuning.engine.dispatch import has_prompt
from prompt_tuning.engine.trained_tokens import trained_tokens_of
from prompt_tuning.errors import AdapterError

PROMPT_ENCODER = "prompt_encoder.safetensors"


def has_network(model: torch.nn.Module) -> bool:
    """Return whether checkpoints need `PROMPT_ENCODER`: more is trained than what PEFT saves of a prompt.

    That is so for P-tuning's encoder, a projection and a residual network. A model that FSDP splits is saved whole in
    any case.
    """
    if not has_prompt(model) or isinstance(model, FSDPModule):
        return False
    return any(is_network(encoder) for encoder in model.prompt_encoder.values())


def save_network(model: PeftModel, checkpoint: Path) -> None:
    """Write each adapter's network to the folder of the checkpoint in which PEFT saved the adapter."""
    for adapter_name, encoder in model.prompt_encoder.items():
        if is_network(encoder):
            folder = checkpoint if adapter_name == "default" else checkpoint / adapter_name
            state = {f"{adapter_name}.{name}": tensor.contiguous() for name, tensor in encoder.state_dict().items()}
            save_file(state, folder / PROMPT_ENCODER)


def load_network(
    model: PeftModel, adapter_name: str, folder: str | Path, *, is_trainable: bool
) -> _IncompatibleKeys | None:
    """Load an adapter's network from a checkpoint; PEFT would load the network's output as its input.

    Args:
        model: it has an adapter of this name, which is a prompt.
        adapter_name: whose network is loaded.
        folder: a checkpoint, or any folder of an adapter.
        is_trainable: training is to resume, for which the network's output does not suffice.

    Returns:
        What `load_state_dict` returns, or None: the adapter has no network, or the folder has no network's file.

    Raises:
        AdapterError: training is to resume, and the folder holds only what the network wrote, or the network's file is
            damaged or of another network.
    """
    encoder = model.prompt_encoder[adapter_name]
    if not is_network(encoder):
        return None
    file = Path(folder, PROMPT_ENCODER)
    if file.is_file():
        prefix = f"{adapter_name}."
        try:
            state = load_file(file)
            check_finite(state, file)
            return encoder.load_state_dict(
                {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            )
        except (SafetensorError, RuntimeError) as error:  # Names and shapes that do not fit are a RuntimeError.
            raise AdapterError(f"{file}: not the network of this prompt: {error}. {ADVICE}") from error
    if is_trainable:
        raise AdapterError(
            f"{folder}: no {PROMPT_ENCODER}. Training cannot resume from what the prompt's network wrote; use a "
            "checkpoint that PromptTuningTrainer saved, or train a method without a network"
        )
    return None


def is_network(encoder: torch.nn.Module) -> bool:
    """Return whether more of a prompt's encoder is trained than what PEFT saves of it."""
    if trained_tokens_of(encoder) is not None or isinstance(encoder, MultitaskPromptEmbedding | CartridgeEncoder):
        return False  # They are saved whole.
    return len(list(encoder.parameters())) > 1
