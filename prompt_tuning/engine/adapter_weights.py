"""Check the weights of a saved adapter against its configuration, before a model loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoKrConfig, LoraConfig, PeftConfig, TaskType, load_peft_weights
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from safetensors import SafetensorError

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.engine.trained_config import TrainedTokensConfig
from prompt_tuning.errors import AdapterError
from prompt_tuning.support.text import listed

ADVICE = "Copy the folder again, or train again."

TRAINED_TOKENS = ("text_embeddings", "layer_vectors", "decoder_vectors")
"""The tensors without which an adapter with trained tokens predicts something else."""


def check_weights(config: PeftConfig, folder: str | Path, **kwargs: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a saved adapter on the CPU, if they are what its configuration says.

    Args:
        config: the configuration of the adapter. What it does not know of a shape is not checked.
        folder: the adapter's folder, or what else PEFT loads.
        kwargs: arguments of PEFT's downloads, such as `subfolder`.

    Raises:
        AdapterError: the file cannot be read, lacks a tensor, or has one of another shape or type, or with a number
            that is not finite.
    """
    try:
        tensors = load_peft_weights(str(folder), device="cpu", **kwargs)
    except (SafetensorError, ValueError, EOFError) as error:
        raise AdapterError(f"{folder}: the adapter's weights are corrupt or incomplete: {error}. {ADVICE}") from error
    shapes = _prompt_shapes(config) if config.is_prompt_learning else _layer_shapes(config, tensors, folder)
    for name, shape in shapes.items():
        if name not in tensors:
            names = listed([*tensors], 3) or "nothing"
            raise AdapterError(f"{folder}: its weights have no {name}, found {names}. {ADVICE}")
        sizes = list(tensors[name].shape)
        if len(sizes) != len(shape) or any(size not in (None, has) for size, has in zip(shape, sizes, strict=True)):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise AdapterError(
                f"{folder}: {name} has the shape {sizes}, and its configuration says [{expected}]. {ADVICE}"
            )
        if not tensors[name].is_floating_point():
            raise AdapterError(f"{folder}: {name} has the type {tensors[name].dtype}, expected a float type. {ADVICE}")
    for name in TRAINED_TOKENS:
        if name in tensors and name not in shapes:
            raise AdapterError(f"{folder}: its weights have {name}, and its configuration has none. {ADVICE}")
    check_finite(tensors, folder)
    return tensors


def check_finite(tensors: Mapping[str, torch.Tensor], folder: str | Path) -> None:
    """Raise an AdapterError if a number of a tensor is NaN or infinite."""
    for name, tensor in tensors.items():
        # The float types of one byte have no test for infinite numbers.
        bad = tensor.numel() - int(tensor.float().isfinite().sum()) if tensor.is_floating_point() else 0
        if bad:
            raise AdapterError(
                f"{folder}: {bad:,} of the {tensor.numel():,} numbers of {name} are NaN or infinite. Train again with "
                "a lower learning_rate, or copy the folder again if it is damaged."
            )


def _prompt_shapes(config: PeftConfig) -> dict[str, list[int | None]]:
    """Return the tensors that a saved prompt has, with their shapes; None for a size that is not known."""
    method = find_method(config.peft_type)
    length = config.num_virtual_tokens
    if isinstance(config, TrainedTokensConfig):
        prefixed = method.trains_keys_and_values
        width = _prefix_width(config) if prefixed else config.token_dim
        text = len(config.text_token_ids)
        shapes = {"prompt_embeddings": [length, width], "text_embeddings": [text, None if prefixed else width]}
        if config.layer_vectors:
            shapes["layer_vectors"] = [config.num_layers, text if prefixed else length + text, None]
            shapes["layer_scales"] = [config.num_layers]
            if config.task_type == TaskType.SEQ_2_SEQ_LM:
                shapes |= {"decoder_vectors": [None, 1, None], "decoder_scales": [None]}
        return shapes
    if method.trains_keys_and_values:
        return {"prompt_embeddings": [length, _prefix_width(config)]}
    if method.trains_embeddings:
        rows = length * (config.num_transformer_submodules or 1)
        shapes = {"prompt_embeddings": [rows, config.token_dim]}
        if method.trains_several_tasks:
            shapes["prefix_task_cols"] = [config.num_tasks, rows, config.num_ranks]
            shapes["prefix_task_rows"] = [config.num_tasks, config.num_ranks, config.token_dim]
        return shapes
    return {}


def _prefix_width(config: PeftConfig) -> int | None:
    """Return how many keys and values of all layers a virtual token has; None if it is not known."""
    places = config.to_dict().get("places")  # Only the configuration for encoder-decoder models has it.
    if places:
        return sum(2 * layers * heads * size for layers, heads, size in places.values())
    if config.num_layers is None or config.token_dim is None:
        return None
    return 2 * config.num_layers * config.token_dim


def _layer_shapes(
    config: PeftConfig, tensors: Mapping[str, torch.Tensor], folder: str | Path
) -> dict[str, list[int | None]]:
    """Return the shapes that the configuration says of added layers: those of LoRA have the rank.

    Raises:
        AdapterError: the file has no layers of this kind, with which the base model would answer alone.
    """
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "")
    if not any(prefix in name for name in tensors):
        raise AdapterError(
            f"{folder}: its configuration says {config.peft_type.value}, and its weights have no layer of it, found "
            f"{listed([*tensors], 3) or 'nothing'}. {ADVICE}"
        )
    # PEFT makes layers of these ranks before it compares them with the weights.
    largest = max(size for tensor in tensors.values() for size in (0, *tensor.shape))
    ranks = {"r": config.to_dict().get("r")} | (config.to_dict().get("rank_pattern") or {})
    for name, rank in ranks.items():
        if rank is not None and rank > largest and not isinstance(config, LoKrConfig):  # LoKr's may be any.
            raise AdapterError(
                f"{folder}: the rank {name} is {rank:,}, and no tensor has more than {largest:,}. {ADVICE}"
            )
    shapes: dict[str, list[int | None]] = {}
    if not isinstance(config, LoraConfig):
        return shapes
    for name, tensor in tensors.items():
        first, second = name.replace("lora_B", "lora_A"), name.replace("lora_A", "lora_B")
        if name.endswith(("lora_A.weight", "lora_B.weight")) and tensor.dim() == 2:
            # Parameters of several experts have the ranks of all in one matrix.
            rank = None if config.rank_pattern or config.target_parameters else config.r
            shapes |= {first: [rank, None], second: [None, rank]}
    return shapes
