"""Write rows of an exported task as requests of OpenAI's completions API, or send them to a server."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.encoding.decoding import server_stops
from prompt_tuning.errors import DataError, ModelError
from prompt_tuning.models.layered_llama import LayeredLlamaForCausalLM
from prompt_tuning.models.loading import load_base_model, load_config
from prompt_tuning.reports.losses import prediction_counts
from prompt_tuning.runs.answers import Question
from prompt_tuning.runs.api_client import Body, Send, ask, in_order
from prompt_tuning.runs.exported import ExportedTask
from prompt_tuning.runs.input_rows import OriginAndRow, no_rows, open_input, read_row, stream_input
from prompt_tuning.runs.predict import AskedRow, PredictedRow, ask_rows, report_counts, write_line
from prompt_tuning.support.data_files import checked_path
from prompt_tuning.support.files import DISK_LIMITS, atomic_write, read_json_lines
from prompt_tuning.support.json_values import without_nan


@dataclass(frozen=True)
class Requests:
    """Makes greedy requests of the rows of an exported task.

    Args:
        task: from `ExportedTask.load`.
        model: the name that the server has for the exported model.
        as_text: ask with the prompt as text instead of token ids.
        embeddings: ask with what this layer makes of the token ids instead, as vLLM's `prompt_embeds`.
    """

    task: ExportedTask
    model: str
    as_text: bool = False
    embeddings: nn.Module | None = None

    def body(self, question: Question, origin: str) -> Body:
        """Return the body of the request for a row.

        Args:
            question: the encoded row.
            origin: where the row is from, for messages.

        Raises:
            DataError: the text of the row does not have its token ids.
        """
        task = self.task
        ids = task.tokens.ids_of(question.source)
        prompt: Body = {"prompt": _text(task, ids, origin) if self.as_text else ids}
        if self.embeddings is not None:
            prompt = {"prompt_embeds": _encode(self.embeddings, ids)}
        body = {"model": self.model, **prompt, "max_tokens": task.max_tokens, "temperature": 0}
        stop = server_stops(task.encoder.tokenizer, task.encoder.template.stop)
        optional = {"stop": stop, "logit_bias": task.logit_bias}
        return body | {name: value for name, value in optional.items() if value}

    def write(self, source: str = "-", output: str = "-") -> None:
        """Write a request for every row, a JSON object a line.

        Args:
            source: the rows, as for `predict`; "-" is standard input.
            output: the file to write; "-" is standard output.

        Raises:
            DataError: a row is bad, or its text does not have its token ids.
        """
        path = checked_path(source, output)
        counts: Counter[str] = Counter()
        with ExitStack() as files:
            file = sys.stdout if output == "-" else files.enter_context(atomic_write(Path(output), named_by_user=True))
            rows = open_input(source, path) or stream_input(source, path, self.task.encoder, files)
            for asked in _ask_rows(self.task, rows, counts):
                write_line(file, self.body(asked.question, asked.origin))
            if not counts["rows"]:
                raise no_rows(source)
        report_counts(counts)

    def send(self, source: str, output: str, send: Send, *, concurrency: int = 8) -> None:
        """Send a request for every row, and write the rows with their predictions as `predict` does.

        Answered rows are kept beside the output until it is complete, so that the same call resumes after a break.

        Args:
            source: the rows, as for `predict`.
            output: the file to write.
            send: sends a request, such as `openai_client` returns it.
            concurrency: the number of requests that are sent at once.

        Raises:
            DataError: a row is bad, or answered rows of other rows lie beside the output.
            ModelError: the server does not answer.
        """
        task = self.task
        path = checked_path(source, output)
        file = Path(os.path.realpath(output))
        partial = file.parent / f".{file.name}.{task.name}-{task.checksum[:8]}.partial"
        counts: Counter[str] = Counter()

        def rows_and_bodies() -> Iterator[tuple[dict[str, Any], Body]]:
            """Yield each row with its request, or with its prediction before a break."""
            for origin, row, question in _ask_rows(task, rows, counts):
                if answered:
                    earlier = answered.popleft()
                    _check_answered(row, earlier, origin, partial)
                    yield row, earlier
                else:
                    yield row, self.body(question, origin)

        def answer(row_and_body: tuple[dict[str, Any], Body]) -> tuple[str, bool]:
            _, body = row_and_body
            if "prediction" in body:
                return body["prediction"], False
            return ask(send, body, task.encoder.template.stop)[1:]

        with _explain_kept(partial), ExitStack() as files:
            rows = open_input(source, path) or stream_input(source, path, task.encoder, files)
            answered = _answered(partial)
            written = files.enter_context(partial.open("a", encoding="utf-8"))
            bar = files.enter_context(tqdm(desc=task.name, unit="row", disable=None))
            for (row, body), (text, limited) in in_order(rows_and_bodies(), answer, concurrency):
                counts.update(prediction_counts([text], [limited]))
                counts["replaced_prediction"] += "prediction" in row
                counts["nan"] += without_nan(row) != row
                if "prediction" not in body:
                    write_line(written, row | {"prediction": text})
                    written.flush()
                bar.update()
        if not counts["rows"]:
            raise no_rows(source)
        os.replace(partial, file)
        report_counts(counts)


def load_embeddings(folder: str | Path, *, trust_remote_code: bool = False) -> nn.Module:
    """Return the embedding layer of an export, from whose output another copy of the base model can be asked.

    Raises:
        ModelError: the export cannot be loaded, or its tokens also have vectors in layers.
    """
    args = ModelArguments(model_name_or_path=str(folder), dtype="auto", trust_remote_code=trust_remote_code)
    model = load_base_model(args, load_config(args))
    if isinstance(model, LayeredLlamaForCausalLM):
        raise ModelError(f"{folder}: its tokens have vectors in every layer, known by their ids. Send token ids.")
    return model.get_input_embeddings()


def _encode(embeddings: nn.Module, ids: list[int]) -> str:
    """Return the embeddings `[P + T, H]` of token ids as vLLM takes them."""
    buffer = io.BytesIO()
    torch.save(embeddings(torch.tensor(ids)).clone(), buffer)  # The file of a view would hold the whole table.
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _text(task: ExportedTask, ids: list[int], origin: str) -> str:
    """Return token ids as text; raise a DataError if a server would make other ids of it."""
    tokenizer = task.encoder.tokenizer
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if tokenizer(text).input_ids != ids:
        raise DataError(f"{origin}: tokenized again, its text has other token ids. Leave --text out.")
    return text


@contextmanager
def _explain_kept(partial: Path) -> Iterator[None]:
    """Raise a DataError that names the kept answers if the disk takes no more of them."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_LIMITS:
            raise
        raise DataError(
            f"{partial}: {error.strerror}. Its answers are kept: free some space, and run the same command again."
        ) from error


