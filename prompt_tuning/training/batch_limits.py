"""How large a batch of an evaluation may be."""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.encoding.batching import common_prefix
from prompt_tuning.engine.calls import first_set
from prompt_tuning.engine.dispatch import (
    autocast_dtype,
    get_base,
    has_prompt,
    has_tested_cache,
    packing_obstacle,
    within_window,
)
from prompt_tuning.engine.shared_keys import reads_shared_keys
from prompt_tuning.engine.shared_prefix import SharedPrefixModel

logger = logging.getLogger(__name__)

MOST_TIMES = 8  # Batches hold at most so many times the default, 1,024 rows of 65,536 tokens: larger ones gain little.
SHARE = 0.5  # This share of the free memory is planned with; the rest is for what is not counted here.
CACHES = 4  # Copies of a row's keys and values exist: as read, put in order, with room to grow, and grown.
ACTIVATIONS = 16  # A token takes this many times its hidden size within a layer.


def evaluation_limits(args: TrainingArguments, base: PreTrainedModel) -> tuple[int, int]:
    """Return the most rows and the most tokens of an evaluation batch.

    On CUDA the defaults are multiplied as far as half of the free memory allows, the least of all processes. Other
    settings are kept.

    Args:
        args: of any trainer; only `PromptTuningArguments` limit tokens.
        base: the model without its prompt, on its device.
    """
    rows = args.per_device_eval_batch_size
    tokens = getattr(args, "per_device_eval_batch_tokens", sys.maxsize)
    defaults = PromptTuningArguments.per_device_eval_batch_size, PromptTuningArguments.per_device_eval_batch_tokens
    if args.device.type != "cuda" or (rows, tokens) != defaults:
        return rows, tokens
    held = _free_bytes(args.device) * SHARE / bytes_of_token(base)
    times = min(gather_object([max(1, min(int(held / tokens), MOST_TIMES))]))
    logger.info("an evaluation batch holds at most %s rows, of %s tokens together", rows * times, tokens * times)
    return rows * times, tokens * times


def shared_length(
    model: PreTrainedModel | PeftModel,
    rows: Dataset,
    prompt: int,
    generation_kwargs: dict[str, Any],
    args: TrainingArguments,
) -> int:
    """Return how many tokens a batch of an evaluation holds once: its prompt, and what opens every row.

    Args:
        model: the model.
        rows: as `encode` makes.
        prompt: the virtual tokens.
        generation_kwargs: the arguments of `generate`.
        args: of any trainer.
    """
    base = get_base(model)
    if base.config.is_encoder_decoder or not len(rows) or first_set(base, generation_kwargs):
        return 0
    is_packed = not packing_obstacle(base)
    if has_prompt(model):
        is_packed = isinstance(model, SharedPrefixModel) and model.execution_path.name == "packed"
    reach = prompt + max(map(len, rows["input_ids"])) + generation_kwargs.get("max_new_tokens", 0)
    beams = generation_kwargs.get("num_beams", 1)
    if not (is_packed and within_window(base, reach) and reads_shared_keys(base, beams)):
        return 0
    if autocast_dtype(vars(args)):
        return 0
    return prompt + (len(common_prefix(rows)) if "labels" in rows.column_names else 0)


def _free_bytes(device: torch.device) -> int:
    """Return what the device has free, and what PyTorch has reserved there and does not use."""
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved


def bytes_of_token(base: PreTrainedModel) -> float:
    """Return the most bytes that a token takes in an evaluation; infinitely many for models that no test covers."""
    config = base.config.get_text_config()
    if not (base.config.is_encoder_decoder or has_tested_cache(base)):
        return float("inf")
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    cache = CACHES * 2 * config.num_hidden_layers * key_heads * head_size
    # Each token may be a target, whose logits the loss copies in float32 and normalises.
    logits = config.vocab_size * (base.dtype.itemsize + 4 + 4)
    return (cache + ACTIVATIONS * config.hidden_size) * base.dtype.itemsize + logits
