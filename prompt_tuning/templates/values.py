"""Give a template the values of a row so that it cannot print what is not a text: a null, a list or a mapping."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import jinja2
from jinja2.nodes import EvalContext

from prompt_tuning.support.text import listed

PRINTED_NULL = "a value it prints is null"
PRINTABLE = (str, int, float, Decimal, date, time, timedelta, jinja2.Undefined)
"""The types that are printed; printing an undefined value raises its own error."""


class _Null:
    """The null of a row: None to Jinja's tests and branches, and an error to filters and `~`, which would print it."""

    def __eq__(self, other: object) -> bool:
        return other is None or other is self

    def __hash__(self) -> int:
        return hash(None)

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        raise ValueError(PRINTED_NULL)

    def __repr__(self) -> str:
        return "null"


class _Unprintable:
    """A value that raises an error where Python would print it as it is written in Python."""

    def __repr__(self) -> str:
        raise ValueError(_advice(self))

    __str__ = __repr__


# Jinja's messages name the type of a value.
_Null.__module__ = "builtins"
_Null.__qualname__ = "null"
_Null.__name__ = "null"
NULL = _Null()
RowList = type("list", (_Unprintable, list), {"__module__": "builtins"})
RowDict = type("dict", (_Unprintable, dict), {"__module__": "builtins"})
RowBytes = type("bytes", (_Unprintable, bytes), {"__module__": "builtins"})


def printable(value: Any) -> Any:
    """Return a value that a template prints; raise a ValueError if it is not a text, a number or a time."""
    if is_nan(value):
        raise ValueError("a value it prints is NaN, which is not a number. Write null or a text")
    if not isinstance(value, PRINTABLE):
        raise ValueError(_advice(value))
    return value


_NOT_TEXTS = (list, tuple, set, dict, bytes)  # A union of these would be made anew for each value.


def of_printable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of texts that refuses the lists and mappings that a template itself makes."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, _NOT_TEXTS):
                printable(value)
        return function(*args, **kwargs)

    return checked


def of_printable_items(join: Callable[..., Any]) -> Callable[..., Any]:
    """Return Jinja's filter `join` that refuses items which are not texts, such as the pairs of a mapping."""

    @jinja2.pass_eval_context
    def checked(context: EvalContext, value: Iterable[Any], d: Any = "", attribute: str | None = None) -> Any:
        if attribute is None:
            value = map(printable, value)
        return join(context, value, d, attribute)

    return checked


def is_nan(value: Any) -> bool:
    """Return whether a value is the NaN that parquet files and numpy have for a missing number."""
    return isinstance(value, float) and math.isnan(value)


def kind_of(value: Any) -> str:
    """Return what messages call a value that is not printed."""
    if value is None or value is NULL:
        return "null"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Iterable):
        return "a list"
    return "a function" if callable(value) else f"a {type(value).__name__}"


def _advice(value: Any) -> str:
    kind = kind_of(value)
    if kind == "null":
        return PRINTED_NULL
    if kind == "bytes":
        return "a value it prints is bytes. Write `.decode()` after it"
    if kind == "a function":
        return "a value it prints is a function. Call it, or write ['name'] for the item of that name"
    if isinstance(value, Mapping):
        keys = listed([*value])
        return f"a value it prints is a mapping with the keys {keys}. Name one of them, or write `| tojson`"
    return f"a value it prints is {kind}. Write `| join(', ')` or `| tojson`, or take one item, such as [0]"


def written_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, as the filter `tojson` of transformers' chat templates does, but with sorted keys.

    Unlike Jinja's, it is not made for web pages: letters and signs stay as they are.
    """
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_null_of_json, indent=indent)


def _null_of_json(value: Any) -> None:
    """Return None for the null of a row, and raise TypeError for what JSON does not have."""
    if value is not NULL:
        raise TypeError(f"{kind_of(value)} is not a value of JSON")


def with_nulls(value: Any) -> Any:
    """Return a row, or a value in it, with NULL instead of each None. A template cannot change or print its lists."""
    if isinstance(value, dict):
        return RowDict({key: with_nulls(item) for key, item in value.items()})
    if isinstance(value, list):
        return RowList([with_nulls(item) for item in value])
    if isinstance(value, bytes):
        return RowBytes(value)
    return NULL if value is None else value


def replaced(value: Any, old: str, new: str) -> Any:
    """Return a row, or a value in it, with one text replaced by another."""
    return map_texts(value, lambda text: text.replace(old, new))


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a row, or a value in it, with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return type(value)({key: map_texts(item, change) for key, item in value.items()})
    return type(value)([map_texts(item, change) for item in value]) if isinstance(value, list) else value