def _ask_rows(task: ExportedTask, rows: Iterable[OriginAndRow | None], counts: Counter[str]) -> Iterator[AskedRow]:
    """Yield each row of a task with its question, as soon as it is there."""

    def read(origin: str, row: dict[str, Any]) -> Question:
        return read_row(task.encoder, task.data, origin, row)

    return filter(None, ask_rows(rows, read, counts))


def _answered(partial: Path) -> deque[dict[str, Any]]:
    """Return the rows that were answered before a break, and cut a line that was not written to its end.

    Raises:
        DataError: a line is no answered row.
    """
    if partial.is_symlink():
        partial.unlink()  # A stranger's link may lead to a file of the user.
    if not partial.is_file():
        return deque()
    lines = partial.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        os.truncate(partial, sum(map(len, lines[:-1])))
    return deque(read_json_lines(partial, PredictedRow))


def _check_answered(row: dict[str, Any], answered: dict[str, Any], origin: str, partial: Path) -> None:
    """Raise a DataError unless the row is the answered one."""
    written = json.loads(json.dumps(without_nan(row), ensure_ascii=False, default=str))
    if {**written, "prediction": None} != {**answered, "prediction": None}:
        raise DataError(f"{partial}: it holds answers of other rows ({origin} differs). Remove it.")
