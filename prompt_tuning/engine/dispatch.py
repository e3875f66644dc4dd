"""Choose how a model's batches are run: packed, behind a cache of their prompt, or by PEFT's own forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import (
    PeftConfig,
    PeftModel,
)
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.engine.attention import ATTENTION
from prompt_tuning.errors import AdapterError, ModelError

# tests/engine/test_architectures.py holds each of these to a row-by-row reference.
PACKED_ARCHITECTURES = (
    "cohere", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2",
    "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
)  # fmt: skip
CACHE_ARCHITECTURES = (*PACKED_ARCHITECTURES, "bloom")  # exact behind a cache of the prompt
# tests/models/test_encoder_decoder.py compares each of these with attention computed by hand.
T5_LIKE = ("t5", "mt5", "umt5")
BART_LIKE = ("bart", "marian", "mbart", "pegasus")
ENCODER_DECODERS = (*T5_LIKE, *BART_LIKE, "m2m_100")  # tests/models/test_encoder_decoder_tokens.py holds them, too.


@dataclass(frozen=True)
class ExecutionPath:
    """The way in which a batch is run, and the reason why no faster one is taken."""

    name: Literal["packed", "cache", "plain"]
    reason: str = ""


def get_base(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model without its adapter, if it has one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def check_one_device(base: PreTrainedModel) -> None:
    """Raise a ModelError for a model that `device_map` has spread over several devices."""
    devices = sorted(set(map(str, vars(base).get("hf_device_map", {}).values())))
    if len(devices) > 1:
        raise ModelError(
            f"the base model's layers are on several devices ({', '.join(devices)}), and prompts and masks would not "
            'follow them. Load it on one, device_map={"": 0}, or split it with recipes/accelerate/fsdp2.yaml'
        )


def is_split(model: torch.nn.Module) -> bool:
    """Return whether FSDP or DeepSpeed's ZeRO-3 splits the weights of a model among the processes."""
    return isinstance(model, FSDPModule) or is_split_by_deepspeed(model.parameters())


def is_split_by_deepspeed(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Return whether DeepSpeed's ZeRO-3 splits these parameters; it gives each of them a number."""
    return "ds_id" in vars(next(iter(parameters)))


def has_prompt(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether a prompt stands before the rows of this model."""
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning


def autocast_dtype(settings: Mapping[str, Any]) -> torch.dtype | None:
    """Return the numbers of autocast under the settings `bf16` and `fp16`; None for those of the weights."""
    if settings.get("bf16"):
        return torch.bfloat16
    return torch.float16 if settings.get("fp16") else None


def autocasting(device: str, numbers: torch.dtype | None) -> torch.autocast:
    """Return the autocast context for this type of device; None for the numbers computes in those of the weights."""
    return torch.autocast(device, numbers, enabled=numbers is not None)


def execution_path(base: PreTrainedModel, adapter: PeftConfig, *, training: bool) -> ExecutionPath:
    """Return how batches of this model behind this adapter's prompt are run."""
    config, method = base.config.get_text_config(), find_method(adapter.peft_type)
    if not method.has_prompt:
        return ExecutionPath("plain", f"the method {method.name} has no prompt that all rows share")
    if not has_tested_cache(base):
        return ExecutionPath("plain", f"{config.model_type} has not been shown to be exact behind a shared prompt")
    reason = packing_obstacle(base)
    if not reason and method.trains_keys_and_values and adapter.num_virtual_tokens >= (sliding_window(config) or 1e9):
        reason = f"the prefix is longer than the sliding window of {sliding_window(config)}"
    if not reason:
        return ExecutionPath("packed")
    if training and base.is_activation_checkpointing:
        return ExecutionPath("plain", f"{reason}, and activation checkpointing allows no cache")
    return ExecutionPath("cache", reason)


def check_checkpointing(base: PreTrainedModel, adapter: PeftConfig) -> None:
    """Raise an AdapterError for a prefix of a causal model whose rows are not packed.

    A checkpointed layer of transformers takes no cache, so that only packed rows can read a prefix in it.
    """
    path = execution_path(base, adapter, training=False)
    if find_method(adapter.peft_type).trains_keys_and_values and path.name != "packed":
        raise AdapterError(checkpointed_prefix(path.reason))


def checkpointed_prefix(reason: str) -> str:
    """Return the message that a prefix cannot be trained in checkpointed layers."""
    return (
        f"activation_checkpointing: checkpointed layers take no cache, and only packed rows read a prefix without one "
        f"({reason}). Leave activation_checkpointing out, or take method prompt_tuning."
    )


def has_tested_cache(base: PreTrainedModel) -> bool:
    """Return whether the tests hold this causal model, behind a cache of its prompt, to a reference."""
    if base.config.get_text_config().model_type not in CACHE_ARCHITECTURES:
        return False
    # A model that holds a tested one may not pass on positions, which rows behind a cache need.
    return base.config.get_text_config() is base.config or "position_ids" in inspect.signature(base.forward).parameters


def packing_obstacle(base: PreTrainedModel) -> str:
    """Return why rows of this causal model cannot run as one packed sequence; empty if they can."""
    config = base.config.get_text_config()
    attention = config._attn_implementation  # noqa: SLF001, transformers has no public name for it
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if not has_tested_cache(base):
        return f"{type(base).__name__} is not among the tested architectures"
    if config.model_type not in PACKED_ARCHITECTURES or getattr(config, "reorder_and_upcast_attn", False):
        return f"{type(base).__name__} has no replaceable attention"
    if attention not in ("sdpa", ATTENTION) and not (capped and attention == "eager"):
        return f"{type(base).__name__} runs {attention} attention, not a replaceable sdpa"
    return ""


def within_window(base: PreTrainedModel, positions: int) -> bool:
    """Return whether the last of so many positions, a prompt's included, still sees the first in every layer."""
    window = sliding_window(base.config.get_text_config())
    return not window or positions <= window


def sliding_window(config: Any) -> int | None:
    """Return the sliding window of a model that has layers with one, else None."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    return window if window and (types is None or "sliding_attention" in types) else None


def has_recurrent_layers(config: PretrainedConfig) -> bool:
    """Return whether layers of this causal model hand on a state and keep no keys (Mamba, Qwen3-Next, Falcon-H1)."""
    classes = AutoModelForCausalLM._model_mapping  # noqa: SLF001, transformers has no public name for it
    return type(config) in classes and classes[type(config)]._is_stateful  # noqa: SLF001, see is_stateful


def is_stateful(base: PreTrainedModel) -> bool:
    """Return whether the model hands on a recurrent state, so that a cache of keys is not all that it keeps."""
    return base._is_stateful  # noqa: SLF001, transformers has no public name for it
