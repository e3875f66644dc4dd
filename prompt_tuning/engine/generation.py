"""Generation behind a soft prompt, so that a row writes in a batch what it writes alone."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    Cache,
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation import EosTokenCriteria
from transformers.generation.streamers import BaseStreamer

from prompt_tuning.encoding.batching import unpadded
from prompt_tuning.engine.calls import setting
from prompt_tuning.engine.dispatch import get_base, has_prompt
from prompt_tuning.engine.kv_cache import RoomyLayer, caches_of_rows, read_rows
from prompt_tuning.engine.shared_keys import SharedKeys, decoding_cache
from prompt_tuning.engine.stop_texts import HalfFinished, StopTexts
from prompt_tuning.engine.trained_tokens import TrainedTable

# Transformers makes these processors from settings too, unless one of the same class is passed. Placeholder ids do not
# mislead them.
SETTING_PROCESSORS = (
    RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper,
)  # fmt: skip
DEFAULT_NEW_TOKENS = 20  # Transformers has the same default.
# With these settings a row's tokens depend only on that row, so that finished rows can leave the batch.
ROW_WISE = {
    "do_sample", "temperature", "top_k", "top_p", "max_new_tokens", "pad_token_id", "eos_token_id",
    "stopping_criteria", "num_beams", "repetition_penalty", "synced_gpus", "use_cache",
}  # fmt: skip
# These settings look at the ids of a row. Each is given with the value that changes nothing.
READ_IDS = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0,
    "sequence_bias": None, "bad_words_ids": None, "stop_strings": None, "watermarking_config": None,
}  # fmt: skip
# A model's generation_config.json may also hold names of tokens, and limits that are counted here.
WITHOUT_EFFECT_ON_ROWS = {"_from_model_config", "transformers_version", "bos_token_id", "max_length", "use_cache"}


def takes_embeddings(model: PreTrainedModel, kwargs: dict[str, Any]) -> bool:
    """Return whether `generate` takes embeddings, and no setting looks at ids that stand in the row already."""
    if "inputs_embeds" not in inspect.signature(model.prepare_inputs_for_generation).parameters:
        return False
    return all(setting(model, kwargs, name, neutral) == neutral for name, neutral in READ_IDS.items())


def count_new_tokens(model: PreTrainedModel, width: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `generate` with a longest length that counts only new tokens.

    Args:
        model: the base model, whose generation config holds the settings that are not passed.
        width: T, the length of the longest source, which `max_length` counts, too.
        kwargs: the arguments that were passed.

    Raises:
        ValueError: the longest source fills `max_length`.
    """
    new = setting(model, kwargs, "max_new_tokens")
    longest = setting(model, kwargs, "max_length")
    if new is None:
        new = DEFAULT_NEW_TOKENS if longest is None else longest - width
        if new < 1:
            raise ValueError(f"max_length is {longest} and the longest source has {width} tokens; set max_new_tokens")
    return {name: value for name, value in kwargs.items() if name != "max_length"} | {"max_new_tokens": new}


