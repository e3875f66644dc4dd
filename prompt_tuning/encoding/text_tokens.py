"""Find which tokens of an encoded source are tokens of the template's literals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prompt_tuning.encoding.chat import MessagePlace, message_places
from prompt_tuning.encoding.control_tokens import ControlTokens
from prompt_tuning.templates.literals import Span
from prompt_tuning.templates.rendered import Rendered


class TextToken(NamedTuple):
    """A token of a literal: the literal's number, the token's characters within it, and its ordinary id."""

    literal: int
    start: int
    end: int
    id: int


@dataclass(frozen=True)
class EncodedSource:
    """A source within its budget.

    Args:
        ids: the token ids, with the trained ids of trained text.
        text: the source as marked text (see control_tokens.py).
        row: the row with its cut columns.
        cut_tokens: the number of tokens that were cut.
        untrained_tokens: the number of tokens of the trained literals that no training row has.
    """

    ids: list[int]
    text: str
    row: dict[str, Any]
    cut_tokens: int
    untrained_tokens: int = 0


def text_tokens(
    source: EncodedSource, rendered: Rendered, spans: Sequence[Sequence[Span]], control: ControlTokens, *, chat: bool
) -> list[TextToken | None]:
    """Return for each token of a source the token of a literal that it is, or None if it is not wholly in one.

    Args:
        source: the source, with ordinary ids.
        rendered: the same row as messages.
        spans: the places of the literals in each message.
        control: of the fast tokenizer.
        chat: the source is written by the tokenizer's chat template.
    """
    places = [MessagePlace(start, 0, sys.maxsize) for start in rendered.starts]
    if chat:
        places = message_places(control.tokenizer, rendered.messages)
    of_source = []
    for place, spans_of_message in zip(places, spans, strict=True):
        for span in spans_of_message:
            first, last = max(span.start, place.first), min(span.end, place.last)
            start = place.start + first - place.first
            skipped = span.skipped + first - span.start
            of_source.append(Span(span.literal, start, start + last - first, skipped))
    offsets = control.offsets(source.text, add_special_tokens=not chat)
    # A tokenizer may append an end token, which a source does not have.
    return _tokens_of_spans(source.ids, offsets[: len(source.ids)], of_source)


def _tokens_of_spans(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[Span]
) -> list[TextToken | None]:
    """Return for each token of a text the token of a literal that it is, or None if it does not lie wholly within one.

    Args:
        ids: the ids of the tokens.
        offsets: the characters of each token. Spaces between two tokens, which some tokenizers leave out, belong to
            the second one.
        spans: the places of the literals in the text, in their order.
    """
    tokens: list[TextToken | None] = []
    waiting = list(reversed(spans))
    previous = 0
    for id, (first, end) in zip(ids, offsets, strict=True):
        start = min(first, previous)
        while waiting and waiting[-1].end < end:
            waiting.pop()
        span = waiting[-1] if waiting else None
        if span and span.start <= start < end:
            within = span.skipped - span.start
            tokens.append(TextToken(span.literal, start + within, end + within, id))
        else:
            tokens.append(None)
        previous = max(previous, end)
    return tokens
