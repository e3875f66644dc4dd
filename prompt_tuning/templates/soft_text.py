"""The tag of a template's marked text, `{% soft %}...{% endsoft %}`, which `trained_text: marked` trains.

A mark changes nothing of what a template writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

TAG = "soft"
PRINTING_BLOCKS = nodes.If | nodes.For | nodes.With
PRINTED_BODIES = ("body", "elif_", "else_")
"""The fields of a printing block that hold what it prints."""


class SoftText(Extension):
    """Read a marked text as a scope, which no other tag of a template makes."""

    tags = {TAG}  # noqa: RUF012  Jinja declares it for each extension.

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the scope; fail on a mark within another."""
        line = next(parser.stream).lineno
        body = parser.parse_statements((f"name:end{TAG}",), drop_needle=True)
        if nodes.Template(body, lineno=line).find(nodes.Scope):
            parser.fail("a soft block stands within another. Write {% endsoft %} before it", line)
        return nodes.Scope(body, lineno=line)


def without_marks(tree: nodes.Template) -> nodes.Template:
    """Replace the marked texts of a tree by what they hold, so that it is the tree of a template without marks."""
    _flatten(tree)
    return tree


def _flatten(node: nodes.Node) -> None:
    for child in node.iter_child_nodes():
        _flatten(child)
    for name, value in node.iter_fields():
        if isinstance(value, list) and any(isinstance(item, nodes.Scope) for item in value):
            flat: list[nodes.Node] = []
            for item in value:
                flat += item.body if isinstance(item, nodes.Scope) else [item]
            setattr(node, name, flat)


def misplaced_mark(tree: nodes.Template) -> int | None:
    """Return the line of a mark whose text a filter, a macro or a variable may change; None if there is none."""
    printed = list(_printed_marks(tree.body))
    return next((mark.lineno for mark in tree.find_all(nodes.Scope) if mark not in printed), None)


def _printed_marks(body: list[Any]) -> Iterator[nodes.Scope]:
    for node in body:
        if isinstance(node, nodes.Scope):
            yield node
        elif isinstance(node, PRINTING_BLOCKS):
            for _, part in node.iter_fields(only=PRINTED_BODIES):
                yield from _printed_marks(part)
