"""Turn generated token ids into texts."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import TemplateError


def decode(ids: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> list[str]:
    """Return generated ids as text; arguments as for `decode_to_limit`."""
    return decode_to_limit(ids, tokenizer, stop)[0]


def decode_to_limit(
    ids: Iterable[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    stop: Sequence[str] = (),
    limit: int | None = None,
) -> tuple[list[str], list[bool]]:
    """Return generated ids as text, and for each row whether only the limit of tokens ended it.

    A text has no special tokens, is stripped, and ends before the first stop text. If the limit ends it within a
    character, it ends with U+FFFD.

    Args:
        ids: the ids of the rows; -100 is padding.
        tokenizer: the model's tokenizer.
        stop: texts, or special tokens, that end a row.
        limit: how many tokens a row at the limit has written, from `limit_of_tokens`; None for all that it has.
    """
    special = set(special_tokens(tokenizer).values())
    stop_ids = special_stop_ids(tokenizer, stop)
    rows, limited = [], []
    for row in ids:
        tokens = [tokenizer.pad_token_id if token == -100 else int(token) for token in row]
        end = next((place for place, token in enumerate(tokens) if token in stop_ids), len(tokens))
        rows.append(tokens[:end])
        # An end, and the padding after one, are special tokens.
        until_limit = tokens[:limit]
        at_limit = 0 < len(until_limit) <= end and limit in (None, len(until_limit))
        limited.append(at_limit and until_limit[-1] not in special)
    texts = []
    for number, text in enumerate(tokenizer.batch_decode(rows, skip_special_tokens=True)):
        text = text.lstrip()
        until_stop = cut_at_stop(text, stop)
        limited[number] = limited[number] and until_stop == text
        texts.append(until_stop.strip())
    return texts, limited


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return a text until the first of the stop texts in it, without white space before it."""
    text = text.lstrip()
    return min((text.split(end)[0] for end in stop), key=len, default=text)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the ids of the tokens that decoding leaves out, by their texts."""
    return dict(_special_tokens(tokenizer, len(tokenizer)))


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, int]:
    ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return ids | {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}


def special_stop_ids(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> set[int]:
    """Return the ids of the stop texts that are special tokens, which decoding would leave out."""
    special = special_tokens(tokenizer)
    return {special[text.strip()] for text in stop if text.strip() in special}


def server_stops(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> list[str]:
    """Return the stop texts that are no special tokens, since the texts of a server have none."""
    special = special_tokens(tokenizer)
    return [text for text in stop if text.strip() not in special]


def check_stop(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], template: str) -> None:
    """Raise a TemplateError for a stop text that no prediction holds: a special token together with other text."""
    special = special_tokens(tokenizer)
    for text in stop:
        within = [token for token in special if token in text]
        if within and text.strip() not in special:
            token = max(within, key=len)
            raise TemplateError(
                f"template {template}: stop holds {text!r}, which has the special token {token!r} in it; name it alone"
            )
