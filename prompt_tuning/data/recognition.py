"""Recognise the task of rows, their columns and their languages, each with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice, permutations, repeat
from statistics import median
from typing import Any

from prompt_tuning.data.languages import LANGUAGE_OF_NAME, guess_language
from prompt_tuning.errors import DataError, TemplateError
from prompt_tuning.metrics.language import language_of_script
from prompt_tuning.support.text import counted, listed, normalised, words
from prompt_tuning.templates.conversations import MESSAGES, as_conversation, is_conversation
from prompt_tuning.templates.languages import LANGUAGES
from prompt_tuning.templates.shapes import COLUMN_SETTINGS, as_answers, as_translation, language_pair

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
SOURCE_NAMES = {"source", "src", "input", "原文"}
TARGET_NAMES = {"target", "tgt", "trg", "output", "译文", "translation"}
TASK_SETTINGS = {
    "question_answering": ("context_column", "question_column", "answer_column"),
    "summarization": ("text_column", "summary_column"),
    "translation": ("source_lang", "source_column", "target_lang", "target_column"),
}
"""The settings that only one task has."""

QUESTION_MARK = re.compile(r"[?？؟]\s*$")

MOST = 0.5
"""The least share of the rows for which a rule has to hold."""

SHORTER = 0.6
"""The largest length of a summary, as a share of its document's length, in the median."""

MOST_ANSWER_WORDS = 8
"""The most words, in the median, of answers that are scored as right or wrong."""

LEAST_WORDS = 3
"""The least words of a summary or a sentence, in the median. Categories and names have fewer."""

MOST_TIMES_AS_LONG = 4
"""The largest ratio of the lengths of two sides of a translation; Chinese takes a third of the letters of English."""

UNKNOWN = ""

MOST_COLUMNS = 10
"""The number of columns that are compared with each other."""

Texts = dict[str, list[str]]
"""The text of every row, by column."""


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
        sides = _sides_of_column(rows)
        if sides:
            return _translation(sides, f"The column translation has texts in {_names_of(sides)}.", set_by_user)
    if "question_answering" in tasks:
        names = _named("question_answering", texts, set_by_user)
        if names:
            return _with_columns("question_answering", names, _naming(names), texts)
    if "translation" in tasks:
        sides = _sides_by_name(rows[0], texts, set_by_user)
        if sides:
            return _translation(sides, f"Columns are named by languages: {_names_of(sides)}.", set_by_user)
    if "summarization" in tasks:
        names = _named("summarization", texts, set_by_user)
        if names:
            return _with_columns("summarization", names, _naming(names), texts)
    return _by_texts(tasks, texts, set_by_user)


def texts_by_column(rows: Sequence[Mapping[str, Any]]) -> Texts:
    """Return the first text of every value, by column. A row without one has an empty text.

    Columns without any text are left out.
    """
    columns = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):
        texts = [_first_text(row.get(name)) for row in rows]
        if any(map(words, texts)):
            columns[name] = texts
    return columns


def _first_text(value: Any) -> str:
    answers = as_answers(value)
    texts = answers["text"] if isinstance(answers, Mapping) and "text" in answers else None
    first = texts[0] if isinstance(texts, list) and texts else None
    return first if isinstance(first, str) else ""


def _tasks_of_settings(set_by_user: Mapping[str, Any]) -> list[str]:
    """Return the tasks that the columns and languages that a user has set belong to; all of them without any."""
    for task, settings in TASK_SETTINGS.items():
        if not set_by_user.keys().isdisjoint(settings):
            return [task]
    return [*TASK_SETTINGS]


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
        sides = _sides_by_text(some)
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
        advice.append(f"--task {task}, --{', --'.join(TASK_SETTINGS[task])}")
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


@dataclass(frozen=True)
class _Side:
    """One language of a translation, in a column of its own if `column` is not None."""

    code: str
    texts: list[str]
    column: str | None = None

    def __str__(self) -> str:
        """Return its name for a message."""
        return self.column or self.code


