"""Closed questions: the choice of a row that is the likeliest after its source.

A choice's log-likelihood is the sum over its own tokens. The end after it does not count, as in
lm-evaluation-harness: a model that was not tuned ends its answers in other ways. So of two choices that begin alike
the shorter is never less likely, unless the scores are normalised.

A row's source is read once. All choices follow its keys and values as one packed sequence. It starts with the
source's last token, which predicts the first token of each choice. Choices that differ only in their last token, such
as `yes` and `no`, are read as one. An encoder-decoder reads its source once, too. Models whose rows cannot be packed
read each choice with its source, padded on the right, which changes nothing in a causal model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import batches_within, common_prefix, source_length
from prompt_tuning.encoding.target_language import target_language
from prompt_tuning.engine.attention import ATTENTION
from prompt_tuning.engine.dispatch import get_base, has_prompt, packing_obstacle, within_window
from prompt_tuning.engine.kv_cache import chunks, common_prefix_cache, read_rows, run_packed
from prompt_tuning.engine.padded_segments import to_device
from prompt_tuning.engine.prompt_adapters import PromptAdapters
from prompt_tuning.engine.row_layout import RowLayout
from prompt_tuning.engine.row_tree import length_order
from prompt_tuning.engine.shared_prefix import SharedPrefixModel, compute_prompt_once

Normalization = Literal["none", "tokens", "characters", "bytes", "unconditional"]

ROWS_AT_ONCE, TOKENS_AT_ONCE = 128, 8192
LOGITS_AT_ONCE = 1024  # Each of these tokens has the logits of a whole vocabulary.


class ContinuationGroup(NamedTuple):
    """The continuations of a row that differ only in their last token: its number, theirs, and one of them."""

    row: int
    numbers: list[int]
    tokens: Sequence[int]


def choose(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    texts: Sequence[Sequence[str]],
    ids: Sequence[Sequence[Sequence[int]]],
    *,
    normalization: Normalization = "none",
) -> list[int]:
    """Return for each row the number of the choice with the highest score; of equal ones the first."""
    scores = choice_scores(model, tokenizer, sources, texts, ids, normalization=normalization)
    return [max(range(len(of_row)), key=of_row.__getitem__) for of_row in scores]


def choice_scores(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    texts: Sequence[Sequence[str]],
    ids: Sequence[Sequence[Sequence[int]]],
    *,
    normalization: Normalization = "none",
) -> list[list[float]]:
    """Return the normalised log-likelihood of each choice of each row.

    Args:
        model: in eval mode.
        tokenizer: the model's, for the ids that start a decoder or a sequence.
        sources: token ids of each row's source.
        texts: each row's choices.
        ids: their token ids, as they follow the source.
        normalization: `none`, the sum over the choice's tokens; `tokens`, `characters`, `bytes`, the sum divided by
            how many the choice has; `unconditional`, less the same sum behind the prompt and a beginning-of-sequence
            token (else the end's) in the source's place.
    """
    start = target_language(tokenizer).get("decoder_start_token_id")
    likelihoods = log_likelihoods(model, sources, ids, start)
    if normalization == "none":
        return likelihoods
    scores = []
    if normalization == "unconditional":
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        choices = list(dict.fromkeys(map(tuple, chain.from_iterable(ids))))
        alone = dict(zip(choices, log_likelihoods(model, [[first]], [choices], start)[0], strict=True))
        for row, row_ids in zip(likelihoods, ids, strict=True):
            scores.append([score - alone[tuple(choice)] for score, choice in zip(row, row_ids, strict=True)])
        return scores
    for row, row_texts, row_ids in zip(likelihoods, texts, ids, strict=True):
        sizes = choice_sizes(row_texts, row_ids, normalization)
        scores.append([score / size for score, size in zip(row, sizes, strict=True)])
    return scores


def choice_sizes(texts: Sequence[str], ids: Sequence[Sequence[int]], normalization: Normalization) -> list[int]:
    """Return by how much the log-likelihood of each choice of a row is divided; 1 if nothing is."""
    if normalization == "tokens":
        return list(map(len, ids))
    if normalization == "characters":
        return list(map(len, texts))
    if normalization == "bytes":
        return [len(text.encode()) for text in texts]
    return [1] * len(ids)


def target_log_likelihoods(
    model: PreTrainedModel | PeftModel,
    rows: Dataset,
    start: int | None = None,
    max_rows: int = ROWS_AT_ONCE,
    max_tokens: int = TOKENS_AT_ONCE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-likelihood of each encoded row's target given its source, its end included.

    Args:
        model: in eval mode.
        rows: as `encode` makes, causal or encoder-decoder as the model is.
        start: as for `log_likelihoods`.
        max_rows: the most rows of a batch.
        max_tokens: the most tokens of a batch, padding included.

    Returns:
        `[rows]` sums, and `[rows]` how many tokens each sums over.
    """
    causal = not model.config.is_encoder_decoder
    labels = list(rows["labels"])
    targets = [[label for label in row if label != -100] for row in labels]
    sources = [
        ids[: source_length(row)] if causal else ids for ids, row in zip(rows["input_ids"], labels, strict=True)
    ]
    order = length_order(sources, share=causal)
    places = [len(sources[number]) + len(targets[number]) for number in order]
    sums = torch.zeros(len(targets))
    with compute_prompt_once(model, common_prefix(rows) if causal else ()):
        for batch in batches_within(places, max_rows, max_tokens):
            numbers = [order[place] for place in batch]
            batch_targets = [[targets[number]] for number in numbers]
            likelihoods = log_likelihoods(model, [sources[number] for number in numbers], batch_targets, start)
            sums[numbers] = torch.tensor(likelihoods)[:, 0]
    return sums, torch.tensor(list(map(len, targets)))


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel | PeftModel,
    sources: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    start: int | None = None,
) -> list[list[float]]:
    """Return the log-likelihood of each continuation after its row's source, behind the model's prompt if any.

    Args:
        model: in eval mode.
        sources: token ids of each row's source, at least one.
        continuations: for each row the token ids of its continuations, at least one token each.
        start: the first token of a decoder, such as the target language of mBART; by default the token that its model
            puts before labels.
    """
    groups = []
    for row, of_row in enumerate(continuations):
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, tokens in enumerate(of_row):
            alike.setdefault(tuple(tokens[:-1]), []).append(number)
        groups += [ContinuationGroup(row, numbers, of_row[numbers[0]]) for numbers in alike.values()]
    targets = []
    for row, numbers, _ in groups:
        targets.append(torch.tensor([continuations[row][number] for number in numbers]))
    # All targets are copied together, so that Python does not wait for the device at each group.
    copied = to_device(get_base(model).device, *(tensor.flatten() for tensor in targets))
    sums = []
    with ExitStack() as stack:
        if isinstance(model, SharedPrefixModel):
            stack.enter_context(model.eagerly())
        if isinstance(model, PromptAdapters):
            stack.enter_context(model.trained_tokens())
        for target, flat, logits in zip(targets, copied, _logits(model, sources, groups, start), strict=True):
            of_group = flat.view(target.shape).to(logits.device)
            places = torch.arange(target.shape[1], device=logits.device)
            sums.append(logits.float().log_softmax(-1)[places, of_group].sum(1))
    summed = iter(torch.cat(sums).tolist())
    scores = [[0.0] * len(of_row) for of_row in continuations]
    for row, numbers, _ in groups:
        for number in numbers:
            scores[row][number] = next(summed)
    return scores


