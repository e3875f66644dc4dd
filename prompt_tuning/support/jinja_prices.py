"""Say what a rendering of Jinja costs, and what operations may make before they run."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jinja2

MAX_COST = 20_000_000  # characters, items and steps of one rendering
STEP_COST = 10  # A node of a loop costs this much each time it runs, and so does an item of a list.
MAX_BITS = 14_000  # Python prints no integer of more than 4,300 digits

TOO_MANY_DIGITS = "it computes an integer of more than 4,300 digits. Compute smaller ones"
TOO_COSTLY = f"it makes more than {MAX_COST:,} characters or steps. Loop less, or make shorter texts"

# A union such as `str | bytes` would be made anew for each value.
_TEXTS, _LISTS = (str, bytes), (list, tuple, set, frozenset)


class TooCostlyError(jinja2.TemplateRuntimeError):
    """A template costs more than a rendering may."""


class Meter:
    """The cost that is left to one rendering."""

    def __init__(self) -> None:
        """Start with MAX_COST."""
        self.left = MAX_COST

    def pay(self, cost: int) -> None:
        """Spend a cost; raise TooCostlyError if that is more than is left."""
        self.left -= cost
        if self.left < 0:
            raise TooCostlyError(TOO_COSTLY)

    def pay_for(self, value: Any) -> None:
        """Spend the characters and items of a value, each item counted as often as it stands there."""
        if type(value) is str:  # Most values are texts.
            self.left -= STEP_COST + len(value)
            if self.left < 0:
                raise TooCostlyError(TOO_COSTLY)
        else:
            self._pay_for_items([value])

    def _pay_for_items(self, waiting: list[Any]) -> None:
        """Spend what the values of a list cost, and remove them from it."""
        while waiting:
            item = waiting.pop()
            self.left -= STEP_COST
            if isinstance(item, _TEXTS):
                self.left -= len(item)
            elif isinstance(item, int):
                if item.bit_length() > MAX_BITS:
                    raise TooCostlyError(TOO_MANY_DIGITS)
            elif isinstance(item, _LISTS):
                waiting.extend(item)
            elif isinstance(item, dict):
                waiting.extend(item)
                waiting.extend(item.values())
            elif isinstance(item, range):
                self.left -= len(item) * STEP_COST
            if self.left < 0:
                raise TooCostlyError(TOO_COSTLY)


METER: ContextVar[Meter] = ContextVar("meter")
"""The meter of the rendering that runs."""


Price = Callable[..., int]


def _length(value: Any) -> int:
    """Return the characters or items of a value, or a number itself."""
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | range) else 1


def _total(values: Any) -> int:
    """Return the characters and items of a value."""
    meter = Meter()
    meter.pay_for(values)
    return MAX_COST - meter.left


def _price_of_numbers(*values: Any, **named: Any) -> int:
    """Return the numbers among the values after the first, such as a width."""
    return sum(_length(value) for value in (*values[1:], *named.values()) if isinstance(value, int))


def price_of_product(left: Any, right: Any) -> int:
    """Return what `left * right` may make."""
    if isinstance(left, int) and isinstance(right, int):
        return (left.bit_length() + right.bit_length()) ** 2 // 1000
    for count, value in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(value, str | bytes | list | tuple):
            return max(count, 0) * _total(value)
    return 0


def _price_of_replace(text: Any, old: Any = "", new: Any = "", *rest: Any, **named: Any) -> int:
    text, old, new = str(text), str(named.get("old", old)), str(named.get("new", new))
    return text.count(old) * len(new)


def _price_of_join(first: Any, second: Any = "", *rest: Any, **named: Any) -> int:
    second = named.get("d", second)
    return _length(first) * _length(second) if isinstance(first, str) or isinstance(second, str) else 0


def _price_of_lines(text: Any, width: Any = 4, *rest: Any, **named: Any) -> int:
    return (str(text).count("\n") + 1) * _length(named.get("width", width))


def _price_of_tabs(text: Any, size: Any = 8, **named: Any) -> int:
    return (text.count("\t") if isinstance(text, str) else len(text)) * _length(named.get("tabsize", size))


def _price_of_wrap(text: Any, width: Any = 79, *rest: Any, **named: Any) -> int:
    text, width = str(text), max(_length(named.get("width", width)), 1)
    longest = max(map(len, text.split()), default=0)
    ends = [value for value in (*rest, *named.values()) if isinstance(value, str)]
    return longest**2 // width + (len(text) // width + 1) * sum(map(len, ends))


def _price_of_tags(text: Any, *rest: Any) -> int:
    text = str(text)
    return text.count("<") * len(text) // 1000


def _price_of_json(value: Any, indent: Any = 0, **named: Any) -> int:
    size = _total(value)
    indent = named.pop("indent", indent) or 0
    return size * (_length(indent) * min(size, 100) + _total(list(named.values())))


def _price_of_sum(items: Any, *rest: Any, **named: Any) -> int:
    numbers = isinstance(items, list | tuple | range) and all(isinstance(item, int | float) for item in items)
    return 0 if numbers else _length(items) * _total(items)


def _price_of_translate(text: Any, table: Any = (), *rest: Any) -> int:
    return _length(text) * _total(list(table.values()) if isinstance(table, dict) else table)


def _price_of_format(text: Any, *args: Any, **named: Any) -> int:
    return price_of_percent(str(text), [*args, *named.values()])


def price_of_percent(text: Any, values: Any) -> int:
    """Return what `text % values` may make: its widths, and all values in each place."""
    text = text if isinstance(text, str) else text.decode("latin-1")
    places = re.findall(r"%(?:\([^)]*\))?[-+ #0]*([*\d]*)\.?([*\d]*)", text)
    return len(text) ** 2 // 1000 + _price_of_widths(places) + len(places) * _total(values)


def price_of_braces(text: str, values: list[Any]) -> int:
    """Return what `text.format(values)` may make: its widths, and all values in each place."""
    places = []
    if re.search(r":[^{}]*\{", text):
        return MAX_COST  # A value of the row could be the width.
    for place in re.findall(r"\{[^{}]*\}", text):
        places.append(re.findall(r"\d+", place.partition(":")[2]))
    return len(text) ** 2 // 1000 + _price_of_widths(places) + text.count("{") * _total(values)


def _price_of_widths(places: list[Any]) -> int:
    widths = []
    for place in places:
        widths += [MAX_COST if "*" in width else int(width) for width in place if width]
    return sum(widths)


# The price of filters and methods that may make more than they are given, by name.
PRICES: dict[str, Price] = {
    "batch": _price_of_numbers, "center": _price_of_numbers, "ljust": _price_of_numbers, "rjust": _price_of_numbers,
    "round": _price_of_numbers, "slice": _price_of_numbers, "to_bytes": _price_of_numbers, "zfill": _price_of_numbers,
    "expandtabs": _price_of_tabs, "format": _price_of_format, "indent": _price_of_lines, "join": _price_of_join,
    "replace": _price_of_replace, "striptags": _price_of_tags, "sum": _price_of_sum, "tojson": _price_of_json,
    "translate": _price_of_translate, "wordwrap": _price_of_wrap,
}  # fmt: skip