def _sides_of_column(rows: Sequence[Mapping[str, Any]]) -> list[_Side]:
    """Return the languages of the column `translation`; none if it does not hold several."""
    texts: dict[Any, list[str]] = {}
    for row in rows:
        pair = as_translation(row.get("translation"))
        if not isinstance(pair, Mapping):
            return []
        texts = texts or {code: [] for code in pair}
        for code, of_language in texts.items():
            of_language.append(_first_text(pair.get(code)))
    return list(map(_Side, map(str, texts), texts.values())) if len(texts) > 1 else []


def _sides_by_name(first: Mapping[str, Any], texts: Texts, set_by_user: Mapping[str, Any]) -> list[_Side]:
    """Return the columns that a user names or that are named by languages; none if these are not at least two."""
    source, target = set_by_user.get("source_column"), set_by_user.get("target_column")
    if source in texts and target in texts:
        return [_side_by_text(source, texts), _side_by_text(target, texts)]
    if {"sourceLang", "targetLang"} <= first.keys() and {"sourceString", "targetString"} <= texts.keys():
        source = _Side(str(first["sourceLang"]), texts["sourceString"])
        return [source, _Side(str(first["targetLang"]), texts["targetString"])]
    sides = []
    for column in texts:
        code = column.removeprefix("sentence_")
        base = re.split(r"[-_]", code)[0]
        # The code of Indonesian, id, is also a usual name of a column that holds no language.
        if base == "id" and guess_language(texts[column]) != "id":
            continue
        if base.isascii() and base.lower() in LANGUAGES and language_pair(first, code):
            sides.append(_Side(code, texts[column]))
        elif column.strip().casefold() in LANGUAGE_OF_NAME:
            sides.append(_Side(LANGUAGE_OF_NAME[column.strip().casefold()], texts[column], column))
    return sides if len(sides) > 1 else []


def _sides_by_text(texts: Texts) -> list[_Side]:
    """Return two columns of similar length that are in different languages; none if there are no two such columns."""
    for first, second in combinations(map(_side_by_text, texts, repeat(texts)), 2):
        shorter, longer = sorted((_length(first.texts), _length(second.texts)))
        has_two_languages = first.code != second.code and UNKNOWN not in (first.code, second.code)
        if has_two_languages and longer <= MOST_TIMES_AS_LONG * shorter:
            return [first, second]
    return []


def _side_by_text(column: str, texts: Texts) -> _Side:
    code = LANGUAGE_OF_NAME.get(column.strip().casefold()) or guess_language(texts[column]) or UNKNOWN
    return _Side(code, texts[column], column)


def _translation(sides: Sequence[_Side], reason: str, set_by_user: Mapping[str, Any]) -> Recognized:
    """Return the translation from the first side into the second one, unless names or a user say otherwise.

    Raises:
        DataError: the language of a column is unknown.
    """
    first, second = _ordered(sides, set_by_user)
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


def _ordered(sides: Sequence[_Side], set_by_user: Mapping[str, Any]) -> tuple[_Side, _Side]:
    """Return the side to translate from and the side to translate into."""
    others = sorted(sides, key=_place)
    target = _with_code(others, set_by_user.get("target_lang"))
    if target:
        others.remove(target)
    source = _with_code(others, set_by_user.get("source_lang")) or others[0]
    others.remove(source)
    return source, target or others[0]


def _place(side: _Side) -> int:
    """Return 0 for a column named as a source, 2 for one named as a target, 1 for others."""
    name = _plain(side.column or "")
    return 0 if name in SOURCE_NAMES else 2 if name in TARGET_NAMES else 1


def _with_code(sides: Sequence[_Side], code: str | None) -> _Side | None:
    return next(filter(lambda side: side.code == code, sides), None)


def _plain(column: str) -> str:
    return re.sub(r"[\s_-]", "", column.casefold())


def _names_of(sides: Sequence[_Side]) -> str:
    return ", ".join(map(str, sides))


