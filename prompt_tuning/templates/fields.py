"""Check the fields of a template's file: their names and types."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from jinja2 import nodes

from prompt_tuning.errors import TemplateError
from prompt_tuning.templates.loading import describe
from prompt_tuning.templates.sandbox import parsed
from prompt_tuning.templates.soft_text import TAG, misplaced_mark

TEXT_FIELDS = ("source", "target", "references", "system", "answer_choices", "history")
MARKED_FIELDS = ("source", "system")
REQUIRED_FIELDS = ("source", "target")
LIST_FIELDS = {"demonstrations": (dict, "rows"), "stop": (str, "texts"), "truncate": (str, "texts")}


def check_fields(values: Any, names: set[str], template: str) -> None:
    """Raise TemplateError if fields are missing, unknown or of another type."""
    if not isinstance(values, dict) or not set(REQUIRED_FIELDS) <= set(values):
        raise TemplateError(
            f"template {template}: expected the fields source and target, found {describe(values)}. Set both."
        )
    unknown = sorted(map(str, set(values) - names))
    if unknown:
        raise TemplateError(
            f"template {template}: unknown field {unknown[0]}. The fields are {', '.join(sorted(names))}."
        )
    for key in TEXT_FIELDS:
        value = values.get(key, "")
        if not isinstance(value, str) and (value is not None or key in REQUIRED_FIELDS):
            raise TemplateError(
                f"template {template}: expected text as {key}, found {type(value).__name__}. Put it in quotes."
            )
    if not isinstance(values.get("chat", False), bool):
        raise TemplateError(
            f"template {template}: expected true or false as chat, found {values['chat']!r}. Write it without quotes."
        )


def check_marks(values: dict[str, Any], template: str) -> None:
    """Raise TemplateError for a mark of `{% soft %}` in another field than source and system, or in a filter.

    Args:
        values: the fields, each of which is valid Jinja.
        template: its name, for the message.
    """
    for key in TEXT_FIELDS:
        text = values.get(key) or ""
        tree = parsed(text, marks=True) if TAG in text else None
        if tree and key not in MARKED_FIELDS and tree.find(nodes.Scope):
            raise TemplateError(f"template {template}: {key} has a soft block. Only source and system may mark text.")
        line = misplaced_mark(tree) if tree else None
        if line:
            raise TemplateError(
                f"template {template}: the soft block in line {line} of {key} stands in a filter, a macro or a "
                "variable, which may change its text. Take it out of there."
            )


def checked_list(value: Any, key: str, template: str) -> tuple[Any, ...]:
    """Return the items of a field that is a list; raise TemplateError if one is empty or of another type."""
    if value is None:
        return ()
    item_type, items = LIST_FIELDS[key]
    if not isinstance(value, list) or not all(isinstance(item, item_type) and item for item in value):
        raise TemplateError(
            f"template {template}: expected a list of {items} as {key}, found {value!r}. Leave no item empty."
        )
    return tuple(value)


def column_hint(missing: str, available: Iterable[str]) -> str:
    """Return how to write the column that a missing name is a part of, such as `passage-text`."""
    for column in available:
        if not column.isidentifier() and missing in re.split(r"\W+", column):
            return f" In a template, that column is row[{json.dumps(column, ensure_ascii=False)}]."
    return ""
