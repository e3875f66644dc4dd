"""Write messages, and the answer after them, as a tokenizer's chat template does."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase

from prompt_tuning.encoding.chat_sandbox import render_chat
from prompt_tuning.errors import TemplateError
from prompt_tuning.support.jinja import JINJA_ERRORS

logger = logging.getLogger(__name__)

CHAT_DAY = datetime(2024, 7, 26)
"""The date that chat templates with today's date write, so that rows are the same tomorrow: Llama's own default."""

QUESTION, ANSWER = "Where is the ferry?", "In the harbour."

Message = dict[str, str]

# Unicode reserves them for the inside of programs; no text may hold them.
START, END = "\U000ffffe", "\U000fffff"


@dataclass(frozen=True)
class ChatFormat:
    """The text that a chat template writes between the messages and an answer, and after the answer.

    Args:
        text: the chat template, with a fixed date.
        takes_parts: the content of a message is a list of parts, `[{"type": "text", "text": ...}]`.
        cut: the number of characters at the end of the generation prompt that no answer follows, such as `<think>`.
        opening: the text after the generation prompt with which every answer begins, such as an empty thinking block.
        gap: the spaces before an answer, which belong to its first token.
        tail: the text between an answer and its end token.
        end_id: the token that ends an answer.
    """

    text: str
    takes_parts: bool
    cut: int
    opening: str
    gap: str
    tail: str
    end_id: int


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Return how the chat template of a tokenizer writes an answer.

    Raises:
        TemplateError: the tokenizer has no chat template, or the chat template cannot write a question and an answer.
    """
    if not tokenizer.chat_template:
        raise TemplateError(f"{_name(tokenizer)} has no chat template. Take a template without chat: true.")
    try:
        text = _with_fixed_date(tokenizer.get_chat_template())
    except ValueError as error:  # There are several, none of which is the default; or a date cannot be written.
        raise TemplateError(f"{_name(tokenizer)}: {error}") from None
    return _read_format(tokenizer, text, tokenizer.eos_token_id)


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Return messages as the text that an answer follows, without the gap before it.

    Raises:
        TemplateError: the chat template fails on these messages, or leaves out the text of one.
    """
    chat = chat_format(tokenizer)
    roles = ", ".join(message["role"] for message in messages)
    try:
        text = _render(tokenizer, chat.text, messages, takes_parts=chat.takes_parts, opens_answer=True)
    except JINJA_ERRORS as error:
        if messages[0]["role"] == "system" and _takes(tokenizer, chat, messages[1:]):
            raise TemplateError(
                f"the chat template of {_name(tokenizer)} takes no system message: {error}. Put its words into source."
            ) from error
        raise TemplateError(
            f"the chat template of {_name(tokenizer)} refuses the messages ({roles}): {error}. Take a template "
            "without them, or without chat: true."
        ) from error
    for message in messages:
        if message["content"].strip() not in text:
            raise TemplateError(
                f"the chat template of {_name(tokenizer)} leaves out or changes the text of a {message['role']} "
                "message. Put its words into source, or take a template without chat: true."
            )
    return text[: len(text) - chat.cut] + chat.opening


@dataclass(frozen=True)
class MessagePlace:
    """The characters of a message's content that a chat template writes, and where.

    Args:
        start: the place of the first of them in the whole text.
        first: the number of the first one in the content.
        last: the number of the character after the last one in the content.
    """

    start: int
    first: int
    last: int


def message_places(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[MessagePlace]:
    """Return where `chat_text` writes the content of each message. Spaces at its ends may be left out.

    Raises:
        TemplateError: the chat template fails on these messages, or changes them by what they say.
    """
    text = chat_text(tokenizer, messages)
    # Most chat templates strip a message.
    for stripped in (False, True):
        contents = [message["content"] for message in messages]
        edges = []
        for content in contents:
            last = len(content.rstrip()) if stripped else len(content)
            edges.append((min(len(content) - len(content.lstrip()), last) if stripped else 0, last))
        marked = []
        for message, (first, last) in zip(messages, edges, strict=True):
            content = message["content"]
            marked.append(message | {"content": content[:first] + START + content[first:last] + END + content[last:]})
        pieces = re.split(f"([{START}{END}])", chat_text(tokenizer, marked))
        if "".join(pieces[::2]) == text and pieces[1::2] == [START, END] * len(messages):
            starts = list(accumulate(map(len, pieces[::2])))[::2]
            return [MessagePlace(start, *ends) for start, ends in zip(starts, edges, strict=False)]
    raise TemplateError(
        f"the chat template of {_name(tokenizer)} changes messages by what they say, so that the places of a "
        "template's own words are not known. Set trained_text: none, or take a template without chat: true."
    )


def answer_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's end token, and that of its chat template."""
    ends = [tokenizer.eos_token_id]
    # A chat template that fails is an error only of a template with chat: true.
    with contextlib.suppress(TemplateError):
        ends.append(chat_format(tokenizer).end_id)
    return list(dict.fromkeys(ends))


