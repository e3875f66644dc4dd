"""Answer one row by several prompts of a run, token by token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import torch
from peft import PeftModel
from transformers.generation.streamers import BaseStreamer

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.decoding import decode
from prompt_tuning.engine.calls import setting
from prompt_tuning.engine.dispatch import get_base, has_prompt
from prompt_tuning.errors import PromptTuningError
from prompt_tuning.page.prompts import Segment, prompt_segments, start_ids
from prompt_tuning.page.rows import (
    Box,
    EvaluatedRow,
    RowScore,
    boxes_of,
    evaluated_rows,
    row_labels,
    row_of_boxes,
    row_score,
)
from prompt_tuning.reports.run_files import read_results, read_settings
from prompt_tuning.runs.answers import Answer, Question, Task, read_question
from prompt_tuning.runs.named_runs import named_runs
from prompt_tuning.runs.predictor import Predictor
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import REPLACEMENT

HARD, TRAINED, AS_TEXT = "hard prompt", "trained prompt", "demonstrations as text"
"""The systems that the page compares."""


@dataclass(frozen=True)
class Piece:
    """An answer as far as it is written.

    Args:
        text: the text so far.
        new_tokens: the number of tokens so far; None if a choice was made, or beams were searched.
        seconds: the time so far.
        is_whole: the answer is complete.
    """

    text: str
    new_tokens: int | None
    seconds: float
    is_whole: bool = False


@dataclass(frozen=True)
class TriedRun:
    """A run that the page shows.

    Args:
        name: its name in the menu.
        task: how its rows are read and answered.
        systems: the systems that its rows are answered by, each with the title of its column.
        num_virtual_tokens: the number of its virtual tokens.
        start: the ids of the text that these started from; none if there is no such text.
        score: the metric of its task; None if it is not known.
        rows: its evaluated rows, the worst first.
        problem: why it has no rows; empty if it has some.
    """

    name: str
    task: Task
    systems: Mapping[str, str]
    num_virtual_tokens: int
    start: Sequence[int]
    score: RowScore | None
    rows: Sequence[EvaluatedRow]
    problem: str = ""

    @property
    def boxes(self) -> list[Box]:
        """The fields for a row."""
        return boxes_of(self.task.encoder, self.rows)

    @property
    def labels(self) -> list[str]:
        """A line for each row."""
        return row_labels(self.rows, self.boxes, self.score)

    def row(self, clicked: int | None, reference: str, texts: Sequence[str]) -> tuple[dict[str, Any], Sequence[str]]:
        """Return the row that a user has written or clicked, and its references.

        Args:
            clicked: the number of the clicked row; None if the user wrote one.
            reference: the text of its field.
            texts: the texts of the boxes.

        Raises:
            DataError: a box does not hold a value of its column.
        """
        values = {} if clicked is None else self.rows[clicked].values
        references: Sequence[str] = [reference] if reference.strip() else []
        if clicked is not None and reference == "\n".join(self.rows[clicked].references):
            references = self.rows[clicked].references
        return row_of_boxes(self.boxes, texts, values), references

    def question(self, system: str, row: dict[str, Any]) -> Question:
        """Return a row as token ids, as a system reads it.

        Raises:
            TemplateError: the row lacks a column or does not fit its budget.
        """
        question = read_question(self.encoder(system), self.task.data, row, self.name)
        return replace(question, source=[*self.start, *question.source]) if system == AS_TEXT else question

    def encoder(self, system: str) -> Any:
        """Return what writes rows for a system; only the trained prompt reads trained text."""
        encoder = self.task.encoder
        return encoder if system == TRAINED else replace(encoder, trained_text=None)

    def is_changed(self, row: EvaluatedRow) -> bool:
        """Return whether a row of the data is no longer read as the run read it."""
        encoder, _ = self.task.encoder.fit_demonstrations(row.values)
        return encoder.control.plain(encoder.cut_source(row.values).text) != row.source

    def segments(self, system: str, question: Question) -> list[Segment]:
        """Return the prompt as the model sees it."""
        count = self.num_virtual_tokens if system == TRAINED else 0
        return prompt_segments(self.encoder(system), question.source, count, self.start)

    def facts(self, system: str, question: Question, piece: Piece, references: Sequence[str]) -> str:
        """Return tokens, seconds and, of a complete answer to a row with a reference, its score."""
        read = len(question.source) + (self.num_virtual_tokens if system == TRAINED else 0)
        facts = [f"{read} tokens read"]
        if piece.new_tokens is not None:
            facts.append(f"{piece.new_tokens} written")
        facts.append(f"{piece.seconds:.2f} s")
        if question.cut_tokens:
            facts.append(f"{question.cut_tokens} tokens cut")
        if question.omitted_demonstrations:
            facts.append(f"{question.omitted_demonstrations} demonstrations omitted")
        if piece.is_whole and references and self.score:
            facts.append(f"{self.score.metric} {self.score(piece.text, references):.1f}")
        return ", ".join(facts)


@dataclass(frozen=True)
class Trial:
    """Runs of one base model, and what each of their prompts answers. Threads may share it; they take turns.

    Args:
        predictor: the model with the prompts.
        runs: the runs by their names.
    """

    predictor: Predictor
    runs: Mapping[str, TriedRun]
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(
        cls, runs: Sequence[str], model_name_or_path: str | None = None, *, trust_remote_code: bool = False
    ) -> Trial:
        """Load runs with their base model.

        Args:
            runs: of each its folder or hub id, or NAME=RUN.
            model_name_or_path: the base model, if it is no longer where it was.
            trust_remote_code: run the Python code that is with the model.

        Raises:
            PromptTuningError: a run cannot be loaded, or the runs have no base model in common.
        """
        folders = named_runs(runs)
        words: Any = [f"{name}={folder.path}" for name, folder in folders.items()] if len(runs) > 1 else runs[0]
        predictor = Predictor.load(words, model_name_or_path, trust_remote_code=trust_remote_code)
        tasks = dict(zip(folders, predictor.all_tasks.values(), strict=True))
        tried = {name: _tried_run(name, folders[name], task, predictor.model) for name, task in tasks.items()}
        return cls(predictor, tried)

    def answer(self, run: TriedRun, system: str, question: Question) -> Iterator[Piece]:
        """Yield an answer as it is written; the last piece is complete, and its text is that of `predict`.

        A caller that stops early stops the model after its current token.
        """
        started = time.perf_counter()
        streams = not run.task.encoder.closed and self._num_beams(run.task) == 1
        tokens = _Tokens()
        results: list[Answer | BaseException] = []

        def work() -> None:
            try:
                results.append(self._answer(run, system, question, {"streamer": tokens} if streams else {}))
            except BaseException as error:
                results.append(error)
            tokens.finish()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        encoder = run.task.encoder
        ids: list[int] = []
        try:
            for new in tokens.received():
                ids += new
                text = decode([ids], encoder.tokenizer, encoder.template.stop)[0]
                yield Piece(text.rstrip(REPLACEMENT), len(ids), time.perf_counter() - started)
        finally:
            tokens.stopped.set()
            thread.join()
        result = results[0]
        if isinstance(result, BaseException):
            raise result
        yield Piece(result.text, len(ids) if streams else None, time.perf_counter() - started, is_whole=True)

    def _num_beams(self, task: Task) -> int:
        return setting(get_base(self.predictor.model), dict(task.generation_kwargs), "num_beams", 1)

    def _answer(self, run: TriedRun, system: str, question: Question, settings: dict[str, Any]) -> Answer:
        """Return the answer of a system to one row; `settings` are further arguments of `generate`."""
        task = replace(
            run.task, encoder=run.encoder(system), generation_kwargs=dict(run.task.generation_kwargs) | settings
        )
        model = self.predictor.model
        with self._turn, nullcontext() if system == TRAINED else model.disable_adapter():
            return replace(self.predictor, tasks={run.name: task}).answers([question])[0]


class _Stopped(Exception):
    """Nobody waits for the answer."""


class _Tokens(BaseStreamer):
    """Pass the new tokens of one row from the thread that generates them to another."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._queue: Queue[list[int] | None] = Queue()
        self._has_source = False

    def put(self, value: torch.Tensor) -> None:
        """Take new ids; the first that `generate` gives are those of the source."""
        if self.stopped.is_set():
            raise _Stopped
        if self._has_source:
            self._queue.put(value.flatten().tolist())
        self._has_source = True

    def end(self) -> None:
        """Do nothing: the thread has still to decode the answer."""

    def finish(self) -> None:
        """Take the end of the thread's work."""
        self._queue.put(None)

    def received(self) -> Iterator[list[int]]:
        """Yield all new ids that have come since the last time, until the end."""
        while True:
            waiting = [self._queue.get()]
            try:
                while True:
                    waiting.append(self._queue.get_nowait())
            except Empty:
                pass
            new: list[int] = []
            for ids in waiting:
                new += ids or []
            if new:
                yield new
            if None in waiting:
                return