def _logits(
    model: PreTrainedModel | PeftModel,
    sources: Sequence[Sequence[int]],
    groups: Sequence[ContinuationGroup],
    start: int | None,
) -> Iterator[torch.Tensor]:
    """Return for each group the logits `[L, V]` that predict its L tokens."""
    base = get_base(model)
    if base.config.is_encoder_decoder:
        return _decoder_logits(model, base, sources, groups, start)
    reach = max(len(sources[group.row]) + len(group.tokens) for group in groups)
    prompted = has_prompt(model)
    if isinstance(model, SharedPrefixModel):
        packed = model.packed_caches(sources, reach)
        if packed is not None:
            return _packed_logits(base, *packed, sources, groups)
        prompted = not model.disabled
    if prompted or packing_obstacle(base) or not within_window(base, reach):
        return _padded_logits(model, sources, groups)
    base.set_attn_implementation(ATTENTION)
    return _packed_logits(base, [common_prefix_cache(base, [])], 0, sources, groups)


def _packed_logits(
    base: PreTrainedModel,
    caches: Sequence[Cache],
    num_cached: int,
    sources: Sequence[Sequence[int]],
    groups: Sequence[ContinuationGroup],
) -> Iterator[torch.Tensor]:
    """Yield what `_logits` does, by packed rows behind a cache with the first `num_cached` ids of each source."""
    # The last token of a source predicts the first one of each of its continuations, so it stands before them all.
    rows = [list(source[num_cached:-1]) for source in sources]
    read = read_rows(base, caches, [0] * len(rows), rows)
    lengths = [len(group.tokens) for group in groups]
    for chunk in chunks(range(len(groups)), lengths, LOGITS_AT_ONCE):
        ids = []
        for number in chunk:
            row, _, tokens = groups[number]
            ids.append([sources[row][-1], *tokens[:-1]])
        parents = tuple(read.segments[groups[number].row] for number in chunk)
        layout = RowLayout(rows=tuple(map(len, ids)), parents=parents, before=read.tree)
        yield from run_packed(base, ids, layout).logits[0].split(list(layout.rows))


