"""Attention behind a prefix, for encoder-decoder models.

The attention function is registered with transformers. It puts the prefix before the keys and values, whether these
come from a cache or not. The prefix is always visible, has relative position bias 0, and moves no position. Without
a prefix it is transformers' own attention.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prompt_tuning.engine.dispatch import BART_LIKE, T5_LIKE
from prompt_tuning.errors import ModelError

PREFIXED_ATTENTION = "encoder_decoder_prefix"


def attention_modules(base: PreTrainedModel) -> dict[str, list[nn.Module]]:
    """Return the attention modules of each layer, by their place: "encoder", "decoder" and "cross".

    Raises:
        ModelError: this type of model has not been compared with attention computed by hand.
    """
    encoder = base.get_encoder()
    decoder = base.get_decoder()
    if base.config.model_type in T5_LIKE:
        return {
            "encoder": [block.layer[0].SelfAttention for block in encoder.block],
            "decoder": [block.layer[0].SelfAttention for block in decoder.block],
            "cross": [block.layer[1].EncDecAttention for block in decoder.block],
        }
    if base.config.model_type in BART_LIKE:
        return {
            "encoder": [layer.self_attn for layer in encoder.layers],
            "decoder": [layer.self_attn for layer in decoder.layers],
            "cross": [layer.encoder_attn for layer in decoder.layers],
        }
    raise ModelError(without_prefix(base.config))


def without_prefix(config: PretrainedConfig) -> str:
    """Return why an encoder-decoder of this configuration takes no prefix; empty if it does."""
    if config.model_type in T5_LIKE + BART_LIKE:
        return ""
    return (
        f"{config.model_type}: its attention has not been compared with a prefix computed by hand. Take method "
        f"prompt_tuning or lora, or one of {', '.join(T5_LIKE + BART_LIKE)}."
    )


def head_shape(attention: nn.Module) -> tuple[int, int]:
    """Return the number and the size of heads; in T5 their product may differ from the hidden size."""
    if attention.config.model_type in T5_LIKE:
        return attention.n_heads, attention.key_value_proj_dim
    return attention.num_heads, attention.head_dim


@torch.no_grad()
def key_value_deviations(base: PreTrainedModel, modules: list[nn.Module]) -> torch.Tensor:
    """Return the standard deviations of the keys and values that the model computes for 32 tokens.

    Args:
        base: the base model.
        modules: attention modules of the base model.

    Returns:
        `[2 * modules]`: of the keys and then of the values of each module.
    """
    names = ("k", "v") if base.config.model_type in T5_LIKE else ("k_proj", "v_proj")
    projections = [module.get_submodule(name) for module in modules for name in names]
    deviations: dict[nn.Module, torch.Tensor] = {}

    def record(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        deviations[module] = output.float().std()

    handles = [projection.register_forward_hook(record) for projection in projections]
    ids = torch.linspace(0, base.config.vocab_size - 1, 32, device=base.device).long()[None]
    training = base.training
    base.eval()(input_ids=ids, decoder_input_ids=ids)
    base.train(training)
    for handle in handles:
        handle.remove()
    return torch.stack([deviations[projection] for projection in projections]).cpu()


def prefixed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    prefix_states: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of a query over a prefix and the keys.

    Args:
        module: the attention module that asks.
        query: `[B, heads, T, D]`.
        key: `[B, heads, U, D]`, without the prefix.
        value: `[B, heads, U, D]`, without the prefix.
        attention_mask: `[B, 1, T, U]`, without the prefix.
        prefix_states: the keys and values of the prefix, `[heads, P, D]` both, by attention module. A module that is
            not in it has no prefix.
        kwargs: the other arguments of sdpa, among them T5's `position_bias` `[1, heads, T, U]` without the prefix.

    Returns:
        `[B, T, heads, D]`, and None for the attention weights.
    """
    if prefix_states is None or module not in prefix_states:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prefix_key, prefix_value = prefix_states[module]
    length = prefix_key.shape[1]
    if attention_mask is None and module.is_causal and query.shape[2] > 1:
        attention_mask = _causal_mask(query.shape[2], key.shape[2], query.device)
    if attention_mask is not None:
        attention_mask = _with_visible_prefix(attention_mask, length)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = F.pad(kwargs["position_bias"], (length, 0))
    rows = len(query)
    key = torch.cat([prefix_key.to(key.dtype).expand(rows, -1, -1, -1), key], 2)
    value = torch.cat([prefix_value.to(value.dtype).expand(rows, -1, -1, -1), value], 2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _causal_mask(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Return the mask `[1, 1, T, U]` that sdpa would apply itself, and would then apply to the prefix too."""
    query_places = torch.arange(queries, device=device)
    key_places = torch.arange(keys, device=device)
    return (query_places[:, None] >= key_places)[None, None]


def _with_visible_prefix(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Return a boolean or additive mask `[..., U]` as `[..., P + U]`, in which the prefix is visible."""
    visible = True if mask.dtype == torch.bool else 0.0
    return F.pad(mask, (length, 0), value=visible)


AttentionInterface.register(PREFIXED_ATTENTION, prefixed_attention)
AttentionMaskInterface.register(PREFIXED_ATTENTION, sdpa_mask)
