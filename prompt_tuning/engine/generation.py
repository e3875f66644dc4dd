"""Generation behind a soft prompt, so that a row of a batch is given what it is given alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    Cache,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation import EosTokenCriteria
from transformers.generation.streamers import BaseStreamer

from prompt_tuning.engine.kv_cache import RoomyLayer, cache_of_rows, join_caches
from prompt_tuning.engine.stop_texts import StopTexts
from prompt_tuning.errors import RecipeError

# Processors that transformers makes of settings too, unless it is given one of this very class, and that placeholder
# ids do not mislead.
OF_SETTINGS = (
    RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper,
)  # fmt: skip
DEFAULT_NEW_TOKENS = 20  # as in transformers
# Settings under which a row's tokens depend on that row alone, so that finished rows can leave the batch.
ROW_WISE = {
    "do_sample", "temperature", "top_k", "top_p", "max_new_tokens", "pad_token_id", "eos_token_id",
    "stopping_criteria", "num_beams", "repetition_penalty", "synced_gpus", "use_cache",
}  # fmt: skip
# What brings a cache of its own, in which no prompt stands.
CACHES_OF_THEIR_OWN = (
    "cache",
    "past_key_values",
    "cache_implementation",
    "assistant_model",
    "prompt_lookup_num_tokens",
)
# What a model's generation_config.json may hold beside them: names of tokens, and what new tokens are counted by here.
WITHOUT_EFFECT_ON_ROWS = {"_from_model_config", "transformers_version", "bos_token_id", "max_length", "use_cache"}


def setting(model: PreTrainedModel, kwargs: dict[str, Any], name: str, default: Any = None) -> Any:
    """What `generate` will go by: an argument, else the generation config."""
    if name in kwargs:
        return kwargs[name] if kwargs[name] is not None else default
    # What a config that was passed leaves open, the model's own decides.
    for config in (kwargs.get("generation_config"), model.generation_config):
        if (value := getattr(config, name, None)) is not None:
            return value
    return default


def uses_own_cache(model: PreTrainedModel, kwargs: dict[str, Any]) -> str | None:
    """The first of these arguments that brings a cache of its own, or None."""
    asked = [name for name in CACHES_OF_THEIR_OWN if setting(model, kwargs, name) is not None]
    # What a model's own configuration says of a cache is of no prompt's.
    return next((name for name in asked if name != "cache_implementation" or name in kwargs), None)


def check_one_sequence(model: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    """Raise a RecipeError where `generate` would return several texts for a row."""
    if (several := setting(model, kwargs, "num_return_sequences", 1)) > 1:
        raise RecipeError(f"num_return_sequences is {several}, and a row has one prediction; leave it out")


def count_new_tokens(model: PreTrainedModel, width: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` with `max_length` and `min_length`, which count source tokens, told in new ones."""
    new, longest = setting(model, kwargs, "max_new_tokens"), setting(model, kwargs, "max_length")
    if new is None:
        new = DEFAULT_NEW_TOKENS if longest is None else longest - width
        if new < 1:
            raise ValueError(f"max_length is {longest} and the longest source has {width} tokens; set max_new_tokens")
    told = {name: value for name, value in kwargs.items() if name != "max_length"} | {"max_new_tokens": new}
    if shortest := setting(model, kwargs, "min_length", 0):
        fewest = max(setting(model, kwargs, "min_new_tokens", 0), shortest - width, 0)
        told |= {"min_length": 0, "min_new_tokens": fewest}
    return told


