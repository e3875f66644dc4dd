"""The arguments of `generate` and `forward`, as transformers names and orders them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from prompt_tuning.errors import AdapterError

# A model may be asked for these arguments of `generate`, which are neither its parameters nor settings.
FURTHER_ARGUMENTS = {"tokenizer", "trust_remote_code", "assistant_tokenizer"}
# These arguments and settings of `generate` would read rows without their prompt, or ids in its place.
WITHOUT_PROMPT = (
    "cache", "past_key_values", "cache_params", "cache_implementation", "assistant_model", "assistant_early_exit",
    "prompt_lookup_num_tokens", "use_mtp", "custom_generate", "token_healing", "guidance_scale", "negative_prompt_ids",
    "negative_prompt_attention_mask", "encoder_no_repeat_ngram_size", "forced_bos_token_id",
)  # fmt: skip
# The states of a prompt that all rows share, and of packed rows, have other places than these would have.
STATES = ("output_attentions", "output_hidden_states")
NEUTRAL = {"guidance_scale": 1, "encoder_no_repeat_ngram_size": 0}


def setting(model: PreTrainedModel, kwargs: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return the value that `generate` will use: the argument, else that of the generation config."""
    if name in kwargs:
        return kwargs[name] if kwargs[name] is not None else default
    # The model's own config decides what the config that was passed leaves open.
    for config in (kwargs.get("generation_config"), model.generation_config):
        value = getattr(config, name, None)
        if value is not None:
            return value
    return default


def named_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by the names of the function's parameters.

    Raises:
        TypeError: there are too many, or one is given twice.
    """
    arguments = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    further = arguments.pop("kwargs", {})
    return arguments | further


def generate_arguments(base: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `generate` by name, with the rows as `input_ids` and the mask that holds for them.

    Args:
        base: the model without its prompt.
        args: positional arguments, in the order of the base model's `generate`.
        kwargs: the other arguments.

    Returns:
        The arguments; `input_ids` and `attention_mask` `[B, T]` are of type long. Both are absent if `inputs_embeds`
        or `encoder_outputs` are given instead.

    Raises:
        AdapterError: there are no rows, one has no token, or the mask has another shape.
    """
    arguments = named_arguments(base.generate, args, kwargs)
    if isinstance(arguments.get("generation_config"), torch.Tensor):
        raise AdapterError("generate: its second argument is the generation_config. Give attention_mask by its name.")
    inputs = [name for name in ("inputs", "input_ids") if arguments.get(name) is not None]
    if len(inputs) == 2:
        raise AdapterError("generate: both inputs and input_ids are given. Leave one out.")
    if not inputs and any(arguments.get(name) is not None for name in ("inputs_embeds", "encoder_outputs")):
        return arguments
    ids = arguments.pop("inputs", None)
    ids = arguments.pop("input_ids", None) if ids is None else ids
    start = setting(base, arguments, "bos_token_id")
    if ids is None and start is None:
        raise AdapterError("generate: there are no rows. Give input_ids, one row of token ids for each text.")
    ids = torch.tensor([[start]], device=base.device) if ids is None else ids.long()
    mask = arguments.get("attention_mask")
    mask = full_mask(ids, _mask_of_padding(base, ids, arguments) if mask is None else mask)
    lengths = mask.sum(1).tolist()
    if 0 in lengths:
        raise AdapterError(
            f"generate: row {lengths.index(0)} has no token. Give each row at least one, such as the end token."
        )
    return arguments | {"input_ids": ids, "attention_mask": mask}