def _padded_logits(
    model: PreTrainedModel | PeftModel, sources: Sequence[Sequence[int]], groups: Sequence[ContinuationGroup]
) -> Iterator[torch.Tensor]:
    """Yield what `_logits` does, by rows of source and continuation, padded on the right."""
    rows = [torch.tensor([*sources[row], *tokens], device=model.device) for row, _, tokens in groups]
    for batch in batches_within(list(map(len, rows)), ROWS_AT_ONCE, LOGITS_AT_ONCE):
        lengths = [len(groups[number].tokens) for number in batch]
        input_ids = pad_sequence([rows[number] for number in batch], batch_first=True)
        mask = pad_sequence([torch.ones_like(rows[number]) for number in batch], batch_first=True)
        if isinstance(model, SharedPrefixModel) and not model.disabled:
            starts = torch.tensor([len(rows[n]) - length for n, length in zip(batch, lengths, strict=True)])
            of_source = torch.arange(input_ids.shape[1], device=model.device) < starts.to(model.device)[:, None]
            labels = input_ids.masked_fill(of_source | (mask == 0), -100)
            yield from model(input_ids=input_ids, attention_mask=mask, labels=labels).logits.split(lengths)
            continue
        logits = model(input_ids=input_ids, attention_mask=mask).logits[:, -input_ids.shape[1] :]
        for place, (number, length) in enumerate(zip(batch, lengths, strict=True)):
            end = len(rows[number]) - 1
            yield logits[place, end - length : end]


def _decoder_logits(
    model: PreTrainedModel | PeftModel,
    base: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    groups: Sequence[ContinuationGroup],
    start: int | None,
) -> Iterator[torch.Tensor]:
    """Yield what `_logits` does, by a decoder whose encoder reads each source once."""
    device = base.device
    # Some models put a token from their settings before labels, others the last label itself.
    ends = base.config.eos_token_id
    last = start if start is not None else ends[0] if isinstance(ends, list) else ends
    last = torch.tensor([[last]], device=device)
    # M2M100, NLLB and Blenderbot only do so within their forward.
    prepare = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    opened = prepare(last) if prepare else torch.full_like(last, base.config.decoder_start_token_id)
    rows = [torch.tensor(source, device=device) for source in sources]
    input_ids = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    first = model(
        input_ids=input_ids, attention_mask=mask, decoder_input_ids=opened.expand(len(rows), 1), use_cache=False
    )
    states = first.encoder_last_hidden_state
    # The encoder has read a soft prompt, too, which is never masked.
    mask = F.pad(mask, (states.shape[1] - mask.shape[1], 0), value=1)
    prefixed = isinstance(model, PeftModel) and find_method(model.active_peft_config.peft_type).trains_keys_and_values
    decode = model if prefixed else base
    places = [states.shape[1] + len(group.tokens) for group in groups]
    for batch in batches_within(places, ROWS_AT_ONCE, TOKENS_AT_ONCE):
        batch_groups = [groups[number] for number in batch]
        rows_of_batch = torch.tensor([group.row for group in batch_groups], device=device)
        decoder_ids = []
        for group in batch_groups:
            decoder_ids.append(torch.tensor([opened.item(), *group.tokens[:-1]], device=device))
        logits = decode(
            encoder_outputs=BaseModelOutput(last_hidden_state=states[rows_of_batch]),
            attention_mask=mask[rows_of_batch],
            decoder_input_ids=pad_sequence(decoder_ids, batch_first=True),
            use_cache=False,
        ).logits
        yield from (logits[place, : len(group.tokens)] for place, group in enumerate(batch_groups))
