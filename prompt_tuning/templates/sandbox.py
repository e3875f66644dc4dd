"""Jinja that somebody else wrote: run in a sandbox, since a template may come with an adapter, and what it reads."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

VALUE_END = "\ue001"  # a code point for private use
PRINTED_NULL = "a value it prints is null"


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """Sandboxed, since a template may come with somebody's adapter."""
    sandbox = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_refuse_null, cache_size=400
    )
    sandbox.filters["most_frequent"] = _most_frequent  # promptsource's
    sandbox.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _null_of_json}
    sandbox.tests["none"] = lambda value: value is None or value is NULL
    sandbox.tests["sameas"] = lambda value, other: value is other or (value is NULL and other is None)
    sandbox.globals["zip"] = zip
    del sandbox.filters["random"], sandbox.globals["lipsum"]  # a row always gives the same text
    return sandbox


@functools.cache
def _of_names() -> ImmutableSandboxedEnvironment:
    """To find names with, those of functions among them, as a column may be called `range` too."""
    bare = ImmutableSandboxedEnvironment()
    bare.filters, bare.tests, bare.globals = environment().filters, environment().tests, {}
    return bare


@functools.lru_cache(maxsize=512)
def compiled(text: str) -> jinja2.Template:
    return environment().from_string(text)


@functools.lru_cache(maxsize=512)
def compiled_expression(text: str) -> Callable[..., Any]:
    return environment().compile_expression(text, undefined_to_none=False)


@functools.lru_cache(maxsize=512)
def printed_values(text: str) -> jinja2.Template:
    """A template that writes what another prints of a row, without that one's own words.

    VALUE_END stands where those words stood, but for words in a branch or loop: what these print is one value.
    """
    tree = _untrimmed(text)
    for words in tree.find_all(jinja2.nodes.TemplateData):
        words.data = " "
    for node in tree.body:
        for piece in node.nodes if isinstance(node, jinja2.nodes.Output) else ():
            if isinstance(piece, jinja2.nodes.TemplateData):
                piece.data = VALUE_END
    return environment().from_string(tree)


@functools.lru_cache(maxsize=512)
def compiled_opening(text: str, given: frozenset[str]) -> jinja2.Template:
    """A template that writes what another does before anything of a row, and then VALUE_END.

    Args:
        given: variables that are the same for every row. A branch, loop or assignment is taken for a row's.
    """
    tree = _untrimmed(text)
    for place, node in enumerate(tree.body):
        pieces = node.nodes if isinstance(node, jinja2.nodes.Output) else []
        fixed = list(itertools.takewhile(lambda piece: not _undeclared(jinja2.nodes.Output([piece])) - given, pieces))
        if not pieces or len(fixed) < len(pieces):
            end = jinja2.nodes.TemplateData(VALUE_END, lineno=node.lineno)
            tree.body[place:] = [jinja2.nodes.Output([*fixed, end], lineno=node.lineno)]
            break
    return environment().from_string(tree.set_environment(environment()))


def _untrimmed(text: str) -> jinja2.nodes.Template:
    """The parsed text; what stands in a trim block, as the source of a promptsource template may, as if it did not."""
    tree = environment().parse(text)
    tree.body = [
        inner
        for node in tree.body
        for inner in (node.body if isinstance(node, jinja2.nodes.FilterBlock) and _is_trim(node.filter) else [node])
    ]
    return tree


def _is_trim(found: jinja2.nodes.Filter) -> bool:
    return found.name == "trim" and not found.args and found.node is None


@functools.lru_cache(maxsize=512)
def needed_columns(text: str, given: frozenset[str]) -> frozenset[str]:
    """Columns that a row must have for this template, but for those names that are given to it.

    Raises:
        jinja2.TemplateError: it is no template, or has a filter that does not exist.
    """
    compiled(text)
    return frozenset(_needed_names(environment().parse(text).body, set(given)))


def _needed_names(body: list[jinja2.nodes.Node], given: set[str]) -> set[str]:
    """Names that a row must have for these nodes; adds to `given` what they set.

    jinja2.meta alone would take what is set in the branches of an `if`, in a loop too, for a column as well.
    """
    needed: set[str] = set()
    for node in body:
        if isinstance(node, jinja2.nodes.If):
            branches = [node.body, *(other.body for other in node.elif_), node.else_]
            for test in (node.test, *(other.test for other in node.elif_)):
                needed |= _undeclared(jinja2.nodes.Output([test])) - given
            ends = [set(given) for _ in branches]
            for branch, end in zip(branches, ends, strict=True):
                needed |= _needed_names(branch, end)
            given |= set.intersection(*ends)
        elif isinstance(node, jinja2.nodes.FilterBlock):
            needed |= _undeclared(jinja2.nodes.FilterBlock([], node.filter)) - given
            needed |= _needed_names(node.body, set(given))
        elif isinstance(node, jinja2.nodes.For):
            head = jinja2.nodes.For(node.target, node.iter, [], [], node.test, node.recursive)
            items = {name.name for name in head.find_all(jinja2.nodes.Name) if name.ctx == "store"}
            needed |= _undeclared(head) - given
            needed |= _needed_names(node.body, given | items | {"loop"}) | _needed_names(node.else_, set(given))
        else:
            needed |= _undeclared(node) - given
            if isinstance(node, jinja2.nodes.Macro):
                given.add(node.name)
            elif isinstance(node, (jinja2.nodes.Assign, jinja2.nodes.AssignBlock)):
                given |= {name.name for name in node.find_all(jinja2.nodes.Name) if name.ctx == "store"}
    return needed


def _undeclared(node: jinja2.nodes.Node) -> set[str]:
    tree = jinja2.nodes.Template([node], lineno=1).set_environment(_of_names())
    called = {call.node.name for call in tree.find_all(jinja2.nodes.Call) if isinstance(call.node, jinja2.nodes.Name)}
    return jinja2.meta.find_undeclared_variables(tree) - (called & environment().globals.keys())


def _most_frequent(items: Any) -> list[Any]:
    """All items that no other item outnumbers, in their order."""
    counts = Counter(items)
    return [item for item, count in counts.items() if count == max(counts.values())]


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise ValueError(PRINTED_NULL)
    return value


class _Null:
    """A row's null: as None is to Jinja's tests and branches, but no filter or `~` makes the word None of it."""

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


_Null.__module__, _Null.__qualname__, _Null.__name__ = "builtins", "null", "null"  # by which Jinja's messages call it
NULL = _Null()


def _null_of_json(value: Any) -> None:
    if value is not NULL:
        raise TypeError(f"{value!r} is nothing that JSON has")


def with_nulls(value: Any) -> Any:
    """A row, or what stands in one, with NULL in place of each None."""
    if isinstance(value, dict):
        return {key: with_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_nulls(item) for item in value]
    return NULL if value is None else value
