"""Send requests to a server of OpenAI's API, several at once, and read its answers."""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

from prompt_tuning.encoding.decoding import cut_at_stop
from prompt_tuning.errors import ModelError, first_line

TRIES = 8
"""How often a request is sent that a server does not answer; the client waits longer before every try."""

KEY_VARIABLE = "OPENAI_API_KEY"
SHORTEST_KEY = 6
"""The characters of a key from which a text of the server that has them quotes the key."""

NOT_OF_OPENAI = ("ignore_eos", "prompt_embeds")
"""What requests to other servers may have that the client of openai takes only as `extra_body`."""

Body = dict[str, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """The first choice of a server's answer.

    Args:
        text: what the model wrote.
        finish_reason: why it ended, in the words of the API, such as "stop", "length" or "content_filter".
        refused: the server or the model refuses to answer.
        input_tokens: the tokens that the server counted in the request; None if it does not say.
        output_tokens: the tokens that it counted in its answer.
        model: the server's own name for what answered.
        fingerprint: the server's name for its configuration.
        listed: the log-probabilities of the likeliest first tokens, if the request asks for them.
    """

    text: str
    finish_reason: str = ""
    refused: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    model: str = ""
    fingerprint: str = ""
    listed: Mapping[str, float] = field(default_factory=dict)


Send = Callable[[Body], Reply]
"""Sends a request and returns the first choice of its answer."""


def openai_client(url: str, key_variable: str | None = None) -> Send:
    """Return a function that sends requests to a server through the client of `openai`.

    A body with messages is sent to /chat/completions, another one to /completions. The client tries again after 408,
    409, 429, 5xx, a timeout and a lost connection.

    Args:
        url: the server's address, with the path of its API, such as http://localhost:8000/v1.
        key_variable: the environment variable of the key, by default OPENAI_API_KEY. Most servers of one's own need
            none.

    Raises:
        ModelError: the package openai is not installed, or the named variable is not set.
    """
    try:
        import openai
    except ImportError:
        raise ModelError(
            f"{url}: requests are sent by the package openai, which is missing. Install prompt-tuning[serve]."
        ) from None
    key = os.environ.get(key_variable or KEY_VARIABLE, "")
    if key_variable and not key:
        raise ModelError(f"api_key_env {key_variable}: the environment has no such variable. Set it to the key.")
    # A connection that waits for a next request would outlive this function's caller, and the server's next start.
    once = {"Connection": "close"}
    client = openai.OpenAI(base_url=url, api_key=key or "none", max_retries=TRIES - 1, default_headers=once)

    def hidden(error: Exception) -> str:
        return without_key(first_line(error), key)

    def send(body: Body) -> Reply:
        create = client.chat.completions.create if "messages" in body else client.completions.create
        try:
            return read_reply(create(**_arguments(body)).model_dump(), url, key)
        except openai.APIStatusError as error:
            if error.code == "content_filter":
                return Reply("", "content_filter", refused=True)
            status, reason = error.status_code, without_key(first_line(error.message), key)
            raise ModelError(f"{url}: it answers {status}: {reason}. {_advice(status)}") from None
        except openai.APIConnectionError as error:
            raise ModelError(
                f"{url}: no answer ({hidden(error)}). Start the server, and run the same command again to resume."
            ) from None
        except openai.OpenAIError as error:
            raise ModelError(f"{url}: its answer cannot be read ({hidden(error)}). Check the address.") from None

    return send


def _arguments(body: Body) -> dict[str, Any]:
    """Return a body as arguments of the client of openai, which wants a prompt also beside `prompt_embeds`."""
    extra = {name: body[name] for name in NOT_OF_OPENAI if name in body}
    known = {name: value for name, value in body.items() if name not in extra}
    empty = {"prompt": None} if "prompt_embeds" in extra else {}
    return empty | known | {"extra_body": extra}


def without_key(text: str, key: str) -> str:
    """Return a text of the server with stars instead of the key."""
    return text.replace(key, "***") if len(key) >= SHORTEST_KEY else text


def _advice(status: int) -> str:
    """Return what to do after an error of HTTP."""
    if status in (401, 403):
        return f"Set the key in {KEY_VARIABLE}, or in the variable that --api_key_env names."
    if status == 404:
        return "Check address and name; a server that only chats needs api_endpoint: chat."
    return "Run the same command again to resume."


def read_reply(answer: Mapping[str, Any], url: str, key: str = "") -> Reply:
    """Return the first choice of an answer of /completions or /chat/completions.

    Args:
        answer: the answer's JSON, which servers fill in different ways.
        url: the server's address, for messages.
        key: the key, which no text of the result has.

    Raises:
        ModelError: there is no choice in it.
    """

    def text_of(value: object) -> str:
        if not isinstance(value, str):
            return ""
        # No file can hold half a character.
        return without_key(value, key).encode("utf-8", "replace").decode()

    def count_of(name: str) -> int | None:
        value = (answer.get("usage") or {}).get(name)
        return value if isinstance(value, int) else None

    choices = answer.get("choices")
    if not choices:
        raise ModelError(f"{url}: its answer has no choices. Check the address, which ends in /v1 at most servers.")
    message = choices[0].get("message") or choices[0]
    reason = text_of(choices[0].get("finish_reason"))
    return Reply(
        text=text_of(message.get("content") if "content" in message else message.get("text")),
        finish_reason=reason,
        refused=bool(message.get("refusal")) or reason == "content_filter",
        input_tokens=count_of("prompt_tokens"),
        output_tokens=count_of("completion_tokens"),
        model=text_of(answer.get("model")),
        fingerprint=text_of(answer.get("system_fingerprint")),
        listed={} if "message" in choices[0] else _listed_tokens(choices[0].get("logprobs") or {}),
    )


def _listed_tokens(logprobs: Mapping[str, Any]) -> dict[str, float]:
    """Return the log-probabilities of the first tokens, in the form of OpenAI or of llama.cpp's server."""
    listed: Any = {}
    if logprobs.get("top_logprobs"):
        listed = logprobs["top_logprobs"][0]
    elif logprobs.get("content"):
        listed = {entry["token"]: entry["logprob"] for entry in logprobs["content"][0].get("top_logprobs", [])}
    tokens = {}
    for token, value in listed.items():
        if isinstance(value, int | float) and math.isfinite(value):
            tokens[str(token).encode("utf-8", "replace").decode()] = float(value)
    return tokens


def ask(send: Send, body: Body, stop: Sequence[str]) -> tuple[Reply, str, bool]:
    """Return the reply to a request, its text as this package cuts it, and whether only the limit ended it.

    A stop text at the start of an answer counts only behind other text here. Servers stop at it, and are asked again.
    """
    reply = send(body)
    if "stop" in body and reply.finish_reason == "stop" and not reply.text.strip() and not reply.refused:
        reply = send({name: value for name, value in body.items() if name != "stop"})
    text = cut_at_stop(reply.text, stop)
    limited = reply.finish_reason == "length" and text == reply.text.lstrip()
    return reply, text.strip(), limited


def in_order(
    items: Iterable[Item | None], answer: Callable[[Item], Result], concurrency: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its answer, in their order, while a few of the next are asked for.

    After an error no further item is begun. Those that were begun are finished before the error is raised.

    Args:
        items: read as far as they are needed. At None, nothing more is there yet, and all that were begun are yielded.
        answer: called by threads.
        concurrency: how many items are answered at once.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(concurrency)
        stack.callback(pool.shutdown, cancel_futures=True)
        for item in chain(items, [None]):
            if item is not None:
                waiting.append((item, pool.submit(answer, item)))
            while len(waiting) > (0 if item is None else 2 * concurrency):
                first, future = waiting.popleft()
                yield first, future.result()
