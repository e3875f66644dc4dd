"""Bound what rendering a Jinja text costs, since the text may be a stranger's.

A rendering has MAX_COST to spend. Every node of a loop or a macro costs STEP_COST each time it runs, and every
operation costs the characters and items of its values and its result. What may make far more than it is given, such
as `'a' * 10**12`, is priced before it runs. Nothing is computed when a text is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from prompt_tuning.support.jinja_prices import (
    MAX_BITS,
    METER,
    PRICES,
    STEP_COST,
    TOO_MANY_DIGITS,
    Meter,
    Price,
    TooCostlyError,
    price_of_braces,
    price_of_percent,
    price_of_product,
)

MAX_TEXT = 100_000  # characters of one field

_SMALL = range(-(10**9), 10**9)  # integers of few digits

# No template can spell these names.
START, STEP, COUNTED, LOOP = "start meter", "pay step", "pay value", "pay loop"


def _concat(pieces: Iterable[str]) -> str:
    """Pay for what a text, a macro or a block has printed, and join it. The pieces exist already."""
    parts = list(pieces)
    METER.get().pay(sum(map(len, parts)) + STEP_COST * len(parts))
    return "".join(parts)


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """A sandbox whose templates cost at most MAX_COST."""

    concat = staticmethod(_concat)
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
        self.filters |= {START: _start, STEP: _step, COUNTED: _counted, LOOP: _looped}

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
        meter = METER.get()
        if operator == "*":
            meter.pay(price_of_product(left, right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_BITS:
                raise TooCostlyError(TOO_MANY_DIGITS)
        elif operator == "%" and isinstance(left, str | bytes):
            meter.pay(price_of_percent(left, right))
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
            METER.get().pay(price_of_braces(value.__self__, [*args, *kwargs.values()]))
            return write(*args, **kwargs)

        return metered


class _Meters(NodeTransformer):
    """Let loops, macros, comparisons, slices and lists of a template pay."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        cost = _cost_of([*node.body, *filter(None, [node.test])])
        if node.recursive:
            # It may get other items each time that it calls itself.
            node.body.insert(0, _statement(STEP, node.body, node.lineno))
            if node.test is not None:
                node.test = nodes.And(_step_of([node.test], node.lineno), node.test, lineno=node.lineno)
        price = nodes.Const(cost, lineno=node.lineno)
        node.iter = nodes.Filter(node.iter, LOOP, [price], [], None, None, lineno=node.lineno)
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
    METER.set(meter)
    meter.pay(cost)


def _step(cost: int) -> bool:
    METER.get().pay(cost)
    return True


def _looped(items: Any, cost: int) -> Any:
    """Pay for a loop over all items, and return them as they are now: the loop may append to a list."""
    meter = METER.get()
    if isinstance(items, list | tuple | dict | str | range):
        meter.pay(len(items) * cost)
        return list(items) if isinstance(items, list | dict) else items
    counted = []
    for item in items:
        meter.pay(cost)
        counted.append(item)
    return counted


def _counted(value: Any) -> Any:
    METER.get().pay_for(value)
    return value


@jinja2.pass_context
def _counted_print(context: Context, value: Any) -> Any:
    return _counted(value)


def _print_by(print_value: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function that pays for a value and prints it; a context keeps Jinja from printing constants early."""

    @jinja2.pass_context
    def counted_print(context: Context, value: Any) -> Any:
        printed = print_value(value)
        kind = type(printed)
        # `_concat` pays for texts. A value that is not a text or small becomes a new, long text each time.
        if kind is not str and not (kind is int and printed in _SMALL):
            METER.get().pay_for(printed)
        return printed

    return counted_print


def _metered(function: Callable[..., Any], price: Price | None) -> Callable[..., Any]:
    """Return a filter or a test that pays for its values and its result."""

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        if price is None and len(args) == 1 and type(args[0]) is str and not kwargs:  # Most filters get only a text.
            meter = METER.get()
            meter.left -= STEP_COST + len(args[0])
            result = function(args[0])
            meter.pay_for(result)
            return result
        return _pay_and_call(price, function, args, kwargs)

    return metered


def _pay_and_call(
    price: Price | None, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    meter = METER.get()
    if not _PLAIN.issuperset(map(type, args)):
        # The items of an iterator cannot be counted before they are made.
        args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
    for value in (*args, *kwargs.values()):
        meter.pay_for(value)
    if price is not None:
        settings = [value for value in args if not isinstance(value, _NOT_VALUES)]
        meter.pay(price(*settings, **kwargs))
    result = function(*args, **kwargs)
    meter.pay_for(result)
    return result


_PLAIN = {str, int, float, bool, list, tuple, dict}
_NOT_VALUES = (jinja2.Environment, Context, nodes.EvalContext)
