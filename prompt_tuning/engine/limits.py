"""Lengths beyond which a prompt is no longer seen, or a row depends on the other rows of its batch."""

from __future__ import annotations

from typing import Any

from prompt_tuning.engine.dispatch import sliding_window

LENGTH_DEPENDENT = ("dynamic", "longrope")  # These rotary embeddings depend on the longest sequence of a forward.


def window_limit(config: Any, num_virtual_tokens: int, length: int) -> tuple[str, tuple[Any, ...]] | None:
    """Return a log message with its values if a sequence reaches beyond the sliding window, else None.

    Args:
        config: the text configuration of the base model.
        num_virtual_tokens: P, the length of the prompt.
        length: the most positions of a sequence, its prompt included.
    """
    window = sliding_window(config)
    if not window or length <= window:
        return None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    message = (
        "%s of %s layers see only the last %s positions and sequences here have up to %s: from position %s on "
        "a token no longer sees the first virtual token in them, from %s on none."
    )
    last_seen = window + num_virtual_tokens - 1
    return message, (types.count("sliding_attention"), len(types), window, length, window, last_seen)


def rotary_limit(config: Any, length: int) -> tuple[str, tuple[Any, ...]] | None:
    """Return a log message with its values if rotary positions change at this length, else None.

    Args:
        config: the text configuration of the base model.
        length: the most positions of a sequence, its prompt included.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
    if original is None or rope.get("rope_type") not in LENGTH_DEPENDENT or length <= original:
        return None
    message = (
        "%s rotary positions change for sequences beyond %s positions, and those here have up to %s: a row "
        "then depends on the longest one of its batch; set per_device_eval_batch_size and "
        "per_device_train_batch_size to 1, or keep them shorter."
    )
    return message, (rope["rope_type"], original, length)
