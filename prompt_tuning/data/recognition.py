"""Recognise the task of rows, their columns and their languages, each with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice, permutations
from statistics import median
from typing import Any

from prompt_tuning.data.column_texts import (
    LEAST_SHARE,
    Texts,
    are_sentences,
    are_yes_or_no,
    median_length,
    plain_name,
    share,
    share_within,
    texts_by_column,
)
from prompt_tuning.data.language_sides import (
    UNKNOWN,
    Side,
    sides_by_name,
    sides_by_text,
    sides_of_column,
    source_and_target,
)
from prompt_tuning.data.languages import guess_language
from prompt_tuning.errors import DataError, TemplateError
from prompt_tuning.metrics.language import language_of_script
from prompt_tuning.support.text import counted, listed, words
from prompt_tuning.templates.conversations import MESSAGES, as_conversation, is_conversation
from prompt_tuning.templates.languages import LANGUAGES
from prompt_tuning.templates.shapes import COLUMN_SETTINGS

NAMES = {
    "question": "question query questions frage pregunta 问题 提问 問題 質問",
    "answers": "answers answer response reply antwort réponse respuesta label target 答案 回答 答え",
    "context": "context passage paragraph story article document text content abstract 上下文 段落 文章 原文 材料",
    "document": "document dialogue dialog conversation article text body content passage report 正文 文章 原文 文本 "
    "内容",
    "summary": "summary summaries highlights tldr abstract gist headline title 摘要 总结 概要 标题",
}
"""The names that columns usually have, the most telling first."""

TASK_COLUMNS = {"question_answering": ("question", "answers", "context"), "summarization": ("document", "summary")}
TARGETS = {"question_answering": "answers", "summarization": "summary", "translation": "target"}
SETTINGS_OF_ONE_TASK = {
    "question_answering": ("context_column", "question_column", "answer_column"),
    "summarization": ("text_column", "summary_column"),
    "translation": ("source_lang", "source_column", "target_lang", "target_column"),
}
"""The settings that only one task has."""

QUESTION_MARK = re.compile(r"[?？؟]\s*$")

SHORTER = 0.6
"""The largest length of a summary, as a share of its document's length, in the median."""

MOST_ANSWER_WORDS = 8
"""The most words, in the median, of answers that are scored as right or wrong."""

MOST_COLUMNS = 10
"""The number of columns that are compared with each other."""


@dataclass
class Recognized:
    """What is known of rows.

    Args:
        settings: the task, the columns and the languages, as a recipe names them.
        reasons: the reason of a setting, by its name.
        texts: the text of every row, by standard column; by `source` and `target` in a translation.
        choices: other values of a setting that nothing excludes.
    """

    settings: dict[str, str]
    reasons: dict[str, str]
    texts: Texts
    choices: dict[str, list[str]] = field(default_factory=dict)


def recognize(rows: Sequence[Mapping[str, Any]], set_by_user: Mapping[str, Any]) -> Recognized:
    """Return the task, the columns and the languages of rows.

    Args:
        rows: some rows, with all columns of the data.
        set_by_user: settings that are not guessed: the task, columns and languages.

    Raises:
        DataError: the rows do not show their task, or lack a column that it needs.
    """
    conversations = _conversations(rows, set_by_user)
    if conversations is not None:
        return conversations
    tasks = [set_by_user["task"]] if set_by_user.get("task") else _tasks_of_settings(set_by_user)
    texts = texts_by_column(rows)
    if "translation" in tasks:
        sides = sides_of_column(rows)
        if sides:
            return _translation(sides, f"The column translation has texts in {_names_of(sides)}.", set_by_user)
    recognized = _by_names("question_answering", tasks, texts, set_by_user)
    if recognized:
        return recognized
    if "translation" in tasks:
        sides = sides_by_name(rows[0], texts, set_by_user)
        if sides:
            return _translation(sides, f"Columns are named by languages: {_names_of(sides)}.", set_by_user)
    return _by_names("summarization", tasks, texts, set_by_user) or _by_texts(tasks, texts, set_by_user)


