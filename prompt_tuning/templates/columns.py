"""Find the columns of a row that Jinja texts read."""

from __future__ import annotations

import functools
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.sandbox import modifies_known_mutable

from prompt_tuning.templates.sandbox import ROW, compiled, parsed, undeclared


@functools.lru_cache(maxsize=512)
def needed_columns(text: str, constants: frozenset[str]) -> frozenset[str]:
    """Return the columns that a row needs for this template.

    Args:
        text: Jinja text.
        constants: variables that are not columns.

    Raises:
        jinja2.TemplateError: the text is not valid Jinja, has a filter that does not exist, changes a row, or
            prints a list.
    """
    compiled(text)
    tree = parsed(text)
    columns = _needed_names(tree.body, set(constants))
    for call in tree.find_all(jinja2.nodes.Call):
        method = call.node
        root = _root_name(method)
        if isinstance(method, jinja2.nodes.Getattr) and changes_value(method.attr) and root in columns | constants:
            raise jinja2.TemplateError(f"its {method.attr} would change the row's {root}; change a list of its own")
    for printed in tree.find_all(jinja2.nodes.Output):
        if any(map(_is_list, printed.nodes)):
            raise jinja2.TemplateError(
                "it prints a list. Write `| join(', ')` after it, or take one item, such as [0]"
            )
    if ROW in columns and columns_of_row(text):
        columns = columns - {ROW} | columns_of_row(text)
    return frozenset(columns)


@functools.lru_cache(maxsize=512)
def columns_of_row(text: str) -> frozenset[str]:
    """Return the columns that a text reads as items of `row`, such as `row["passage-text"]`."""
    columns = set()
    tree = parsed(text)
    items: list[Any] = [*tree.find_all(jinja2.nodes.Getitem), *tree.find_all(jinja2.nodes.Getattr)]
    for item in items:
        if isinstance(item.node, jinja2.nodes.Name) and item.node.name == ROW:
            columns.add(item_key(item))
    return frozenset(columns - {None})


def item_key(node: jinja2.nodes.Getattr | jinja2.nodes.Getitem) -> Any:
    """Return the attribute or the constant item that a node reads; None of a computed one."""
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node.arg, jinja2.nodes.Const) else None


def changes_value(method: str) -> bool:
    """Return True if a method of this name changes a list or a mapping, such as `append`."""
    return modifies_known_mutable([], method) or modifies_known_mutable({}, method)


def _is_list(node: jinja2.nodes.Node) -> bool:
    """Return True if an expression is a list for every row, such as a part of `text.split()`."""
    if isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Slice):
        return _is_list(node.node)
    method = node.node if isinstance(node, jinja2.nodes.Call) else None
    splits = isinstance(method, jinja2.nodes.Getattr) and method.attr in ("split", "rsplit", "splitlines")
    return splits or isinstance(node, (jinja2.nodes.List, jinja2.nodes.Tuple))


def _root_name(node: jinja2.nodes.Node) -> str | None:
    """Return the variable that attributes and items are taken from; None of another expression."""
    while isinstance(node, (jinja2.nodes.Getattr, jinja2.nodes.Getitem)):
        node = node.node
    return node.name if isinstance(node, jinja2.nodes.Name) else None


def _needed_names(body: list[jinja2.nodes.Node], defined: set[str]) -> set[str]:
    """Return the names that a row needs for these nodes, and add to `defined` what the nodes set.

    jinja2.meta alone would take a name that the branches of an `if` set, in a loop too, for a column.
    """
    needed: set[str] = set()
    for node in body:
        if isinstance(node, jinja2.nodes.If):
            needed |= _needed_by_if(node, defined)
        elif isinstance(node, jinja2.nodes.FilterBlock):
            needed |= undeclared(jinja2.nodes.FilterBlock([], node.filter)) - defined
            needed |= _needed_names(node.body, set(defined))
        elif isinstance(node, jinja2.nodes.For):
            needed |= _needed_by_for(node, defined)
        else:
            needed |= undeclared(node) - defined
            if isinstance(node, jinja2.nodes.Macro):
                defined.add(node.name)
            elif isinstance(node, (jinja2.nodes.Assign, jinja2.nodes.AssignBlock)):
                defined |= _stored_names(node)
    return needed


def _needed_by_if(node: jinja2.nodes.If, defined: set[str]) -> set[str]:
    """Return the names that an `if` needs, and add to `defined` what every branch sets."""
    needed: set[str] = set()
    for branch in (node, *node.elif_):
        needed |= undeclared(jinja2.nodes.Output([branch.test])) - defined
    defined_by_branches = []
    for body in (node.body, *(branch.body for branch in node.elif_), node.else_):
        defined_by_branch = set(defined)
        needed |= _needed_names(body, defined_by_branch)
        defined_by_branches.append(defined_by_branch)
    defined |= set.intersection(*defined_by_branches)
    return needed


def _needed_by_for(node: jinja2.nodes.For, defined: set[str]) -> set[str]:
    """Return the names that a `for` needs. It sets nothing for the nodes after it."""
    head = jinja2.nodes.For(node.target, node.iter, [], [], node.test, node.recursive)
    needed = undeclared(head) - defined
    needed |= _needed_names(node.body, defined | _stored_names(head) | {"loop"})
    return needed | _needed_names(node.else_, set(defined))


def _stored_names(node: jinja2.nodes.Node) -> set[str]:
    return {name.name for name in node.find_all(jinja2.nodes.Name) if name.ctx == "store"}
