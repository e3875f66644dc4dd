"""Bound what rendering a Jinja text costs, since the text may be a stranger's.

A rendering has MAX_COST to spend. Every node of a loop or a macro costs STEP_COST each time it runs, and every
operation costs the characters and items of its values and its result. What may make far more than it is given, such
as `'a' * 10**12`, is priced before it runs. Nothing is computed when a text is compiled.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TEXT = 100_000  # characters of one field
MAX_COST = 20_000_000  # characters, items and steps of one rendering
STEP_COST = 10  # A node of a loop costs this much each time it runs, and so does an item of a list.
MAX_BITS = 14_000  # Python prints no integer of more than 4,300 digits

# No template can spell these names.
START, STEP, COUNTED = "start meter", "pay step", "pay value"

TOO_MANY_DIGITS = "it computes an integer of more than 4,300 digits. Compute smaller ones"
TOO_COSTLY = f"it makes more than {MAX_COST:,} characters or steps. Loop less, or make shorter texts"


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
        waiting = [value]
        while waiting:
            item = waiting.pop()
            self.pay(STEP_COST)
            if isinstance(item, str | bytes):
                self.pay(len(item))
            elif isinstance(item, range):
                self.pay(len(item) * STEP_COST)
            elif isinstance(item, list | tuple | set | frozenset):
                waiting.extend(item)
            elif isinstance(item, dict):
                waiting.extend(item)
                waiting.extend(item.values())
            elif isinstance(item, int) and item.bit_length() > MAX_BITS:
                raise TooCostlyError(TOO_MANY_DIGITS)


_METER: ContextVar[Meter] = ContextVar("meter")


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """A sandbox whose templates cost at most MAX_COST."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, **settings: Any) -> None:
        """Switch off the constants that are computed when a text is compiled, which no meter would see."""
        super().__init__(**settings, optimized=False)
        print_value = self.finalize
        self.finalize = _counted_print if print_value is None else _print_by(print_value)
        # They take quadratic time, and are of no use in a prompt.
        del self.filters["urlize"], self.filters["pprint"]

    def meter_filters(self) -> None:
        """Let each filter and test cost what it makes. Call this after the last of them is set."""
        for table in (self.filters, self.tests):
            for name, function in list(table.items()):
                table[name] = _metered(function, PRICES.get(name))
        self.filters |= {START: _start, STEP: _step, COUNTED: _counted}

    def parse(self, source: str, name: str | None = None, filename: str | None = None) -> nodes.Template:
        """Parse a text; raise TooCostlyError if it is too long."""
        if len(source) > MAX_TEXT:
            raise TooCostlyError(f"it has {len(source):,} characters, more than {MAX_TEXT:,}. Write a shorter text")
        return super().parse(source, name, filename)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Add the meters to a tree before it becomes Python. Jinja documents this method as a hook."""
        for constant in source.find_all(nodes.Const):
            if constant.value in (float("inf"), float("-inf")):
                raise jinja2.TemplateSyntaxError("a number is too large", constant.lineno)
        _Meters().visit(source)
        source.body.insert(0, _statement(START, source.body, 1))
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` if it is not too costly."""
        meter = _METER.get()
        if operator == "*":
            meter.pay(_price_of_product(left, right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_BITS:
                raise TooCostlyError(TOO_MANY_DIGITS)
        elif operator == "%" and isinstance(left, str | bytes):
            meter.pay(_price_of_percent(left, right))
        result = super().call_binop(context, operator, left, right)
        meter.pay_for(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method, function or macro, and pay for its values and its result."""
        values = (__obj.__self__, *args) if isinstance(__obj, BuiltinMethodType) else args
        price = PRICES.get(__obj.__name__) if isinstance(__obj, BuiltinMethodType) else None
        call = functools.partial(super().call, __context, __obj)
        if len(values) == len(args):
            return _pay_and_call(price, call, args, kwargs)
        return _pay_and_call(price, lambda _, *rest, **named: call(*rest, **named), values, kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandboxed `format` of a text, which pays for what it writes."""
        write = super().wrap_str_format(value)
        if write is None:
            return None

        def metered(*args: Any, **kwargs: Any) -> str:
            _METER.get().pay(_price_of_braces(value.__self__, [*args, *kwargs.values()]))
            return write(*args, **kwargs)

        return metered


class _Meters(NodeTransformer):
    """Let loops, macros, comparisons, slices and lists of a template pay."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        step = _step_of(node.body, node.lineno)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_step_of([node.test], node.lineno), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_step_of(node.body, node.lineno), lineno=node.lineno))
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _counted_node(node.expr)
        for operand in node.ops:
            operand.expr = _counted_node(operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = list(map(_counted_node, node.nodes))
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _counted_node(node)
        node.arg = _counted_node(node.arg)
        return node

    def visit_List(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        is_target = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if is_target or not node.find(nodes.Name) else _counted_node(node)

    visit_Tuple = visit_Dict = visit_List


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counted_node(node: nodes.Expr) -> nodes.Expr:
    """Return an expression that pays for its value; filters and calls pay for theirs already."""
    return node if isinstance(node, nodes.Const | nodes.Filter | nodes.Call) else _filter(node, COUNTED)


def _cost_of(body: list[Any]) -> int:
    """Return what the nodes cost each time they run: their number, and the characters of their words."""
    cost = STEP_COST
    for node in body:
        for child in (node, *node.find_all(nodes.Node)):
            cost += STEP_COST
            if isinstance(child, nodes.TemplateData):
                cost += len(child.data)
    return cost


def _step_of(body: list[Any], lineno: int, name: str = STEP) -> nodes.Filter:
    return _filter(nodes.Const(_cost_of(body), lineno=lineno), name)


def _statement(name: str, body: list[Any], lineno: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_step_of(body, lineno, name), lineno=lineno)


def _start(cost: int) -> None:
    meter = Meter()
    _METER.set(meter)
    meter.pay(cost)


def _step(cost: int) -> bool:
    _METER.get().pay(cost)
    return True


def _counted(value: Any) -> Any:
    _METER.get().pay_for(value)
    return value


@jinja2.pass_context
def _counted_print(context: Context, value: Any) -> Any:
    return _counted(value)


def _print_by(print_value: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function that pays for a value and prints it; a context keeps Jinja from printing constants early."""

    @jinja2.pass_context
    def counted_print(context: Context, value: Any) -> Any:
        return _counted(print_value(value))

    return counted_print


Price = Callable[..., int]


def _metered(function: Callable[..., Any], price: Price | None) -> Callable[..., Any]:
    """Return a filter or a test that pays for its values and its result."""

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        return _pay_and_call(price, function, args, kwargs)

    return metered


def _pay_and_call(
    price: Price | None, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    meter = _METER.get()
    values = []
    for value in args:
        # The items of an iterator cannot be counted before they are made.
        values.append(list(value) if isinstance(value, Iterator) else value)
        meter.pay_for(values[-1])
    for value in kwargs.values():
        meter.pay_for(value)
    if price is not None:
        settings = [value for value in values if not isinstance(value, _NOT_VALUES)]
        meter.pay(price(*settings, **kwargs))
    result = function(*values, **kwargs)
    meter.pay_for(result)
    return result


_NOT_VALUES = (jinja2.Environment, Context, nodes.EvalContext)


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


def _price_of_product(left: Any, right: Any) -> int:
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
    return _price_of_percent(str(text), [*args, *named.values()])


def _price_of_percent(text: Any, values: Any) -> int:
    """Return what `text % values` may make: its widths, and all values in each place."""
    text = text if isinstance(text, str) else text.decode("latin-1")
    places = re.findall(r"%(?:\([^)]*\))?[-+ #0]*([*\d]*)\.?([*\d]*)", text)
    return len(text) ** 2 // 1000 + _price_of_widths(places) + len(places) * _total(values)


def _price_of_braces(text: str, values: list[Any]) -> int:
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
