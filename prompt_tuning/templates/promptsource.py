"""Convert templates of promptsource (Bach et al. 2022), `jinja: source ||| target`.

promptsource renders a row with the whole text and cuts the result at `|||`. A row to predict on has no target, so this
module cuts the text itself. Each part writes of a row what promptsource writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.nodes

from prompt_tuning.errors import TemplateError
from prompt_tuning.templates.columns import changes_value
from prompt_tuning.templates.sandbox import SEPARATOR

# promptsource writes this for each separator in the texts of a row. So its templates read it where a row has one.
PIPE_PROTECTOR = "3ed2dface8203c4c9dfb1a5dc58e41e0"
RANDOM_FILTERS = frozenset({"choice", "random"})
OPENING_TAGS = frozenset({"if", "for", "call", "filter", "with"})
_METHOD = re.compile(r"\.\s*(\w+)\s*\(")
# promptsource strips white space from the ends of choices.
_CHOICE = re.compile(r"\{\{\s*answer_choices\s*\[[^{}]*\]\s*\}\}")


@dataclass(frozen=True)
class _Piece:
    """A part of Jinja text: words, a printed expression, or a tag with its keyword."""

    text: str
    is_text: bool = False
    keyword: str = ""


def convert(entry: Any, name: str) -> dict[str, str]:
    """Return source, target and answer_choices of one entry of a file of promptsource.

    Args:
        entry: the entry, with the fields `jinja` and `answer_choices`.
        name: where it came from, for messages.

    Raises:
        TemplateError: the entry cannot be converted. The message says why.
    """
    jinja = entry.get("jinja") if isinstance(entry, dict) else None
    if not isinstance(jinja, str):
        raise TemplateError(f"template {name}: it has no text in the field jinja. Write one there.")
    try:
        tree = jinja2.Environment().parse(jinja)
        source, target = _split(jinja)
    except (jinja2.TemplateError, ValueError) as error:
        raise TemplateError(f"template {name}: {error}") from None
    filters = {node.name for node in tree.find_all(jinja2.nodes.Filter)}
    for random_filter in sorted(filters & RANDOM_FILTERS):
        raise TemplateError(
            f"template {name}: its filter {random_filter} draws at random, and a row must always give the same text. "
            "Take it out."
        )
    choices = entry.get("answer_choices")
    if isinstance(choices, list):  # The first files of promptsource have lists.
        choices = f" {SEPARATOR} ".join(map(str, choices))
    if choices is None and any(node.name == "answer_choices" for node in tree.find_all(jinja2.nodes.Name)):
        raise TemplateError(
            f"template {name}: it reads answer_choices and its field answer_choices is empty. Fill it."
        )
    fields = {"source": source, "target": target} | ({} if choices is None else {"answer_choices": choices})
    return {key: text.replace(PIPE_PROTECTOR, SEPARATOR) for key, text in fields.items()}


def _split(jinja: str) -> tuple[str, str]:
    """Return source and target; raise ValueError if the text cannot be cut."""
    parts: tuple[list[str], list[str]] = ([], [])
    side, _ = _divide(_pieces(jinja), 0, parts)
    if side == 0:
        raise ValueError(f"it has no {SEPARATOR} between source and target")
    return _stripped("".join(parts[0])), _stripped("".join(parts[1]))


def _divide(pieces: Iterator[_Piece], side: int | None, parts: tuple[list[str], list[str]]) -> tuple[int | None, str]:
    """Sort pieces into source and target, up to the tag that ends their block.

    Args:
        pieces: the rest of the text.
        side: 0 before the separator, 1 after it, None if that depends on the branch of an `if`.
        parts: the texts of source and target, which this function adds to.

    Returns:
        The side at the end, and the tag that ended the block.
    """
    for piece in pieces:
        if piece.is_text:
            side = _divide_text(piece.text, side, parts)
        elif piece.keyword.startswith("end") or piece.keyword in ("elif", "else"):
            return side, piece.text
        elif side is None:
            raise ValueError(f"more follows an if of which only some branches hold {SEPARATOR}")
        elif piece.keyword in OPENING_TAGS:
            side = _divide_block(piece, pieces, side, parts)
        elif piece.keyword == "macro" or (piece.keyword == "set" and "=" not in piece.text):
            raise ValueError(f"it has a {piece.keyword} block")
        else:
            parts[side].append(piece.text)
            if side == 0:
                parts[1].append(_without_printing(piece))  # The target may read what the source sets or changes.
    return side, ""


def _divide_text(text: str, side: int | None, parts: tuple[list[str], list[str]]) -> int | None:
    """Sort words into source and target, and return the side after them."""
    before, *after = text.split(SEPARATOR)
    if side is None and text.strip():
        raise ValueError(f"more follows an if of which only some branches hold {SEPARATOR}")
    if len(after) > 1 or (after and side):
        raise ValueError(f"it has more than one {SEPARATOR}")
    if side is not None:
        parts[side].append(before)
    parts[1].extend(after)
    return 1 if after else side


def _divide_block(
    opening: _Piece, pieces: Iterator[_Piece], side: int, parts: tuple[list[str], list[str]]
) -> int | None:
    """Sort a block into source and target, and return the side after it."""
    inner: tuple[list[str], list[str]] = ([], [])
    ends = set()
    tag = opening.text
    has_else = False
    while True:
        for part in inner:
            part.append(tag)
        end, tag = _divide(pieces, side, inner)
        ends.add(end)
        if _keyword(tag).startswith("end"):
            break
        has_else = has_else or _keyword(tag) == "else"
    for part in inner:
        part.append(tag)
    if ends != {side} and opening.keyword != "if":
        raise ValueError(f"its {SEPARATOR} stands inside a {opening.keyword} block")
    if not has_else:
        ends.add(side)
    sets = any(_keyword(text) == "set" or _changes(text) for text in inner[1])
    if side == 0:
        parts[0].extend(inner[0])
    if side == 1 or ends != {0} or sets:
        parts[1].extend(inner[1])
    return ends.pop() if len(ends) == 1 else None


def _pieces(jinja: str) -> Iterator[_Piece]:
    """Yield the pieces of a text without its comments, with the white space around tags that promptsource keeps."""
    held: list[str] = []
    for _, kind, value in jinja2.Environment().lex(jinja):
        if kind == "raw_begin":
            raise ValueError("it has a raw block")
        if kind == "data":
            yield _Piece(value, is_text=True)
        elif kind in ("variable_end", "block_end"):
            text = "".join([*held, "+%}" if value == "%}" else value])
            yield _Piece(text, keyword=_keyword(text))
            held = []
        elif not kind.startswith("comment"):
            held.append("{%+" if kind == "block_begin" and value == "{%" else value)


def _without_printing(piece: _Piece) -> str:
    """Return a piece that sets or changes a variable as a tag that prints nothing, and any other piece as nothing."""
    if piece.keyword == "set":
        return piece.text
    if piece.keyword or not _changes(piece.text):
        return ""
    expression = re.sub(r"^\{\{[+-]?|-?\}\}$", "", piece.text)
    return f"{{%+ set changed = {expression} +%}}"


def _changes(text: str) -> bool:
    """Return True if a printed expression or a tag changes a list or a mapping."""
    return any(map(changes_value, _METHOD.findall(text)))


def _keyword(text: str) -> str:
    match = re.match(r"\{%[+-]?\s*(\w+)", text)
    return match[1] if match else ""


def _stripped(text: str) -> str:
    text = text.strip()
    bare = _CHOICE.sub("x", text)
    # The row decides what a text that ends in an expression ends with.
    if bare.startswith("{") or bare.endswith("}"):
        return f"{{% filter trim %}}{text}{{% endfilter %}}"
    return text