def generate_with_cache(
    base: PreTrainedModel,
    caches: Sequence[Cache],
    owners: Sequence[int],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    opening: torch.Tensor,
    packed: bool,
    **kwargs: Any,
) -> Any:
    """`generate` of rows whose prompts' keys and values are known.

    Args:
        caches: K prompts' keys and values, one row of P + S positions each.
        owners: for each of the B rows the number of its prompt.
        input_ids: `[B, T]`, padded on the left.
        attention_mask: `[B, T]`.
        opening: `[S]`, the ids that open every row and are in the cache already.
        packed: read the rows as one packed sequence, and once what several open with; for rows within their window.

    Returns:
        As `base.generate(input_ids, ...)`.
    """
    shared = len(opening)
    # A row's first S tokens are hidden, then S columns that hold nothing else are left out.
    rest = attention_mask * (attention_mask.cumsum(1) > shared)
    if packed:
        # `generate` reads the last token itself.
        rows = [ids[own.bool()][:-1].tolist() for ids, own in zip(input_ids, rest, strict=True)]
        cache, mask = cache_of_rows(base, caches, owners, rows)
        mask = torch.cat([mask, rest[:, -1:]], 1)
    else:
        cache, mask = join_caches(copy.deepcopy(caches))
        rows = torch.tensor(owners, device=input_ids.device)
        cache.batch_select_indices(rows)
        mask = torch.cat([mask[rows], rest[:, shared:]], 1)
    copies = max(setting(base, kwargs, "num_beams", 1), setting(base, kwargs, "num_return_sequences", 1))
    cache.batch_repeat_interleave(copies)
    cache.layers = [RoomyLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    kwargs = _showing_own_ids(kwargs, input_ids, mask.shape[1])
    kwargs |= {"use_cache": True, "cache_implementation": None}
    if size := setting(base, kwargs, "no_repeat_ngram_size"):
        starts = mask.shape[1] - attention_mask.sum(1)
        processors = [*(kwargs.get("logits_processor") or []), NoRepeatedNGram(size, starts.tolist())]
        kwargs |= {"no_repeat_ngram_size": 0, "logits_processor": LogitsProcessorList(processors)}
    # Ids in the places of prompt and padding are never embedded, but a repetition penalty reads them.
    own = torch.where(attention_mask.bool(), input_ids, input_ids[:, -1:])[:, -mask.shape[1] :]  # wider is padding
    virtual = input_ids[:, -1:].expand(-1, mask.shape[1] - own.shape[1])
    output = _generate_dropping_finished(base, torch.cat([virtual, own], 1), mask, cache, **kwargs)
    return with_sources(output, input_ids, mask.shape[1])


def generate_from_embeddings(
    base: PreTrainedModel,
    prompt: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    **kwargs: Any,
) -> Any:
    """`generate` with the padding before the prompt: for sliding windows, in which padding takes places too.

    Args:
        prompt: `[P, H]`.
        input_ids: `[B, T]`, padded on the left.
        attention_mask: `[B, T]`.
    """
    rows = len(input_ids)
    embeds = base.get_input_embeddings()(input_ids)
    joined = torch.cat([prompt.to(embeds.dtype).expand(rows, -1, -1), embeds], 1)
    padding = (attention_mask == 0).sum(1, keepdim=True)
    place = torch.arange(joined.shape[1], device=input_ids.device)[None].expand(rows, -1)
    moved = torch.where(place < padding, place + len(prompt), place - padding)
    order = torch.where(place < padding + len(prompt), moved, place)
    kwargs = _showing_own_ids(kwargs, input_ids, 0) | {"use_cache": True}
    output = base.generate(
        inputs_embeds=joined.gather(1, order[..., None].expand(-1, -1, joined.shape[2])),
        attention_mask=(place >= padding).long(),
        **kwargs,
    )
    return with_sources(output, input_ids, 0)


def with_sources(output: Any, sources: torch.Tensor, width: int) -> Any:
    """What `generate` returned, a tensor or more, with its sources `[B, T]` in place of its first `width` columns."""
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    sources = sources.repeat_interleave(len(sequences) // len(sources), 0)
    joined = torch.cat([sources, sequences[:, width:]], 1)
    if isinstance(output, torch.Tensor):
        return joined
    output.sequences = joined
    return output


def _showing_own_ids(kwargs: dict[str, Any], sources: torch.Tensor, width: int) -> dict[str, Any]:
    """Arguments of `generate` of which somebody's own code is shown rows' own ids, padded on the left, and no others.

    Args:
        sources: `[B, T]`.
        width: of the columns that stand in their place, prompt and padding among them.
    """
    own = functools.partial(with_sources, sources=sources, width=width)
    told: dict[str, Any] = {}
    if processors := kwargs.get("logits_processor"):
        told["logits_processor"] = LogitsProcessorList(
            [each if type(each) in OF_SETTINGS else OwnIdsProcessor(each, own) for each in processors]
        )
    if criteria := kwargs.get("stopping_criteria"):
        told["stopping_criteria"] = StoppingCriteriaList(
            [each if isinstance(each, StopTexts) else OwnIdsCriterion(each, own) for each in criteria]
        )
    if allowed := kwargs.get("prefix_allowed_tokens_fn"):
        told["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(row, torch.cat([sources[row], ids[width:]]))
    if streamer := kwargs.get("streamer"):
        told["streamer"] = OwnIdsStreamer(streamer, sources)
    return kwargs | told


class OwnIdsProcessor(LogitsProcessor):
    def __init__(self, processor: LogitsProcessor, own: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.processor, self.own = processor, own

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.processor(self.own(input_ids), scores)


class OwnIdsCriterion(StoppingCriteria):
    def __init__(self, criterion: StoppingCriteria, own: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.criterion, self.own = criterion, own

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self.criterion(self.own(input_ids), scores, **kwargs)


class OwnIdsStreamer(BaseStreamer):
    def __init__(self, streamer: BaseStreamer, sources: torch.Tensor) -> None:
        self.streamer, self.waiting = streamer, [sources.cpu()]

    def put(self, value: torch.Tensor) -> None:
        self.streamer.put(self.waiting.pop() if self.waiting else value)  # the first is what was given

    def end(self) -> None:
        self.streamer.end()


class NoRepeatedNGram(NoRepeatNGramLogitsProcessor):
    """Counts the n-grams of each row's own ids, and none of what stands in the places of prompt and padding.

    Args:
        ngram_size: n.
        starts: for each row the place of its first own id.
    """

    def __init__(self, ngram_size: int, starts: Sequence[int]) -> None:
        super().__init__(ngram_size)
        self.starts = starts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        copies, rows = len(input_ids) // len(self.starts), []  # of a row its beams
        for number in range(len(input_ids)):
            own = input_ids[number : number + 1, self.starts[number // copies] :]
            rows.append(super().__call__(own, scores[number : number + 1]))
        return torch.cat(rows)


class HalfFinished(StoppingCriteria):
    """Ends a batch once half of its rows have ended, and remembers which."""

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        self.criteria = criteria
        self.finished: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        ended = self.criteria(input_ids, scores, **kwargs)
        self.finished = ended if self.finished is None else self.finished | ended
        if int((~self.finished).sum()) <= len(ended) // 2:
            return torch.ones_like(ended)
        return ended


def _generate_dropping_finished(
    base: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, cache: Cache, **kwargs: Any
) -> Any:
    """`base.generate`, where rows that have ended leave the batch whenever half have, if that changes nothing."""
    given = {"attention_mask": attention_mask, "cache": cache} | kwargs
    longest, pad = kwargs.get("max_new_tokens"), setting(base, kwargs, "pad_token_id")
    config = base.generation_config.to_diff_dict()
    others = {name for name, value in config.items() if value not in (None, False, 0)} - WITHOUT_EFFECT_ON_ROWS
    row_wise = (
        ({name for name, value in kwargs.items() if value is not None} | others) <= ROW_WISE
        and setting(base, kwargs, "num_beams", 1) == 1
        # Others may count rows, which have other numbers once some have left.
        and all(isinstance(each, StopTexts) for each in kwargs.get("stopping_criteria") or ())
    )
    if not (row_wise and longest) or pad is None:
        return base.generate(input_ids=input_ids, **given)
    eos = setting(base, kwargs, "eos_token_id")
    criteria = StoppingCriteriaList([] if eos is None else [EosTokenCriteria(eos)])
    criteria.extend(kwargs.get("stopping_criteria") or [])
    end = input_ids.shape[1] + longest
    sequences = input_ids.new_full((len(input_ids), end), pad)
    alive = torch.arange(len(input_ids), device=input_ids.device)
    while True:
        half = HalfFinished(criteria)
        given |= {"stopping_criteria": StoppingCriteriaList([half]), "max_new_tokens": end - input_ids.shape[1]}
        output = base.generate(input_ids=input_ids, return_dict_in_generate=True, **given)
        written = output.sequences
        sequences[alive, : written.shape[1]] = written
        going = (~half.finished).nonzero()[:, 0]
        if written.shape[1] == end or not len(going):
            return sequences[:, : written.shape[1]]
        grown = attention_mask.new_ones(len(written), written.shape[1] - attention_mask.shape[1])
        attention_mask = torch.cat([attention_mask, grown], 1)[going]
        alive, input_ids = alive[going], written[going]
        output.cache.batch_select_indices(going)
        given |= {"attention_mask": attention_mask, "cache": output.cache}