def changes_answer_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether answers begin with other text than the chat template's own generation prompt ends with."""
    chat = chat_format(tokenizer)
    return bool(chat.takes_parts or chat.cut or chat.opening)


def _takes(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, messages: Sequence[Message]) -> bool:
    """Return True if the chat template writes these messages."""
    try:
        _render(tokenizer, chat.text, messages, takes_parts=chat.takes_parts, opens_answer=True)
    except JINJA_ERRORS:
        return False
    return True


@functools.lru_cache(maxsize=16)
def _read_format(tokenizer: PreTrainedTokenizerBase, text: str, eos_token_id: int) -> ChatFormat:
    """Return the format of a chat template, read from an example that it writes."""
    question = {"role": "user", "content": QUESTION}
    answer = {"role": "assistant", "content": ANSWER}
    reasons: list[object] = []
    for takes_parts in (False, True):
        try:
            prompt = _render(tokenizer, text, [question], takes_parts=takes_parts, opens_answer=True)
            whole = _render(tokenizer, text, [question, answer], takes_parts=takes_parts, opens_answer=False)
        except JINJA_ERRORS as error:
            reasons.append(error)
            continue
        before, _, after = whole.partition(ANSWER)
        # Some chat templates print a list of parts as Python writes it.
        if QUESTION in prompt and ANSWER in whole and "'type'" not in prompt:
            break
        reasons.append("it does not write them")
    else:
        raise TemplateError(
            f"the chat template of {_name(tokenizer)} fails on a question and its answer: {reasons[0]}. Take a "
            "template without chat: true."
        )
    common = len(os.path.commonprefix([prompt, before]))  # noqa: RUF071  They are texts, not paths.
    opening = before[common:].rstrip(" ")
    tail, end_id = _end(tokenizer, after, eos_token_id)
    return ChatFormat(text, takes_parts, len(prompt) - common, opening, before[common + len(opening) :], tail, end_id)


def _end(tokenizer: PreTrainedTokenizerBase, after: str, eos_token_id: int) -> tuple[str, int]:
    """Return what a chat template writes between an answer and the first token that ends it, and that token."""
    ends = []
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special and token.content in after:
            ends.append((after.index(token.content), number))
    place, number = min(ends, default=(0, eos_token_id))
    return after[:place], number


def _render(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    messages: Sequence[Message],
    *,
    takes_parts: bool,
    opens_answer: bool,
) -> str:
    """Return messages as a chat template writes them, with the start of an answer if `opens_answer`."""
    conversation: list[dict[str, Any]] = [*messages]
    if takes_parts:
        conversation = []
        for message in messages:
            conversation.append({**message, "content": [{"type": "text", "text": message["content"]}]})
    return render_chat(text, conversation, tokenizer.special_tokens_map, add_generation_prompt=opens_answer)


@functools.cache
def _with_fixed_date(chat_template: str) -> str:
    """Return a chat template in which today is CHAT_DAY."""
    today = r"""strftime_now\(\s*(?:format\s*=\s*)?(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*,?\s*\)"""
    fixed = re.sub(today, lambda call: repr(CHAT_DAY.strftime(call["format"])), chat_template)
    if "strftime_now(" in fixed:
        logger.warning("the chat template writes today's date in a way that cannot be fixed: rows change with the day")
    return fixed


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "the tokenizer"
