"""Check values that were read from JSON or YAML against types: a key of another type is named, never guessed.

A type is a TypedDict, a dataclass, `dict[str, T]`, `list[T]`, `Literal`, a union, `str`, `int`, `float`, `bool`,
`Any`, or one of these `Annotated` with `Limits`. A truth value is not a number, an integer is at least 0, and a number
is finite.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from prompt_tuning.errors import DataError

LARGEST = 10**30
"""The largest number that is read, so that sums, products and axes of charts stay finite."""

SHOWN = 40  # characters of a value in a message
LONGEST_NAME = 500  # characters of a key in a message


@dataclass(frozen=True)
class Limits:
    """What a value of a type must also be.

    Args:
        least: the least number, or the least number of entries.
        finite: whether a number must be finite.
        pattern: what a text must be.
    """

    least: float | None = None
    finite: bool = True
    pattern: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a value stands.

    Args:
        file: the file, and the line if it has lines.
        key: the keys that lead to the value, such as `soft_prompt.f1`.
        advice: what to do.
    """

    file: str
    key: str = ""
    advice: str = "Copy it from the run again, or run the command that wrote it again."

    def within(self, key: object) -> Place:
        """Return the place of an entry of this value."""
        name = str(key)[:LONGEST_NAME]  # A long name would be copied for each of its entries.
        name = name if name.isprintable() else repr(name)
        return Place(self.file, f"{self.key}.{name}" if self.key else name, self.advice)

    def error(self, found: str, expected: str) -> DataError:
        """Return the error of a value that is not what it should be."""
        subject = f"{self.key} is {found}" if self.key else f"it is {found}"
        return DataError(f"{self.file}: {subject}, expected {expected}. {self.advice}")


def check_value(value: Any, kind: Any, place: Place) -> None:
    """Raise a DataError unless a value is of a type; the message names file, key, what was found and is expected.

    Args:
        value: as `json.loads` or `read_yaml` returns it.
        kind: the type.
        place: where the value stands.
    """
    if kind is Any:
        return
    limits = Limits()
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        _check_union(value, kind, place)
    elif get_origin(kind) is Literal:
        if type(value) is not str or value not in get_args(kind):
            raise place.error(shown(value), " or ".join(map(str, get_args(kind))))
    elif is_typeddict(kind) or is_dataclass(kind):
        _check_mapping(value, kind, place)
    elif get_origin(kind) in (dict, list):
        _check_entries(value, kind, limits, place)
    elif not _fits(value, kind, limits):
        raise place.error(shown(value), _expected(kind, limits))


def _check_union(value: Any, kind: Any, place: Place) -> None:
    expected = []
    for option in get_args(kind):
        try:
            check_value(value, option, place)
        except DataError:
            expected.append(_expected(option, Limits()))
        else:
            return
    raise place.error(shown(value), " or ".join(expected))


def _check_mapping(value: Any, kind: Any, place: Place) -> None:
    """Check the keys of a TypedDict, or the fields of a dataclass, all of which are required.

    Keys that the type does not name are taken, since later versions write more.
    """
    if not isinstance(value, dict):
        raise place.error(shown(value), "an object")
    kinds = _kinds_of_keys(kind)
    required = kind.__required_keys__ if is_typeddict(kind) else kinds
    for key, key_kind in kinds.items():
        if key in value:
            check_value(value[key], key_kind, place.within(key))
        elif key in required:
            raise place.within(key).error("missing", _expected(key_kind, Limits()))


@functools.cache
def _kinds_of_keys(kind: Any) -> dict[str, Any]:
    """Return the types of a type's keys, which are evaluated once and not for each row of a file."""
    return get_type_hints(kind, include_extras=True)


def _check_entries(value: Any, kind: Any, limits: Limits, place: Place) -> None:
    """Check the length of a list or a mapping, and each of its entries."""
    *_, entry_kind = get_args(kind)
    if not isinstance(value, get_origin(kind)):
        raise place.error(shown(value), _expected(kind, limits))
    if len(value) < (limits.least or 0):
        raise place.error(f"of {len(value)} entries", f"at least {limits.least:.0f}")
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, dict) and not isinstance(key, str):
            raise place.error(f"an object with the key {key!r}", "keys that are texts")
        check_value(entry, entry_kind, place.within(key))


def _fits(value: Any, kind: Any, limits: Limits) -> bool:
    """Return whether a text, a number, a truth value or null is of a type and within its limits."""
    if kind is str:
        return isinstance(value, str) and bool(limits.pattern is None or re.fullmatch(limits.pattern, value))
    if kind is float:
        if type(value) not in (int, float):
            return False
        if type(value) is float and not math.isfinite(value):
            return not limits.finite
        return abs(value) <= LARGEST and value >= (-LARGEST if limits.least is None else limits.least)
    if kind is int:
        return type(value) is int and (limits.least or 0) <= value <= LARGEST
    return type(value) is kind


def _expected(kind: Any, limits: Limits) -> str:
    """Say what a type is, for a message."""
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
    if limits.pattern:
        return f"a text such as {limits.pattern}"
    least = limits.least or 0
    if kind is int:
        return f"a whole number from {least:.0f}"
    if kind is float and limits.least is not None:
        return f"a number from {least:.0f}"
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    names = {str: "a text", float: "a number", bool: "true or false", NoneType: "null", list: "a list"}
    return names.get(get_origin(kind) or kind, "an object")


def shown(value: Any) -> str:
    """Return a value for a message: its kind if it is long, else the value itself."""
    if isinstance(value, str):
        return f"the text {value[:SHOWN]!r}"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    constants = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return constants[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:SHOWN]