def _tasks_of_settings(set_by_user: Mapping[str, Any]) -> list[str]:
    """Return the tasks that the columns and languages that a user has set belong to; all of them without any."""
    for task, settings in SETTINGS_OF_ONE_TASK.items():
        if not set_by_user.keys().isdisjoint(settings):
            return [task]
    return [*SETTINGS_OF_ONE_TASK]


def _by_texts(tasks: Sequence[str], texts: Texts, set_by_user: Mapping[str, Any]) -> Recognized:
    """Return what the texts themselves show, whatever their columns are called.

    Raises:
        DataError: they show nothing.
    """
    some = dict(islice(texts.items(), MOST_COLUMNS))
    if "question_answering" in tasks:
        asked = _questions(some, set_by_user)
        if asked:
            return _with_columns("question_answering", *asked, texts)
    if "translation" in tasks:
        sides = sides_by_text(some)
        if sides:
            return _translation(
                sides, f"The texts of {_names_of(sides)} are of similar length and in two languages.", set_by_user
            )
    if "summarization" in tasks:
        shortened = _summary(some, set_by_user)
        if shortened:
            return _with_columns("summarization", *shortened, texts)
    advice = []
    for task in tasks:
        advice.append(f"--task {task}, --{', --'.join(SETTINGS_OF_ONE_TASK[task])}")
    raise DataError(
        f"the columns ({listed([*texts]) or 'none of them holds text'}) do not show {_task_or_columns(tasks)}. Set "
        f"{'; or '.join(advice)}."
    )


def _task_or_columns(tasks: Sequence[str]) -> str:
    return "the task" if len(tasks) > 1 else f"which of them {tasks[0].replace('_', ' ')} reads"


def _conversations(rows: Sequence[Mapping[str, Any]], set_by_user: Mapping[str, Any]) -> Recognized | None:
    """Return the column of conversations, and the task by whose metrics their answers are scored; None without one.

    Raises:
        DataError: a conversation cannot be read.
    """
    candidates = (name for name in rows[0] if all(is_conversation(row.get(name)) for row in rows))
    column = set_by_user.get("messages_column") or next(candidates, None)
    if column is None:
        return None
    try:
        turns = [as_conversation(row.get(column)) for row in rows]
    except TemplateError as error:
        raise DataError(f"column {column}: {error}") from None
    answers = [turn.get("answer", "") for turn in turns]
    usual = median(len(words(answer)) for answer in answers)
    task = set_by_user.get("task") or ("question_answering" if usual <= MOST_ANSWER_WORDS else "summarization")
    texts = {MESSAGES: [turn["question"] for turn in turns], TARGETS[task]: answers}
    reason = (
        f"The column {column} has conversations. Their answers have {counted(round(usual), 'word')} in the median, "
        f"so that the metrics of {task.replace('_', ' ')} suit them."
    )
    recognized = _with_columns(task, {name: name for name in texts}, reason, texts)
    recognized.settings["messages_column"] = column
    return recognized


def _with_columns(task: str, names: Mapping[str, str], reason: str, texts: Texts) -> Recognized:
    """Return a task of columns, with the language of its targets."""
    settings = {"task": task}
    for standard in COLUMN_SETTINGS:
        if names.get(standard, standard) != standard:
            settings[COLUMN_SETTINGS[standard]] = names[standard]
    standard_texts = dict(zip(names, map(texts.__getitem__, names.values()), strict=True))
    recognized = Recognized(settings, {"task": reason}, standard_texts)
    targets = recognized.texts[TARGETS[task]]
    # Answers of one word show their script, but seldom their language.
    language = language_of_script(targets) or guess_language(list(chain.from_iterable(recognized.texts.values())))
    if language and language != "und":
        settings["lang"] = language
        recognized.reasons["lang"] = (
            f"The rows are in {LANGUAGES.get(language, language)}, by their script and frequent words."
        )
    return recognized


