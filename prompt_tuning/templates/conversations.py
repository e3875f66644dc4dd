"""Read a conversation: the turns before the last one of the user, that turn, and the assistant's answer to it.

The shape of a conversation is that of transformers' chat templates and of TRL: a list of `{role, content}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from prompt_tuning.errors import TemplateError
from prompt_tuning.support.jinja import JINJA_ERRORS
from prompt_tuning.support.text import listed
from prompt_tuning.templates.sandbox import compiled_expression
from prompt_tuning.templates.values import kind_of

MESSAGES = "messages"
"""The column that holds conversations."""

PARTS = ("history", "question", "answer")
"""What a template reads of a conversation."""

ROLES = ("system", "user", "assistant")
KEYS = ("role", "content")
WITHOUT_TOOLS = "Tool calls are not supported. Leave such rows out."


def is_conversation(value: Any) -> bool:
    """Return True if a value is a list of turns, whatever their roles are."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, Mapping) and {*KEYS} <= turn.keys() for turn in value)


def as_conversation(value: Any) -> Any:
    """Return turns as `{history: [turn, ...], question: text, answer: text}`.

    `question` is the last turn of the user. A conversation that ends with it has no `answer`.

    Raises:
        TemplateError: the value is not a list of turns, a turn is not only a role and a text, or the order of the
            turns leaves no question.
    """
    if (
        isinstance(value, Mapping)
        and isinstance(value.get("question"), str)
        and isinstance(value.get("answer", ""), str)
    ):
        return value  # It was read before.
    if not isinstance(value, list) or not value:
        found = "an empty list" if isinstance(value, list) else kind_of(value)
        raise TemplateError(f"{MESSAGES}: expected a list of turns {{role, content}}, found {found}.")
    turns = [_turn(number, turn) for number, turn in enumerate(value, 1)]
    for number, turn in enumerate(turns[1:], 2):
        if turn["role"] == "system":
            _refuse(number, "it is a system turn after others. Only the first turn may be one.")
    conversation: dict[str, Any] = {}
    if turns[-1]["role"] == "assistant":
        conversation["answer"] = turns.pop()["content"]
    if not turns or turns[-1]["role"] != "user":
        role = f"of the role {turns[-1]['role']!r}" if turns else "missing"
        _refuse(max(len(turns), 1), f"the turn before the answer is {role}. It must be of the role 'user'.")
    conversation["question"] = turns.pop()["content"]
    return conversation | {"history": turns}


def turns_of(expression: str | None, values: dict[str, Any]) -> list[dict[str, str]]:
    """Return the turns that an expression of a template names; none without an expression.

    Raises:
        TemplateError: it does not name a list of turns.
    """
    if expression is None:
        return []
    try:
        turns = [{key: turn[key] for key in KEYS} for turn in compiled_expression(expression)(values)]
    except JINJA_ERRORS as error:
        raise TemplateError(f"history: {error} in {expression!r}. Name a list of turns.") from None
    for turn in turns:
        if turn["role"] not in ROLES or not isinstance(turn["content"], str):
            raise TemplateError(f"history: {expression!r} has a turn that is not a role and a text. Name others.")
    return turns


def _turn(number: int, turn: Any) -> dict[str, str]:
    """Return a turn with its content as one text; keys without a value are ignored."""
    if not isinstance(turn, Mapping):
        _refuse(number, f"expected {{role, content}}, found {kind_of(turn)}.")
    filled = {key: value for key, value in turn.items() if value is not None and value != []}
    others = [key for key in filled if key not in KEYS]
    if others:
        advice = (
            WITHOUT_TOOLS if "tool" in str(others) or "function" in str(others) else "Name the keys role, content."
        )
        _refuse(number, f"it has {listed(list(map(str, others)))}, which is not read. {advice}")
    role = filled.get("role")
    if role not in ROLES:
        advice = WITHOUT_TOOLS if role in ("tool", "function") else f"The roles are {', '.join(ROLES)}."
        _refuse(number, f"its role is {role!r}. {advice}")
    return {"role": role, "content": _text(number, filled.get("content"))}


def _text(number: int, content: Any) -> str:
    """Return a content as one text, also that of a list of texts, `[{type: text, text: ...}]`."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    text = ""
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            found = kind_of(content) if kind in ("text", None) else f"a part of type {kind!r}"
            _refuse(number, f"its content is {found}. Write one text.")
        text += part["text"]
    return text


def _refuse(number: int, problem: str) -> NoReturn:
    raise TemplateError(f"{MESSAGES}, turn {number}: {problem}")