def generate_padded(
    model: PreTrainedModel | PeftModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any
) -> Any:
    """Call `generate` for rows `[B, T]`; without a prompt too, settings that look at ids look at those of a row alone.

    Args:
        model: the model; rows of a causal one are padded on the left.
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`.
        **kwargs: as for `generate`.
    """
    base = get_base(model)
    if not base.config.is_encoder_decoder and not has_prompt(model):
        kwargs = _with_settings_of_ids(base, kwargs, input_ids.shape[1] - attention_mask.sum(1))
    return model.generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def generate_with_cache(
    base: PreTrainedModel,
    caches: Sequence[Cache],
    prompt_index: Sequence[int],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    common_prefix: torch.Tensor,
    packed: bool,
    table: TrainedTable | None = None,
    **kwargs: Any,
) -> Any:
    """Call `generate` for rows behind the keys and values of their prompts.

    Args:
        base: the model without its prompt.
        caches: keys and values of K prompts, one row of P + S positions each.
        prompt_index: for each of the B rows the index of its prompt.
        input_ids: `[B, T]`, padded on the left.
        attention_mask: `[B, T]`.
        common_prefix: `[S]`, the ids that open every row and are in the caches already.
        packed: read several rows as one packed sequence, and a text that opens several rows once; for rows within
            their window.
        table: the trained tokens of the prompts' adapters.
        **kwargs: as for `generate`.

    Returns:
        What `base.generate(input_ids, ...)` returns: `[B, T + new]`, or a dictionary with it.
    """
    num_cached = len(common_prefix)
    # A row's first S tokens are hidden, then S columns that hold nothing else are left out.
    rest = attention_mask * (attention_mask.cumsum(1) > num_cached)
    copies = max(setting(base, kwargs, "num_beams", 1), setting(base, kwargs, "num_return_sequences", 1))
    # Nothing is saved by packing one row, and `generate` reads its last token together with the others.
    if packed and len(input_ids) * copies > 1:
        # `generate` reads the last token itself.
        rows = [row[:-1] for row in unpadded(input_ids, rest)]
        cache, mask = decoding_cache(base, read_rows(base, caches, prompt_index, rows), copies)
        mask = torch.cat([mask, rest[:, -1:]], 1)
    else:
        cache, mask = caches_of_rows(copy.deepcopy(caches), prompt_index)
        mask = torch.cat([mask, rest[:, num_cached:]], 1)
    cache.batch_repeat_interleave(copies)
    cache.layers = [RoomyLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    ordinary = table.ordinary if table is not None else torch.clone
    kwargs = _showing_own_ids(base, kwargs, ordinary(input_ids), mask.shape[1])
    kwargs = _with_settings_of_ids(base, kwargs, mask.shape[1] - attention_mask.sum(1))
    kwargs |= {"use_cache": True, "cache_implementation": None}
    # Ids in the places of prompt and padding are never embedded, but a repetition penalty reads them.
    row_ids = torch.where(attention_mask.bool(), input_ids, input_ids[:, -1:])
    row_ids = row_ids[:, -mask.shape[1] :]  # Further columns are all padding.
    virtual = input_ids[:, -1:].expand(-1, mask.shape[1] - row_ids.shape[1])
    ids = torch.cat([virtual, row_ids], 1)
    reading = nullcontext() if table is None else table.reading(ids)
    with reading, cache.decoding(base) if isinstance(cache, SharedKeys) else nullcontext():
        output = _generate_dropping_finished(base, ordinary(ids), mask, cache, **kwargs)
    return with_sources(output, input_ids, mask.shape[1])


def generate_from_embeddings(
    base: PreTrainedModel,
    prompt: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    **kwargs: Any,
) -> Any:
    """Call `generate` with the padding before the prompt: for sliding windows, in which padding takes places too.

    Args:
        base: the model without its prompt.
        prompt: `[P, H]`.
        input_ids: `[B, T]`, padded on the left.
        attention_mask: `[B, T]`.
        **kwargs: as for `generate`.

    Returns:
        What `base.generate(input_ids, ...)` returns.
    """
    rows = len(input_ids)
    embeds = base.get_input_embeddings()(input_ids)
    joined = torch.cat([prompt.to(embeds.dtype).expand(rows, -1, -1), embeds], 1)
    padding = (attention_mask == 0).sum(1, keepdim=True)
    place = torch.arange(joined.shape[1], device=input_ids.device)[None].expand(rows, -1)
    moved = torch.where(place < padding, place + len(prompt), place - padding)
    order = torch.where(place < padding + len(prompt), moved, place)
    kwargs = _showing_own_ids(base, kwargs, input_ids, 0) | {"use_cache": True}
    output = base.generate(
        inputs_embeds=joined.gather(1, order[..., None].expand(-1, -1, joined.shape[2])),
        attention_mask=(place >= padding).long(),
        **kwargs,
    )
    return with_sources(output, input_ids, 0)


def with_sources(output: Any, sources: torch.Tensor, width: int) -> Any:
    """Return the output of `generate` with its sources `[B, T]` instead of its first `width` columns.

    A dictionary loses its cache, which holds the prompt and the rows' padding in another order than the rows.
    """
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    sources = sources.repeat_interleave(len(sequences) // len(sources), 0)
    joined = torch.cat([sources, sequences[:, width:]], 1)
    if isinstance(output, torch.Tensor):
        return joined
    return type(output)(**dict(output) | {"sequences": joined, "cache": None})


def _showing_own_ids(
    base: PreTrainedModel, kwargs: dict[str, Any], sources: torch.Tensor, width: int
) -> dict[str, Any]:
    """Return the arguments of `generate` such that a user's code sees the ids of its rows, without placeholders.

    Args:
        base: the model without its prompt.
        kwargs: the arguments that were passed.
        sources: `[B, T]`, padded on the left.
        width: how many columns stand instead of them, prompt and padding included.
    """
    replace = functools.partial(with_sources, sources=sources, width=width)
    shown: dict[str, Any] = {}
    processors = kwargs.get("logits_processor")
    if processors:
        shown["logits_processor"] = LogitsProcessorList(
            [item if type(item) in SETTING_PROCESSORS else OwnIdsProcessor(item, replace) for item in processors]
        )
    criteria = [*(kwargs.get("stopping_criteria") or [])]
    texts = setting(base, kwargs, "stop_strings")
    if texts and kwargs.get("tokenizer") is not None:  # `generate` itself asks for the tokenizer.
        criteria.append(StopStringCriteria(kwargs["tokenizer"], texts))
        shown["stop_strings"] = None
    if criteria:
        shown["stopping_criteria"] = StoppingCriteriaList(
            [item if isinstance(item, StopTexts) else OwnIdsCriterion(item, replace) for item in criteria]
        )
    allowed = kwargs.get("prefix_allowed_tokens_fn")
    if allowed:
        shown["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(row, torch.cat([sources[row], ids[width:]]))
    streamer = kwargs.get("streamer")
    if streamer:
        shown["streamer"] = OwnIdsStreamer(streamer, sources)
    return kwargs | shown


class OwnIdsProcessor(LogitsProcessor):
    """A user's logits processor, called with the ids of the rows instead of placeholders."""

    def __init__(self, processor: LogitsProcessor, replace: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Wrap a processor; `replace` puts the sources `[B, T]` where placeholders stand."""
        self.processor = processor
        self.replace = replace

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the processed scores `[B, V]`."""
        return self.processor(self.replace(input_ids), scores)


class OwnIdsCriterion(StoppingCriteria):
    """A user's stopping criterion, called with the ids of the rows instead of placeholders."""

    def __init__(self, criterion: StoppingCriteria, replace: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Wrap a criterion; `replace` puts the sources `[B, T]` where placeholders stand."""
        self.criterion = criterion
        self.replace = replace

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return for each row `[B]` whether it ends."""
        return self.criterion(self.replace(input_ids), scores, **kwargs)


class OwnIdsStreamer(BaseStreamer):
    """A user's streamer that gets the source of the row first, without placeholders."""

    def __init__(self, streamer: BaseStreamer, sources: torch.Tensor) -> None:
        """Wrap a streamer of the rows with these sources `[B, T]`."""
        self.streamer = streamer
        self.waiting = [sources.cpu()]

    def put(self, value: torch.Tensor) -> None:
        """Pass on new ids; the first value that `generate` puts is the source with placeholders."""
        self.streamer.put(self.waiting.pop() if self.waiting else value)

    def end(self) -> None:
        """Pass on the end."""
        self.streamer.end()


class RowProcessor(LogitsProcessor):
    """A processor that is called with each row's own ids, without placeholders of prompt and padding."""

    def __init__(self, processor: LogitsProcessor, starts: Sequence[int]) -> None:
        """Wrap a processor; for each row give the place of its first id."""
        self.processor = processor
        self.starts = starts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the processed scores `[B * beams, V]`."""
        beams = len(input_ids) // len(self.starts)
        rows = []
        for number in range(len(input_ids)):
            ids = input_ids[number : number + 1, self.starts[number // beams] :]
            rows.append(self.processor(ids, scores[number : number + 1]))
        return torch.cat(rows)


def _with_settings_of_ids(base: PreTrainedModel, kwargs: dict[str, Any], starts: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of `generate` with processors of rows instead of settings that look at ids.

    Args:
        base: the model without its prompt.
        kwargs: the arguments that were passed.
        starts: `[B]`, the place of each row's first id.
    """
    processors: list[LogitsProcessor] = []
    neutral: dict[str, Any] = {}
    ends = setting(base, kwargs, "eos_token_id")
    size = setting(base, kwargs, "no_repeat_ngram_size")
    if size:
        neutral["no_repeat_ngram_size"] = 0
        processors.append(NoRepeatNGramLogitsProcessor(size))
    bias = setting(base, kwargs, "sequence_bias")
    if bias:
        neutral["sequence_bias"] = None
        processors.append(SequenceBiasLogitsProcessor(bias))
    words = setting(base, kwargs, "bad_words_ids")
    if words:
        neutral["bad_words_ids"] = None
        processors.append(NoBadWordsLogitsProcessor(words, ends))
    length = setting(base, kwargs, "min_length")
    if length:
        neutral["min_length"] = 0
        # In transformers, too, the fewest new tokens take precedence.
        if ends is not None and setting(base, kwargs, "min_new_tokens") is None:
            processors.append(MinLengthLogitsProcessor(length, ends, device=base.device))
    if not neutral:
        return kwargs
    of_rows = [RowProcessor(processor, starts.tolist()) for processor in processors]
    shown = LogitsProcessorList([*of_rows, *(kwargs.get("logits_processor") or [])])
    return kwargs | neutral | {"logits_processor": shown}


def _generate_dropping_finished(
    base: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, cache: Cache, **kwargs: Any
) -> Any:
    """Call `base.generate`; if no other row changes by it, ended rows leave the batch whenever half have ended."""
    arguments = {"attention_mask": attention_mask, "cache": cache} | kwargs
    longest = kwargs.get("max_new_tokens")
    pad = setting(base, kwargs, "pad_token_id")
    config = base.generation_config.to_diff_dict()
    configured = {name for name, value in config.items() if value not in (None, False, 0)} - WITHOUT_EFFECT_ON_ROWS
    passed = {name for name, value in kwargs.items() if value is not None}
    row_wise = (
        passed | configured <= ROW_WISE
        and setting(base, kwargs, "num_beams", 1) == 1
        # Other criteria may count rows, whose numbers change as soon as some have left.
        and all(isinstance(criterion, StopTexts) for criterion in kwargs.get("stopping_criteria") or ())
    )
    if not (row_wise and longest) or pad is None:
        return base.generate(input_ids=input_ids, **arguments)
    eos = setting(base, kwargs, "eos_token_id")
    criteria = StoppingCriteriaList([] if eos is None else [EosTokenCriteria(eos)])
    criteria.extend(kwargs.get("stopping_criteria") or [])
    end = input_ids.shape[1] + longest
    sequences = input_ids.new_full((len(input_ids), end), pad)
    alive = torch.arange(len(input_ids), device=input_ids.device)
    while True:
        half = HalfFinished(criteria)
        arguments |= {"stopping_criteria": StoppingCriteriaList([half]), "max_new_tokens": end - input_ids.shape[1]}
        output = base.generate(input_ids=input_ids, return_dict_in_generate=True, **arguments)
        written = output.sequences
        sequences[alive, : written.shape[1]] = written
        unfinished = (~half.finished).nonzero()[:, 0]
        if written.shape[1] == end or not len(unfinished):
            return sequences[:, : written.shape[1]]
        grown = attention_mask.new_ones(len(written), written.shape[1] - attention_mask.shape[1])
        attention_mask = torch.cat([attention_mask, grown], 1)[unfinished]
        alive = alive[unfinished]
        input_ids = written[unfinished]
        for criterion in kwargs.get("stopping_criteria") or ():
            criterion.keep(unfinished.tolist())
        output.cache.batch_select_indices(unfinished)
        arguments |= {"attention_mask": attention_mask, "cache": output.cache}