def _translation(sides: Sequence[Side], reason: str, set_by_user: Mapping[str, Any]) -> Recognized:
    """Return the translation from the first side into the second one, unless names or a user say otherwise.

    Raises:
        DataError: the language of a column is unknown.
    """
    first, second = source_and_target(sides, set_by_user)
    settings = {"task": "translation"}
    for name, side in (("source", first), ("target", second)):
        settings[f"{name}_lang"] = set_by_user.get(f"{name}_lang") or side.code
        if side.column is not None and side.column != settings[f"{name}_lang"]:
            settings[f"{name}_column"] = side.column
        if settings[f"{name}_lang"] == UNKNOWN:
            raise DataError(
                f"the language of the column {side.column!r} is unknown. Set --{name}_lang, such as --{name}_lang fr."
            )
    texts = {"source": first.texts, "target": second.texts}
    codes = dict.fromkeys([settings["source_lang"]])
    for side in sides:
        codes[side.code] = None
    return Recognized(settings, {"task": reason}, texts, {"source_lang": [*codes]})


def _names_of(sides: Sequence[Side]) -> str:
    return ", ".join(map(str, sides))


def _by_names(task: str, tasks: Sequence[str], texts: Texts, set_by_user: Mapping[str, Any]) -> Recognized | None:
    """Return a task, if it is one of `tasks`, by columns that a user names or that have usual names; else None."""
    if task not in tasks:
        return None
    names: dict[str, str] = {}
    for standard in TASK_COLUMNS[task]:
        of_user = set_by_user.get(COLUMN_SETTINGS[standard])
        name = of_user or _usual(standard, texts.keys() - set(names.values()))
        if name not in texts:
            return None
        names[standard] = name
    return _with_columns(task, names, f"The rows have the columns {', '.join(names.values())}.", texts)


def _usual(standard: str, columns: Iterable[str]) -> str | None:
    """Return the column with the most telling of the usual names of a standard column; None if there is none."""
    columns = sorted(columns)
    by_name = dict(zip(map(plain_name, columns), columns, strict=True))
    name = next(filter(by_name.__contains__, NAMES[standard].split()), None)
    return None if name is None else by_name[name]


def _questions(texts: Texts, set_by_user: Mapping[str, Any]) -> tuple[dict[str, str], str] | None:
    """Return the columns of questions whose answers are a part of another column, or yes and no, and the reason."""
    best: tuple[float, dict[str, str], str] | None = None
    for question, answers, context in permutations(texts, 3):
        names = {"question": question, "answers": answers, "context": context}
        asked = share(QUESTION_MARK.search, texts[question])
        names_of_questions = (set_by_user.get("question_column"), _usual("question", [question]))
        is_question = asked >= LEAST_SHARE or question in names_of_questions
        if not is_question or _contradicts(names, set_by_user):
            continue
        within = share_within(texts[answers], texts[context])
        score, reason = within, f"{within:.0%} of the texts of {answers} are a part of {context}"
        if are_yes_or_no(texts[answers]) and median_length(texts[context]) > median_length(texts[question]):
            score, reason = 1.0, f"the texts of {answers} are yes and no"
        score += median_length(texts[context]) / 1e6  # The context is the longer of two columns that hold the answers.
        if score >= LEAST_SHARE and (best is None or score > best[0]):
            best = (score, names, f"{asked:.0%} of the texts of {question} end with a question mark, and {reason}.")
    return None if best is None else best[1:]


def _summary(texts: Texts, set_by_user: Mapping[str, Any]) -> tuple[dict[str, str], str] | None:
    """Return the columns of a long text and of a much shorter one that differs from row to row, and the reason."""
    sentences = [name for name in texts if are_sentences(texts[name])]
    sentences.sort(key=lambda name: -median_length(texts[name]))
    for document, summary in combinations(sentences, 2):
        names = {"document": document, "summary": summary}
        ratio = median_length(texts[summary]) / median_length(texts[document])
        if ratio <= SHORTER and not _contradicts(names, set_by_user):
            return names, f"A text of {summary} has {ratio:.0%} of the length of {document}, in the median."
    return None


def _contradicts(names: Mapping[str, str], set_by_user: Mapping[str, Any]) -> bool:
    """Return True if a user has named another column than one of these."""
    return any(set_by_user.get(COLUMN_SETTINGS[standard], name) != name for standard, name in names.items())