def _tried_run(name: str, folder: RunFolder, task: Task, model: Any) -> TriedRun:
    """Return a run with its rows; without them, if only its prompt is there."""
    score, rows, problem = None, [], ""
    try:
        score = row_score(folder)
        rows = evaluated_rows(folder, task.data, score)
    except PromptTuningError as error:
        problem = str(error)
    base = get_base(model)
    if not isinstance(model, PeftModel):
        return TriedRun(name, task, {TRAINED: "Trained model"}, 0, [], score, rows, problem)
    config = model.peft_config[task.adapter or model.active_adapter]
    if not has_prompt(model):
        label = find_method(config.peft_type).label.removeprefix("with ")
        return TriedRun(name, task, {HARD: "Hard prompt", TRAINED: f"Trained: {label}"}, 0, [], score, rows, problem)
    settings = read_settings(folder)
    start = start_ids(folder, settings, base, task.encoder.tokenizer)
    systems = {HARD: "Hard prompt", TRAINED: "Trained prompt"}
    if start:
        is_shown = settings.get("init") in ("demonstrations", "template")
        systems[AS_TEXT] = "Demonstrations as text" if is_shown else "Starting text, untrained"
    return TriedRun(name, task, systems, config.num_virtual_tokens, start, score, rows, problem)


def run_words(words: Sequence[str]) -> list[str]:
    """Return the runs that a user named, with the tasks of a multitask run instead of the run.

    Raises:
        DataError: results.json of a run is not what a run writes.
    """
    runs = []
    for word in words:
        folder = RunFolder(Path(word))
        tasks = read_results(folder.path).get("tasks", ()) if folder.results.is_file() else ()
        runs += [str(folder.task(name).path) for name in tasks] or [word]
    return runs
