"""Check the fields of a template's file: their names and types."""

from __future__ import annotations

from typing import Any

from prompt_tuning.errors import TemplateError
from prompt_tuning.templates.loading import describe

TEXT_FIELDS = ("source", "target", "references", "system", "answer_choices")
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