def _mask_of_padding(base: PreTrainedModel, ids: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    """Return a mask `[B, T]` that hides padding tokens unless they are end tokens; transformers does the same."""
    pad = setting(base, arguments, "pad_token_id")
    ends = setting(base, arguments, "eos_token_id", [])
    if pad is None or pad in torch.as_tensor(ends).reshape(-1).tolist():
        return torch.ones_like(ids)
    return (ids != pad).long()


def check_generate_arguments(base: PreTrainedModel, arguments: dict[str, Any]) -> None:
    """Raise an AdapterError if an argument or a setting of `generate` does not hold behind a causal prompt."""
    name = first_set(base, arguments, (*WITHOUT_PROMPT, *STATES))
    if name is not None:
        origin = "generate" if name in arguments else "the model's generation_config"
        raise AdapterError(f"{origin}: {name} knows nothing of the prompt. Leave it out{_advice(name)}.")
    accepted = vars(GenerationConfig()).keys() | vars(base.generation_config).keys() | FURTHER_ARGUMENTS
    accepted |= inspect.signature(base.generate).parameters.keys() | {"input_ids", "attention_mask"}
    for name in arguments.keys() - accepted:
        if arguments[name] is not None:
            raise AdapterError(f"generate: {name} knows nothing of the prompt. Leave it out{_advice(name)}.")


def first_set(base: PreTrainedModel, arguments: dict[str, Any], names: Sequence[str] = WITHOUT_PROMPT) -> str | None:
    """Return the first of these arguments or settings of `generate` that is set, or None."""
    for name in names:
        value = setting(base, arguments, name)
        # The model's own `cache_implementation` is not meant for a prompt, and is ignored.
        ignored = name == "cache_implementation" and name not in arguments
        neutral = value is None or value is False or (name in NEUTRAL and value == NEUTRAL[name])
        if not neutral and not ignored:
            return name
    return None


def _advice(name: str) -> str:
    """Return what to do instead of giving this argument to `generate`, if there is something."""
    if name == "inputs_embeds":
        return " and give input_ids"
    if name in STATES:
        return " and call the model itself on the ids that generate returns"
    if name == "labels":
        return ", and the answers out of input_ids; PromptTuningTrainer generates from the sources alone"
    if name == "token_healing":
        return " and give the ids that heal_tokens of the base model returns"
    if name == "position_ids":
        return "; a row's positions follow from its attention_mask"
    return ""


def further_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward after `input_ids` and `attention_mask` by name, without those that are None.

    Args:
        function: the base model's forward, whose order the positional ones have.
        args: the positional ones.
        kwargs: the others; the cache may have its old name.

    Raises:
        TypeError: there are too many, or one is given twice.
    """
    if args:
        names = [
            name for name in inspect.signature(function).parameters if name not in ("input_ids", "attention_mask")
        ]
        by_place = dict(zip(names, args, strict=False))
        if len(args) > len(names) or by_place.keys() & kwargs.keys():
            raise TypeError(
                f"forward: {len(args)} further arguments by their place, {', '.join(kwargs)} by their name"
            )
        kwargs = kwargs | by_place
    if kwargs.get("past_key_values") is not None:
        kwargs = kwargs | {"cache": kwargs["past_key_values"], "past_key_values": None}
    return {name: value for name, value in kwargs.items() if value is not None}


def arguments_with_labels(kwargs: dict[str, Any], labels: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of a forward that matter beside labels: no switch that is off, and no cache to be kept.

    Raises:
        AdapterError: one asks for the logits of other positions than the targets, or for rows that are read already;
            or the labels are not `[B, T]` as the mask is.
    """
    if labels.shape != mask.shape:
        raise AdapterError(
            f"labels: their shape is {tuple(labels.shape)}, that of the tokens {tuple(mask.shape)}. Give one for each "
            "token, and none for virtual tokens."
        )
    for name in kwargs.keys() & {"logits_to_keep", "cache"}:
        raise AdapterError(f"forward: {name} given with labels, which give logits of targets only. Leave one out.")
    return {name: value for name, value in kwargs.items() if value is not False and name != "use_cache"}


def forward_rows(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
    """Return the rows of a forward: ids `[B, T]` of type long, or embeddings `[B, T, H]`.

    Raises:
        AdapterError: there are none, or both.
    """
    if (input_ids is None) == (inputs_embeds is None):
        problem = "there are no rows" if input_ids is None else "both input_ids and inputs_embeds are given"
        raise AdapterError(f"forward: {problem}. Give either input_ids or inputs_embeds.")
    return inputs_embeds if input_ids is None else input_ids.long()


def full_mask(rows: torch.Tensor, attention_mask: torch.Tensor | None, past: int = 0) -> torch.Tensor:
    """Return the mask of rows `[B, T]` or `[B, T, H]` behind `past` tokens, `[B, past + T]`, of type long.

    Raises:
        AdapterError: the mask has another shape.
    """
    shape = (len(rows), past + rows.shape[1])
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.long, device=rows.device)
    if tuple(attention_mask.shape) != shape:
        raise AdapterError(
            f"attention_mask: its shape is {tuple(attention_mask.shape)}, that of the tokens {shape}. Give one number "
            "for each token, and none for virtual tokens."
        )
    return (attention_mask != 0).long()


def check_positions(position_ids: torch.Tensor | None, mask: torch.Tensor) -> None:
    """Raise an AdapterError unless positions `[B, T]` are those of the last T tokens by the mask `[B, U]`."""
    if position_ids is None:
        return
    width = position_ids.shape[1]
    implied = (mask.cumsum(1) - 1)[:, -width:]
    if bool(((position_ids != implied) & mask[:, -width:].bool()).any()):
        raise AdapterError(
            "position_ids: a row's tokens count from 0 behind its prompt, as its attention_mask implies. Leave "
            "position_ids out, and give each text a row of its own."
        )
