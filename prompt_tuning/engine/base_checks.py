"""Try on a few tokens whether a base model takes a prompt as it takes text, before anything is trained.

A prompt stands before text in place of tokens. This holds only in models that read nothing of a token but its
embedding, that let no token see a later one, and whose cache has the same keys and values in every layer. The
architectures in dispatch.py are tested for it; any other model is tried here with its own weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftConfig
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.engine.dispatch import has_tested_cache
from prompt_tuning.engine.peft_generation import peft_warnings_ignored
from prompt_tuning.engine.trained_config import TrainedTokensConfig
from prompt_tuning.engine.trained_tokens import check_trained_tokens
from prompt_tuning.errors import AdapterError, ModelError, first_line

NUM_TOKENS = 8
PREFIX = 4  # The trial reads this many of them first, and keeps them as a prefix.
# The largest difference of two logits that count as equal, in standard deviations.
BOUND = 0.01
BOUND_OF_HALF = 0.15


def check_base(base: PreTrainedModel, config: PeftConfig) -> None:
    """Try whether an untested causal model takes the prompt of this configuration.

    Raises:
        ModelError: text behind a prompt would not be what it is behind text.
        AdapterError: a prefix has another shape than the model's keys and values.
    """
    method = find_method(config.peft_type)
    if isinstance(config, TrainedTokensConfig):
        check_trained_tokens(base.config, layer_vectors=config.layer_vectors)
    if has_tested_cache(base):
        return
    if not method.trains_keys_and_values:
        check_takes_embeddings(base)
        return
    shape = config.num_layers, config.num_attention_heads, config.token_dim // config.num_attention_heads
    kept = cache_shape(base)
    if shape != kept:
        raise AdapterError(
            f"a prefix for {shape} (layers, heads, head size), but {type(base).__name__} keeps {kept}. Load it on "
            "the model that it was trained on, or take method prompt_tuning or lora."
        )


def check_takes_embeddings(base: PreTrainedModel) -> None:
    """Raise a ModelError unless the embeddings of a text act as the text does, and others can be trained.

    Args:
        base: a causal model.
    """
    ids = _trial_ids(base)
    embeds = base.get_input_embeddings()(ids)
    mask = torch.ones_like(ids)
    with _trial(base, "embeddings in place of token ids", "lora, or another model"):
        expected = _causal_logits(base, ids)
        is_equal = are_equal(base(inputs_embeds=embeds, attention_mask=mask).logits, expected)
        with torch.enable_grad():
            trained = embeds.detach().clone().requires_grad_()
            # Models that scale their input in place would not take `trained` itself.
            logits = base(inputs_embeds=1.1 * trained, attention_mask=mask).logits
            torch.autograd.grad(logits.float().sum(), trained)
    if not is_equal:
        raise ModelError(
            f"{type(base).__name__}: it reads more of a token than its embedding, and a soft prompt has no more. "
            "Take method lora, or another model."
        )


def check_encoder_takes_embeddings(base: PreTrainedModel, scale: float) -> None:
    """Raise a ModelError unless an encoder reads the embeddings of a text as it reads the text.

    Args:
        base: an encoder-decoder model.
        scale: what embeddings are multiplied by before the encoder receives them.
    """
    ids = _trial_ids(base)
    encoder = base.get_encoder()
    mask = torch.ones_like(ids)
    with _trial(base, "embeddings in place of token ids", "lora, or another model"):
        embeds = base.get_input_embeddings()(ids) * scale
        states = encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        is_equal = are_equal(states, encoder(input_ids=ids, attention_mask=mask).last_hidden_state)
    if not is_equal:
        raise ModelError(
            f"{type(base).__name__}: its encoder reads more of a token than its embedding, and a soft prompt has "
            "no more. Take method lora, or another model."
        )


def cache_shape(base: PreTrainedModel) -> tuple[int, int, int]:
    """Return the layers, heads and head size of the keys and values that a causal model keeps.

    Raises:
        ModelError: the text behind these keys and values is not what it is behind the tokens themselves, or a layer
            keeps others.
    """
    ids = _trial_ids(base)
    with _trial(base, "a cache of keys and values", "prompt_tuning or lora"):
        expected = _causal_logits(base, ids)
        cache = DynamicCache(config=base.config)
        base(input_ids=ids[:, :PREFIX], cache=cache, use_cache=True)
        pairs = _keys_and_values(cache)
        shape = tuple(pairs[0][0].shape) if pairs else ()
        if any(tuple(state.shape) != shape for pair in pairs for state in pair) or not pairs:
            raise ModelError(
                f"{type(base).__name__}: its layers do not all keep keys and values of one shape, as a prefix has "
                "them. Take method prompt_tuning or lora."
            )
        # PEFT hands a prefix over under this name, which not every model takes.
        prefix = {"past_key_values": DynamicCache(pairs), "attention_mask": torch.ones_like(ids)}
        with peft_warnings_ignored():
            output = base(input_ids=ids[:, PREFIX:], use_cache=True, **prefix)
        is_equal = are_equal(output.logits, expected[:, PREFIX:])
    if not is_equal:
        raise ModelError(
            f"{type(base).__name__}: a text behind keys and values is not what it is behind their tokens. Take method "
            "prompt_tuning or lora."
        )
    return len(pairs), shape[1], shape[3]


def _keys_and_values(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the keys and values of each layer of a cache; none if a layer has none."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
    return [(layer.keys, layer.values) for layer in layers] if len(layers) == len(cache.layers) else []


def _trial_ids(base: PreTrainedModel) -> torch.Tensor:
    """Return ids `[1, 8]` from the middle of the vocabulary, where no special tokens and places of images are."""
    size = base.get_input_embeddings().weight.shape[0]
    return torch.linspace(size // 4, size // 2, NUM_TOKENS, device=base.device).long()[None]


def _causal_logits(base: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits `[1, T, V]` of a text; raise a ModelError if a token sees the one after it."""
    mask = torch.ones_like(ids)
    other_end = torch.cat([ids[:, :-1], ids[:, :1]], 1)
    logits, changed = (base(input_ids=text, attention_mask=mask).logits for text in (ids, other_end))
    if not are_equal(logits[:, :-1], changed[:, :-1]):
        raise ModelError(
            f"{type(base).__name__}: tokens see those after them, as in an encoder, which writes no text. Set a "
            "causal model or an encoder-decoder."
        )
    return logits


def are_equal(values: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether two ways to compute the same logits or states agree, up to rounding."""
    bound = BOUND if expected.dtype == torch.float32 else BOUND_OF_HALF
    return bool((values - expected).abs().max() <= bound * expected.float().std())


@contextmanager
def _trial(base: PreTrainedModel, thing: str, advice: str) -> Iterator[None]:
    """Set evaluation mode within the context, and raise a ModelError with the reason if the model fails there."""
    training = base.training
    base.eval()
    try:
        with torch.no_grad():
            yield
    except ModelError:
        raise
    except Exception as error:  # Models that cannot be called so raise errors of every type.
        raise ModelError(
            f"{type(base).__name__}: it fails with {thing} ({first_line(error)}). Take method {advice}."
        ) from error
    finally:
        base.train(training)
