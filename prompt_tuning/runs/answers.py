"""Answer a batch of rows, which may be of several tasks behind prompts of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.loading import with_standard_columns
from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.encoding.decoding import decode, decode_to_limit, special_tokens
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.target_language import target_language
from prompt_tuning.engine.calls import setting
from prompt_tuning.engine.dispatch import autocasting, get_base, has_prompt
from prompt_tuning.engine.generation import generate_padded
from prompt_tuning.engine.likelihood import Normalization, choose, log_likelihoods
from prompt_tuning.engine.shared_prefix import SharedPrefixModel, reuse_prompts
from prompt_tuning.engine.stop_texts import StopTextsOfRows, limit_of_tokens, text_settings

READ_LIMIT = ("forced_eos_token_id", "exponential_decay_length_penalty")
"""Settings by which the limit of new tokens changes more of a text than its end."""


@dataclass(frozen=True)
class Task:
    """How the rows of a run are read and answered.

    Args:
        encoder: writes rows as token ids.
        generation_kwargs: the arguments of `generate`, as `Recipe.decoding` gives them.
        choice_normalization: the number by which the log-likelihood of a closed question's choice is divided.
        data: its column settings say what rows may call their columns, as in training.
        autocast: the numbers to compute in; None for those of the weights.
        adapter: the name of its adapter in a model that has several; else None.
    """

    encoder: Encoder
    generation_kwargs: Mapping[str, Any]
    choice_normalization: Normalization = "none"
    data: DataArguments = field(default_factory=DataArguments)
    autocast: Any = None
    adapter: str | None = None


@dataclass(frozen=True)
class Question:
    """A row as token ids.

    Args:
        source: the token ids of its source.
        choices: the texts that a closed question may be answered with.
        choice_ids: the token ids of every choice, as they follow the source.
        cut_tokens: the number of tokens that were cut to fit the budget.
        omitted_demonstrations: the number of demonstrations that do not fit the budget.
        untrained_tokens: the number of tokens of the trained text that no training row has.
        task: the name of the row's task among several.
        prompt: what is sent to a model behind an API; empty for a model that is loaded here.
    """

    source: list[int]
    choices: Sequence[str] = ()
    choice_ids: Sequence[list[int]] = ()
    cut_tokens: int = 0
    omitted_demonstrations: int = 0
    untrained_tokens: int = 0
    task: str = ""
    prompt: dict[str, Any] = field(default_factory=dict)


class Answer(NamedTuple):
    """The answer to a row.

    Attributes:
        text: what the model writes, or the choice that it takes.
        at_limit: only the limit of new tokens ended the text.
        truncated: the row was cut to fit max_source_tokens.
        score: the mean log-probability of the text's tokens, without its end; None for an empty text, and if scores
            were not asked for.
    """

    text: str
    at_limit: bool
    truncated: bool
    score: float | None = None


class Written(NamedTuple):
    """A text, the token ids that write it, and whether only the limit of new tokens ended it."""

    text: str
    ids: Sequence[int]
    at_limit: bool


def read_question(encoder: Encoder, data: DataArguments, row: dict[str, Any], task: str = "") -> Question:
    """Return a row as token ids.

    Args:
        encoder: writes it.
        data: says what the row may call its columns.
        row: the row.
        task: the name of its task among several.

    Raises:
        TemplateError: the row lacks a column or does not fit its budget.
    """
    row = with_standard_columns(row, data)
    encoder, omitted = encoder.fit_demonstrations(row)
    source = encoder.cut_source(row)
    choices, choice_ids = encoder.choices(row, source.text, source.ids) if encoder.closed else ([], [])
    prompt = encoder.api_prompt(source) if encoder.endpoint else {}
    return Question(source.ids, choices, choice_ids, source.cut_tokens, omitted, source.untrained_tokens, task, prompt)


def answer_batch(
    model: PeftModel | PreTrainedModel,
    tasks: Mapping[str, Task],
    questions: Sequence[Question],
    *,
    with_scores: bool,
) -> list[Answer]:
    """Answer questions in as few batches as their tasks allow.

    Args:
        model: the model, which no other thread uses meanwhile.
        tasks: the tasks by their names.
        questions: rows of these tasks.
        with_scores: also compute the score of each answer, by another forward.
    """
    answers: dict[int, Answer] = {}
    for numbers in _groups(model, tasks, questions):
        group = [questions[number] for number in numbers]
        first = tasks[group[0].task]
        with autocasting(model.device.type, first.autocast), reuse_prompts(model):
            if first.encoder.closed:
                written = _choose(model, first, group)
            else:
                written = _write(model, [tasks[question.task] for question in group], group)
            scores = _scores(model, tasks, group, written) if with_scores else [None] * len(group)
        for number, question, of_row, score in zip(numbers, group, written, scores, strict=True):
            answers[number] = Answer(of_row.text, of_row.at_limit, question.cut_tokens > 0, score)
    return list(dict(sorted(answers.items())).values())


def _groups(
    model: PeftModel | PreTrainedModel, tasks: Mapping[str, Task], questions: Sequence[Question]
) -> list[list[int]]:
    """Return the numbers of the questions that one batch takes, for each batch."""
    groups: dict[Any, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(_common(model, tasks[question.task]), []).append(number)
    return list(groups.values())


def _mixes(model: PeftModel | PreTrainedModel) -> bool:
    """Return whether rows of a batch may stand behind different prompts of this model."""
    return isinstance(model, SharedPrefixModel) and has_prompt(model)


def _common(model: PeftModel | PreTrainedModel, task: Task) -> tuple[Any, ...]:
    """Return what the rows of a batch must have in common."""
    if task.encoder.closed or not _mixes(model):
        return task.adapter, task.encoder.closed
    base = get_base(model)
    settings = dict(task.generation_kwargs)
    limit: Any = settings.pop("max_new_tokens", None)
    stop = task.encoder.template.stop
    # Rows with other limits and stop texts are cut at their own afterwards.
    if (
        limit
        and setting(base, settings, "num_beams", 1) == 1
        and not any(setting(base, settings, name) for name in READ_LIMIT)
    ):
        limit = True
        stop = ()
    return limit, stop, task.autocast, str(sorted(settings.items()))


def _choose(model: PeftModel | PreTrainedModel, task: Task, questions: Sequence[Question]) -> list[Written]:
    """Return the likeliest choice of each question of one task."""
    _activate(model, task)
    rows = [(question.source, question.choices, question.choice_ids) for question in questions]
    best = choose(model, task.encoder.tokenizer, *zip(*rows, strict=True), normalization=task.choice_normalization)
    written = []
    for question, number in zip(questions, best, strict=True):
        written.append(Written(question.choices[number], question.choice_ids[number], at_limit=False))
    return written


def _write(model: PeftModel | PreTrainedModel, tasks: Sequence[Task], questions: Sequence[Question]) -> list[Written]:
    """Return what the model writes after each source, each cut at the limit and the stop texts of its own task."""
    first = tasks[0]
    tokenizer = first.encoder.tokenizer
    sources, stops, adapters = [], [], []
    limits: list[Any] = []
    for task, question in zip(tasks, questions, strict=True):
        sources.append(question.source)
        stops.append(tuple(task.encoder.template.stop))
        adapters.append(task.adapter)
        limits.append(task.generation_kwargs.get("max_new_tokens"))
    settings = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id} | dict(first.generation_kwargs)
    if limits[0] is not None:
        settings["max_new_tokens"] = max(limits)
    if first.adapter is not None and _mixes(model):
        settings["adapter_names"] = adapters
    else:
        _activate(model, first)
    stop = stops[0]
    if len(set(stops)) > 1:
        settings["stopping_criteria"] = [StopTextsOfRows(tokenizer, stops)]
        stop = ()
    rows = generate_ids(model, tokenizer, sources, stop, **settings)
    written = []
    for task, row, limit in zip(tasks, rows, limits, strict=True):
        of_task = task.encoder
        num_written = limit_of_tokens(model, task.generation_kwargs)
        (text,), (at_limit,) = decode_to_limit([row[:limit]], of_task.tokenizer, of_task.template.stop, num_written)
        written.append(Written(text, row[:limit], at_limit))
    return written


def _activate(model: PeftModel | PreTrainedModel, task: Task) -> None:
    """Choose the adapter of a task in a model that has several."""
    if task.adapter is not None:
        model.set_adapter(task.adapter)


def generate_ids(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    stop: Sequence[str],
    **settings: Any,
) -> list[list[int]]:
    """Generate one batch, and return the new token ids of every row.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
        sources: the token ids of every source.
        stop: texts that a generated text ends before.
        settings: other arguments of `generate`.
    """
    if model.config.is_encoder_decoder:
        batch = tokenizer.pad({"input_ids": list(sources)}, return_tensors="pt", padding_side="right")
        start = 1
    else:
        batch = pad_left(sources, tokenizer.pad_token_id)
        start = batch["input_ids"].shape[1]
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    settings |= text_settings(model, tokenizer, stop, settings)
    return generate_padded(model, **batch, **settings)[:, start:].tolist()


def generate_texts(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    stop: Sequence[str],
    **settings: Any,
) -> list[str]:
    """Return the texts of `generate_ids`, whose arguments it takes."""
    return decode(generate_ids(model, tokenizer, sources, stop, **settings), tokenizer, stop)


def _scores(
    model: PeftModel | PreTrainedModel,
    tasks: Mapping[str, Task],
    questions: Sequence[Question],
    written: Sequence[Written],
) -> list[float | None]:
    """Return the mean log-probability of each text's tokens; None for an empty text."""
    scores: list[float | None] = [None] * len(questions)
    rows_of_tasks: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        if written[row].text:
            rows_of_tasks.setdefault(question.task, []).append(row)
    for name, rows in rows_of_tasks.items():
        task = tasks[name]
        tokenizer = task.encoder.tokenizer
        special = set(special_tokens(tokenizer).values())
        sources, continuations = [], []
        for row in rows:
            ids = text_ids(written[row], tokenizer)
            # Tokens such as that of a language stand before the text, and are not counted.
            before = list(takewhile(special.__contains__, ids))
            sources.append(questions[row].source)
            continuations.append([ids, before] if before else [ids])
        _activate(model, task)
        start = target_language(tokenizer).get("decoder_start_token_id")
        sums = log_likelihoods(model, sources, continuations, start)
        for row, (ids, *uncounted), (whole, *opening) in zip(rows, continuations, sums, strict=True):
            scores[row] = (whole - sum(opening)) / (len(ids) - sum(map(len, uncounted)))
    return scores


def text_ids(written: Written, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the first token ids that write a whole text, without its end and what follows."""
    ids = list(written.ids)
    while len(ids) > 1 and decode([ids[:-1]], tokenizer)[0].startswith(written.text):
        ids.pop()
    return ids
