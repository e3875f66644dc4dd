"""PEFT's own `generate`, where the engine has no exact way of its own: right for one unpadded row at a time."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput

from prompt_tuning.engine.calls import setting
from prompt_tuning.engine.dispatch import is_stateful
from prompt_tuning.engine.generation import with_sources
from prompt_tuning.engine.stop_texts import StopTexts
from prompt_tuning.errors import AdapterError

ONE_AT_A_TIME = "Rows of this model are generated one at a time. Call generate for each."


@contextmanager
def peft_warnings_ignored() -> Iterator[None]:
    """Ignore within the context what PEFT's forward and `generate` warn of, and what does no harm here."""
    with warnings.catch_warnings():
        # PEFT 0.21.2 uses the name that transformers 5.24 has replaced by `cache`.
        warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
        # Rows are unpadded, so the positions that PEFT falls back to are the true ones.
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
        yield


def prepare_under_old_name(prepare: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return a step's inputs from `prepare`, with the cache under the name `past_key_values` that PEFT looks up."""
    inputs = prepare(*args, **kwargs)
    if "cache" in inputs:
        inputs["past_key_values"] = inputs.pop("cache")
    return inputs


def generate_row_by_row(
    generate_row: Callable[..., Any],
    base: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    **kwargs: Any,
) -> Any:
    """Generate each row alone and without its padding, which PEFT gets right.

    Args:
        generate_row: called with the row's number and the arguments of `generate` for it.
        base: the model without its prompt.
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`.
        **kwargs: as for `generate`.

    Returns:
        What `generate` returns.

    Raises:
        AdapterError: of several rows scores are asked for, a streamer is given, or an object that cannot be copied.
    """
    num_rows = len(input_ids)
    if num_rows > 1:
        _check_several_rows(base, kwargs)
    # PEFT looks for a cache of keys. Without one it puts an embedded prompt before each new token, which is right
    # for a recurrent state that is not kept, and fails for a prefix.
    kwargs["use_cache"] = not is_stateful(base)
    allowed = kwargs.pop("prefix_allowed_tokens_fn", None)
    written: list[torch.Tensor] = []
    for number, (ids, mask) in enumerate(zip(input_ids, attention_mask.bool(), strict=True)):
        row = ids[mask][None]
        settings = dict(kwargs) if num_rows == 1 else kwargs | _own_copies(kwargs, number)
        if allowed:
            settings["prefix_allowed_tokens_fn"] = functools.partial(_allowed_in_row, allowed, number)
        with peft_warnings_ignored():
            output = generate_row(number, input_ids=row, attention_mask=row.new_ones(row.shape), **settings)
        if num_rows == 1:
            return with_sources(output, input_ids, row.shape[1])
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        written += [sequence[row.shape[1] :] for sequence in sequences]
    pad = setting(base, kwargs, "pad_token_id", 0)
    new = torch.nn.utils.rnn.pad_sequence(written, batch_first=True, padding_value=pad)
    joined = with_sources(new, input_ids, 0)
    as_dictionary = setting(base, kwargs, "return_dict_in_generate")
    return GenerateDecoderOnlyOutput(sequences=joined) if as_dictionary else joined


def _check_several_rows(base: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    """Raise an AdapterError if `generate` is asked for what only a batch or a single row has."""
    scores = setting(base, kwargs, "output_scores") or setting(base, kwargs, "output_logits")
    if setting(base, kwargs, "return_dict_in_generate") and scores:
        raise AdapterError(f"generate: scores cannot be returned for several rows. {ONE_AT_A_TIME}")
    if kwargs.get("streamer") is not None:
        raise AdapterError(f"generate: a streamer cannot be told several rows apart. {ONE_AT_A_TIME}")


def _own_copies(kwargs: dict[str, Any], row: int) -> dict[str, Any]:
    """Return copies of a user's processors and criteria for one row, since they may remember what they have seen."""
    copies: dict[str, Any] = {}
    for name, make_list in (("logits_processor", LogitsProcessorList), ("stopping_criteria", StoppingCriteriaList)):
        if kwargs.get(name):
            copies[name] = make_list([_copy(item, row) for item in kwargs[name]])
    return copies


def _copy(item: Any, row: int) -> Any:
    if isinstance(item, StopTexts):  # It holds a tokenizer.
        copied = copy.copy(item)
        copied.keep([row])
        return copied
    try:
        return copy.deepcopy(item)
    except Exception as error:
        raise AdapterError(
            f"generate: {type(item).__name__} cannot be copied for each row ({error}). {ONE_AT_A_TIME}"
        ) from error


def _allowed_in_row(
    allowed: Callable[[int, torch.Tensor], list[int]], number: int, _: int, ids: torch.Tensor
) -> list[int]:
    return allowed(number, ids)
