"""Keep the answers of an API on disk, so that nothing is paid twice, and count what they cost."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prompt_tuning.errors import DataError, ModelError
from prompt_tuning.runs.api_client import Body, Reply, Send
from prompt_tuning.support.json_types import Place, check_value
from prompt_tuning.support.json_values import parse_json

MILLION = 10**6


def cache_file() -> Path:
    """Return the file of all answers of this user: prompt_tuning/api_answers.sqlite in XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "prompt_tuning" / "api_answers.sqlite"


@dataclass(frozen=True)
class AnswerCache:
    """The replies of servers by their requests, in a file that several processes may use.

    It holds answers and digests of requests: no rows and no keys.

    Args:
        file: a database of SQLite, which only its owner can read.
    """

    file: Path

    def get(self, key: str) -> Reply | None:
        """Return the reply to a request, or None.

        Raises:
            DataError: the file is damaged, or it cannot be written.
        """
        with self._opened() as database:
            row = database.execute("SELECT reply FROM replies WHERE request = ?", (key,)).fetchone()
            reply = parse_json(row[0]) if row else None
        if reply is None:
            return None
        check_value(reply, Reply, Place(str(self.file)))
        return Reply(**reply)

    def put(self, key: str, reply: Reply) -> None:
        """Write the reply to a request; when it returns, the reply is on disk.

        Raises:
            DataError: the file is damaged, or it cannot be written.
        """
        with self._opened() as database, database:
            row = (key, json.dumps(asdict(reply)))
            database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", row)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Yield the database, which is made if it is missing."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self.file, timeout=60)) as database:
                database.execute("CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT)")
                yield database
        except (OSError, sqlite3.Error, ValueError) as error:
            raise DataError(
                f"{self.file}: the answers of APIs cannot be read or written ({error}). Mend the file or its disk; "
                "without the file the answers are paid again."
            ) from error


@dataclass
class Bill:
    """What the answers of one command cost.

    Args:
        prices: of a million tokens read and of a million written; None if they are not known.
        max_cost: the most that requests of this command may cost.
        counts: the numbers of requests, of replies from the cache, and of the tokens of both together.
        paid: the cost of the requests that were sent.
        reserved: the most that the requests that are on their way can cost.
    """

    prices: tuple[float, float] | None = None
    max_cost: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    paid: float = 0.0
    reserved: float = 0.0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def reserve(self, body: Body) -> float:
        """Return the most that a request can cost, as soon as it fits into max_cost beside those on their way.

        No token is shorter than a byte, and a chat adds less than the names in the JSON have.

        Raises:
            ModelError: it does not fit.
        """
        most = self.cost(len(json.dumps(body, ensure_ascii=False).encode()), body["max_tokens"])
        with self._changed:
            while self.max_cost is not None and self.paid + self.reserved + most > self.max_cost:
                if not self.reserved:
                    raise ModelError(
                        f"max_cost {self.max_cost:g}: {self.paid:.4f} is paid, and the next request can cost "
                        f"{most:.4f}. The answers are kept: run the same command again, or raise --max_cost."
                    )
                self._changed.wait()
            self.reserved += most
        return most

    def settle(self, reserved: float, reply: Reply | None) -> None:
        """Replace what was reserved for a request by its cost; a request that failed costs nothing.

        A server that does not count tokens is taken to have used all that was reserved.
        """
        with self._changed:
            self.reserved -= reserved
            if self.reserved < 1e-12:  # Sums of fractions leave a rest.
                self.reserved = 0.0
            if reply is not None:
                counted = reply.input_tokens is not None and reply.output_tokens is not None
                self.paid += self.cost(reply.input_tokens or 0, reply.output_tokens or 0) if counted else reserved
            self._changed.notify_all()

    def count(self, reply: Reply, *, from_cache: bool) -> None:
        """Count a reply and its tokens."""
        with self._changed:
            self.counts["from_cache" if from_cache else "requests"] += 1
            self.counts["input_tokens"] += reply.input_tokens or 0
            self.counts["output_tokens"] += reply.output_tokens or 0
            self.counts["without_usage"] += reply.input_tokens is None or reply.output_tokens is None

    def cost(self, read: int, written: int) -> float:
        """Return the price of so many tokens, 0 without prices."""
        return sum(
            count * price / MILLION for count, price in zip((read, written), self.prices or (0, 0), strict=True)
        )

    def __str__(self) -> str:
        """Return the tokens and the cost for a progress bar."""
        text = f"{self.counts['input_tokens']:,} tokens in, {self.counts['output_tokens']:,} out"
        return text if self.prices is None else f"{text}, paid {self.paid:.4f}"


class PaidOnce:
    """Send a request only if its answer is not on disk, and write each answer to disk at once.

    Args:
        send: sends a request.
        cache: the answers on disk.
        bill: counts tokens and cost.
        server: its address, which is a part of the key of every answer.
    """

    def __init__(self, send: Send, cache: AnswerCache, bill: Bill, server: str) -> None:
        """Keep the arguments."""
        self.send, self.cache, self.bill, self.server = send, cache, bill, server
        self._on_their_way: dict[str, Future[Reply]] = {}
        self._lock = threading.Lock()

    def __call__(self, body: Body) -> Reply:
        """Return the reply to a request. Threads that ask the same at the same time wait for one reply.

        Raises:
            ModelError: the server does not answer, or the request could cost too much.
            DataError: the answer cannot be kept.
        """
        key = self.key(body)
        with self._lock:
            mine = key not in self._on_their_way
            future = self._on_their_way.setdefault(key, Future())
        if not mine:
            reply = future.result()
            self.bill.count(reply, from_cache=True)
            return reply
        try:
            reply = self._kept_or_sent(key, body)
            future.set_result(reply)
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._on_their_way[key]
        return reply

    def key(self, body: Body) -> str:
        """Return the digest of a request and of its server's address."""
        is_chat = "messages" in body
        text = json.dumps([self.server.rstrip("/"), is_chat, body], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _kept_or_sent(self, key: str, body: Body) -> Reply:
        kept = self.cache.get(key)
        if kept is not None:
            self.bill.count(kept, from_cache=True)
            return kept
        reserved = self.bill.reserve(body)
        reply = None
        try:
            reply = self.send(body)
            self.cache.put(key, reply)
        finally:
            self.bill.settle(reserved, reply)
        self.bill.count(reply, from_cache=False)
        return reply
