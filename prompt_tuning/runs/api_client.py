"""Send requests to a server of OpenAI's API, several at once, and read its answers."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import httpx2

from prompt_tuning.encoding.decoding import cut_at_stop
from prompt_tuning.errors import ModelError, first_line
from prompt_tuning.support.json_types import LARGEST
from prompt_tuning.support.json_values import MAX_BYTES
from prompt_tuning.support.text import counted

logger = logging.getLogger(__name__)

TRIES = 8
"""How often a request is sent that a server does not answer; the client waits longer before every try."""

KEY_VARIABLE = "OPENAI_API_KEY"
SHORTEST_KEY = 6
"""The characters of a key from which a text of the server that has them quotes the key."""

MAX_REASON = 300
"""The characters of a server's own words that a message has."""

MAX_SECONDS = 600
"""The seconds that the bytes of an answer may take after its first ones."""

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
    listed: dict[str, float] = field(default_factory=dict)


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
    headers = {"Connection": "close", "Accept-Encoding": "identity"}
    client = openai.OpenAI(
        base_url=url,
        api_key=key or "none",
        max_retries=TRIES - 1,
        default_headers=headers,
        http_client=openai.DefaultHttpxClient(
            follow_redirects=False,  # Only the user says which server gets rows.
            event_hooks={"response": [_bound]},
        ),
    )

    def hidden(error: Exception) -> str:
        return without_key(first_line(error), key)[:MAX_REASON]

    def send(body: Body) -> Reply:
        endpoint = client.chat.completions if "messages" in body else client.completions
        try:
            with endpoint.with_streaming_response.create(**_arguments(body)) as response:
                return read_reply(_read_json(response.read()), url, key)
        except openai.APIStatusError as error:
            if error.code == "content_filter":
                return Reply("", "content_filter", refused=True)
            status = error.status_code
            raise ModelError(f"{url}: it answers {status}: {hidden(error)}. {_advice(status)}") from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise ModelError(
                f"{url}: no answer ({hidden(error)}). Start the server, and run the same command again to resume."
            ) from None
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise ModelError(f"{url}: its answer cannot be read ({hidden(error)}). Check the address.") from None

    return send


def _arguments(body: Body) -> dict[str, Any]:
    """Return a body as arguments of the client of openai, which wants a prompt also beside `prompt_embeds`."""
    extra = {name: body[name] for name in NOT_OF_OPENAI if name in body}
    arguments = {name: value for name, value in body.items() if name not in extra}
    empty = {"prompt": None} if "prompt_embeds" in extra else {}
    return empty | arguments | {"extra_body": extra}


def without_key(text: str, key: str) -> str:
    """Return a text of the server with stars instead of the key."""
    return text.replace(key, "***") if len(key) >= SHORTEST_KEY else text


def _advice(status: int) -> str:
    """Return what to do after an error of HTTP."""
    if status in (401, 403):
        return f"Set the key in {KEY_VARIABLE}, or in the variable that --api_key_env names."
    if status in range(300, 400):
        return "It names another address. Give that one if it may read the rows."
    if status == 404:
        return "Check address and name; a server that only chats needs api_endpoint: chat."
    return "Run the same command again to resume."


class BoundedStream(httpx2.SyncByteStream):
    """The bytes of an answer, cut soon after MAX_BYTES or MAX_SECONDS."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        """Keep the stream."""
        self.stream = stream

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes as they come."""
        size, end = 0, time.monotonic() + MAX_SECONDS
        for chunk in self.stream:
            yield chunk
            size += len(chunk)
            if size > MAX_BYTES or time.monotonic() > end:
                break

    def close(self) -> None:
        """Close the stream."""
        self.stream.close()


def _bound(response: httpx2.Response) -> None:
    """Bound the bytes of an answer, also of an error, which the client of openai reads as a whole."""
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = BoundedStream(response.stream)
    response.headers.pop("Content-Encoding", None)  # Unpacked, a few of its bytes may be any number.


def _read_json(content: bytes) -> Any:
    """Return the value of an answer; raise a ValueError if it has none, or has more than MAX_BYTES."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    return json.loads(content)


def read_reply(answer: Any, url: str, key: str) -> Reply:
    """Return the first choice of an answer of /completions or /chat/completions.

    Args:
        answer: the answer's JSON, which servers fill in different ways. A part of another type counts as missing.
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
        value = _part(_part(answer, "usage"), name)
        return value if type(value) is int and 0 <= value <= LARGEST else None

    choice = _part(_part(answer, "choices"), 0)
    if not isinstance(choice, dict):
        raise ModelError(f"{url}: its answer has no choices. Check the address, which ends in /v1 at most servers.")
    message = choice.get("message") or choice
    reason = text_of(choice.get("finish_reason"))
    tokens = [] if "message" in choice else _listed_tokens(choice.get("logprobs"))
    content = _part(message, "content")
    return Reply(
        text=text_of(_part(message, "text") if content is None else content),
        finish_reason=reason,
        refused=bool(_part(message, "refusal")) or reason == "content_filter",
        input_tokens=count_of("prompt_tokens"),
        output_tokens=count_of("completion_tokens"),
        model=text_of(_part(answer, "model")),
        fingerprint=text_of(_part(answer, "system_fingerprint")),
        listed={text_of(token): value for token, value in tokens},
    )


def _part(value: Any, key: str | int) -> Any:
    """Return an entry of an object or a list of a server's answer; None if there is no such entry."""
    if isinstance(value, dict):
        return value.get(key)
    return value[0] if isinstance(value, list) and value and key == 0 else None


def _listed_tokens(logprobs: Any) -> list[tuple[Any, float]]:
    """Return the first tokens with their log-probabilities, in the form of OpenAI or of llama.cpp's server."""
    listed = _part(_part(logprobs, "top_logprobs"), 0)
    if isinstance(listed, dict):
        pairs = list(listed.items())
    else:
        entries = _part(_part(_part(logprobs, "content"), 0), "top_logprobs")
        entries = entries if isinstance(entries, list) else []
        pairs = [(_part(entry, "token"), _part(entry, "logprob")) for entry in entries]
    return [(token, float(value)) for token, value in pairs if type(value) in (int, float) and abs(value) <= LARGEST]


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

    After an error no further item is begun. Those that were begun are finished before the error is raised. A second
    interrupt does not wait for them.

    Args:
        items: read as far as they are needed. At None, nothing more is there yet, and all that were begun are yielded.
        answer: called by threads.
        concurrency: how many items are answered at once.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    free = threading.Semaphore(concurrency)

    def work(item: Item, future: Future[Result]) -> None:
        with free:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(answer(item))
            except BaseException as error:
                future.set_exception(error)

    try:
        for item in chain(items, [None]):
            if item is not None:
                waiting.append((item, Future()))
                # Python waits at its end for every thread of a pool, also for a server that never answers.
                threading.Thread(target=work, args=waiting[-1], daemon=True).start()
            while len(waiting) > (0 if item is None else 2 * concurrency):
                first, future = waiting[0]
                result = future.result()
                waiting.popleft()
                yield first, result
    finally:
        begun = [future for _, future in waiting if not future.cancel() and not future.done()]
        if begun:
            count = counted(len(begun), "request", "are on the way")
            logger.warning("%s; the answers are waited for, and another interrupt leaves them", count)
        wait(begun)