def _named(task: str, texts: Texts, set_by_user: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the columns of a task that a user or their usual names tell; None if one is missing."""
    names: dict[str, str] = {}
    for standard in TASK_COLUMNS[task]:
        of_user = set_by_user.get(COLUMN_SETTINGS[standard])
        name = of_user or _usual(standard, texts.keys() - set(names.values()))
        if name not in texts:
            return None
        names[standard] = name
    return names


def _usual(standard: str, columns: Iterable[str]) -> str | None:
    """Return the column with the most telling of the usual names of a standard column; None if there is none."""
    columns = sorted(columns)
    by_name = dict(zip(map(_plain, columns), columns, strict=True))
    name = next(filter(by_name.__contains__, NAMES[standard].split()), None)
    return None if name is None else by_name[name]


def _naming(names: Mapping[str, str]) -> str:
    return f"The rows have the columns {', '.join(names.values())}."


def _questions(texts: Texts, set_by_user: Mapping[str, Any]) -> tuple[dict[str, str], str] | None:
    """Return the columns of questions whose answers are a part of another column, or yes and no, and the reason."""
    best: tuple[float, dict[str, str], str] | None = None
    for question, answers, context in permutations(texts, 3):
        names = {"question": question, "answers": answers, "context": context}
        asked = _share(QUESTION_MARK.search, texts[question])
        is_question = asked >= MOST or question in (set_by_user.get("question_column"), _usual("question", [question]))
        if not is_question or _contradicts(names, set_by_user):
            continue
        within = _share_within(texts[answers], texts[context])
        score, reason = within, f"{within:.0%} of the texts of {answers} are a part of {context}"
        if are_yes_or_no(texts[answers]) and _length(texts[context]) > _length(texts[question]):
            score, reason = 1.0, f"the texts of {answers} are yes and no"
        score += _length(texts[context]) / 1e6  # The context is the longer of two columns that hold the answers.
        if score >= MOST and (best is None or score > best[0]):
            best = (score, names, f"{asked:.0%} of the texts of {question} end with a question mark, and {reason}.")
    return None if best is None else best[1:]


def _summary(texts: Texts, set_by_user: Mapping[str, Any]) -> tuple[dict[str, str], str] | None:
    """Return the columns of a long text and of a much shorter one that differs from row to row, and the reason."""
    sentences = sorted(filter(lambda name: _are_sentences(texts[name]), texts), key=lambda name: -_length(texts[name]))
    for document, summary in combinations(sentences, 2):
        names = {"document": document, "summary": summary}
        ratio = _length(texts[summary]) / _length(texts[document])
        if ratio <= SHORTER and not _contradicts(names, set_by_user):
            return names, f"A text of {summary} has {ratio:.0%} of the length of {document}, in the median."
    return None


def _contradicts(names: Mapping[str, str], set_by_user: Mapping[str, Any]) -> bool:
    """Return True if a user has named another column than one of these."""
    return any(set_by_user.get(COLUMN_SETTINGS[standard], name) != name for standard, name in names.items())


def _share(holds: Callable[[str], object], texts: Sequence[str]) -> float:
    """Return the share of the texts, of those that are not empty, for which a function holds."""
    filled = list(filter(str.strip, texts))
    return sum(map(bool, map(holds, filled))) / len(filled) if filled else 0.0


def _share_within(parts: Sequence[str], wholes: Sequence[str]) -> float:
    """Return the share of rows whose part is a proper part of the whole, of those that have a part."""
    num_parts = num_within = 0
    for part, whole in zip(map(normalised, parts), map(normalised, wholes), strict=True):
        num_parts += part != ""
        num_within += part != "" and part != whole and part in whole
    return num_within / max(num_parts, 1)


def are_yes_or_no(texts: Sequence[str]) -> bool:
    """Return True if every text is yes or no, or 是 or 否, and both occur."""
    return set(map(normalised, texts)) in ({"yes", "no"}, {"是", "否"})


def _length(texts: Sequence[str]) -> float:
    return median(map(len, texts))


def _are_sentences(texts: Sequence[str]) -> bool:
    """Return True if most texts have several words and differ from each other, unlike categories and names."""
    return median(map(len, map(words, texts))) >= LEAST_WORDS and len(set(texts)) >= MOST * len(texts)
