"""Read answers, translations, documents and conversations in the shapes that public data sets have.

A template says which shape it expects by what it reads: one that reads `answers.text` takes answers of any shape, and
one that reads `answers[0]` gets the column as it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import jinja2.nodes

from prompt_tuning.templates.columns import item_key
from prompt_tuning.templates.conversations import MESSAGES, PARTS, as_conversation
from prompt_tuning.templates.sandbox import environment
from prompt_tuning.templates.values import is_nan, kind_of

COLUMN_SETTINGS = {
    "document": "text_column",
    "summary": "summary_column",
    "context": "context_column",
    "question": "question_column",
    "answers": "answer_column",
    MESSAGES: "messages_column",
}


def standard_columns(settings: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the data's name of every standard column; None for one that no setting names.

    In a translation of two columns the standard name of each is the code of its language.

    Args:
        settings: the settings of COLUMN_SETTINGS, source_lang, source_column, target_lang and target_column by name.
    """
    columns = {standard: settings[setting] for standard, setting in COLUMN_SETTINGS.items()}
    for side in ("source", "target"):
        code = settings[f"{side}_lang"]
        if code:
            columns[code] = settings[f"{side}_column"]
    return columns


def standard_shapes(row: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Return a row with answers, translation, document and messages in the shape that a template expects.

    A value of an unknown shape stays as it is, so that the template names it when it needs it.

    Args:
        row: values by column.
        texts: the Jinja texts of the template.

    Raises:
        TemplateError: messages is not a conversation that can be read.
    """
    row = dict(row)
    for text in texts:
        for column, reader in _readers(text).items():
            if column in row:
                row[column] = reader(row[column])
    return row


def shape_hint(message: str, values: Mapping[str, Any]) -> str:
    """Return the shape that a column of an error has, and the shape that it needs; empty for other errors.

    Args:
        message: Jinja's message of the error.
        values: the variables of the template by name.
    """
    missing = re.search(r"has no (?:attribute|element) '(.+)'$", message)
    name = missing[1] if missing else ""
    answers, translation = values.get("answers", {"text": []}), values.get("translation")
    is_readable = isinstance(answers, Mapping) and "text" in answers
    if name == "answer" and isinstance(values.get(MESSAGES), Mapping):
        return ". The last turn of messages must be the assistant's, except in rows to predict"
    if name == "text" and not is_readable:
        return f". The column answers holds {kind_of(answers)}. Write a text, a list of texts, or {{text: [...]}}"
    if not name or name not in (values.get("source_lang"), values.get("target_lang")):
        return ""
    if isinstance(translation, Mapping):
        languages = ", ".join(map(repr, translation)) or "none"
        return f". The languages of the column translation are {languages}. Set source_lang and target_lang to two"
    return f". The column translation holds {kind_of(translation)}. Write {{code: text}} with the codes of both"


def with_translation(row: Mapping[str, Any], source_lang: str | None, target_lang: str | None) -> Mapping[str, Any]:
    """Return a row with a column `translation` made of its `language_pair`, if it has none.

    Args:
        row: values by column. One to predict on may lack the target.
        source_lang: code of the language to translate from.
        target_lang: code of the language to translate into.
    """
    pair = language_pair(row, source_lang, target_lang)
    return row if "translation" in row or source_lang not in pair else {**row, "translation": pair}


def language_pair(row: Mapping[str, Any], *codes: str | None) -> dict[str, Any]:
    """Return by language what a row holds in a column for each language.

    It is named by its code, as in FLORES (`sentence_eng_Latn`), or as in TICO-19 (`sourceString`, with `sourceLang`).
    """
    pair = {}
    for code in filter(None, codes):
        columns = [code, f"sentence_{code}"]
        for side in ("source", "target"):
            if row.get(f"{side}Lang") == code:
                columns.append(f"{side}String")
        for column in columns:
            if column in row:
                pair[code] = row[column]
    return pair


@functools.lru_cache(maxsize=512)
def _readers(text: str) -> dict[str, Callable[[Any], Any]]:
    """Return the function that reads each column of which a Jinja text expects a shape."""
    tree = environment().parse(text)
    printed: list[jinja2.nodes.Node] = []
    for output in tree.find_all(jinja2.nodes.Output):
        printed += output.nodes
    readers: dict[str, Callable[[Any], Any]] = {}
    items: list[Any] = [*tree.find_all(jinja2.nodes.Getattr), *tree.find_all(jinja2.nodes.Getitem)]
    prints_text = False
    for item in items:
        if _is_name(item.node, "translation"):
            readers["translation"] = as_translation
        if _is_name(item.node, "answers") and item_key(item) == "text":
            readers["answers"] = as_answers
            prints_text = prints_text or item in printed
        if _is_name(item.node, MESSAGES) and item_key(item) in PARTS:
            readers[MESSAGES] = as_conversation
    if prints_text:
        # A template that prints `answers.text` expects one text there.
        del readers["answers"]
    for node in printed:
        if _is_name(node, "document"):
            readers["document"] = _document
    return readers


def _is_name(node: jinja2.nodes.Node, name: str) -> bool:
    return isinstance(node, jinja2.nodes.Name) and node.name == name


def as_answers(value: Any) -> Any:
    """Return answers as `{text: [...]}`. An empty list of them is a question without an answer."""
    if isinstance(value, Mapping):
        texts = value.get("text")
        answers = {**value, "text": [texts] if isinstance(texts, str) else texts}
    else:
        answers = {"text": list(map(_answer, value if isinstance(value, list) else [value]))}
    return answers if _is_texts(answers["text"]) else value


def _answer(value: Any) -> Any:
    """Return one answer as a text: yes or no for a truth value, a number as it is printed, the text of a mapping."""
    if isinstance(value, Mapping):
        return value.get("text")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and value.startswith(("{'text'", '{"text"')):
        return None  # It is a cell of a csv file that a program filled with a mapping.
    return str(value) if isinstance(value, int | float) and not is_nan(value) else value


def as_translation(value: Any) -> Any:
    """Return a translation as `{code: text}`, or `{code: [text, ...]}` for a language with several."""
    if isinstance(value, Mapping) and set(value) == {"language", "translation"}:
        pairs = list(zip(value["language"], value["translation"], strict=False))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        pairs = list(chain.from_iterable(map(_pairs, value)))
    else:
        return value
    texts: dict[str, list[Any]] = {}
    for code, text in pairs:
        texts.setdefault(code, []).append(text)
    return {code: several if len(several) > 1 else several[0] for code, several in texts.items()}


def _pairs(item: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the codes and texts of an item: `{language: fr, text: ...}` or `{fr: ...}`."""
    code = item.get("language", item.get("lang"))
    return list(item.items()) if code is None else [(code, item.get("text", item.get("translation")))]


def _document(value: Any) -> Any:
    """Return a document that is a list of sentences as one text."""
    return " ".join(value) if value and _is_texts(value) else value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
