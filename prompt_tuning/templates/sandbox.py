"""Compile Jinja in a sandbox, since a template may come with a stranger's adapter, and find what it reads."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment, modifies_known_mutable

from prompt_tuning.support.jinja_limits import BoundedSandbox
from prompt_tuning.templates.soft_text import SoftText, without_marks
from prompt_tuning.templates.values import NULL, of_printable, of_printable_items, printable, written_json

SEPARATOR = "|||"
ROW = "row"
"""The variable that has the whole row, for columns whose names are not names of Jinja."""

# They hold code points for private use, so that no row holds them by accident.
CHOICE_END = f"\ue000{SEPARATOR}\ue000"
VALUE_END = "\ue001"
_TAG = re.compile(r"\{%.*?%\}|\{#.*?#\}")

# These filters make a text of their value, and so would print a list.
TEXT_FILTERS = (
    "string", "format", "replace", "upper", "lower", "title", "capitalize", "trim", "indent", "center", "wordwrap",
    "wordcount", "truncate", "escape", "e", "striptags",
)  # fmt: skip


class _Sandbox(BoundedSandbox):
    """A sandbox in which a template may change the lists and mappings that it makes, but not those of a row."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if type(obj) in (list, dict):
            return SandboxedEnvironment.is_safe_attribute(self, obj, attr, value)
        return super().is_safe_attribute(obj, attr, value)


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """Return the sandbox of all templates: strict about missing values and nulls, and the same for equal rows."""
    sandbox = _Sandbox(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
        cache_size=400,
        extensions=[SoftText],
    )
    sandbox.filters["most_frequent"] = _most_frequent  # promptsource has this filter
    sandbox.filters["tojson"] = written_json
    sandbox.filters["join"] = of_printable_items(sandbox.filters["join"])
    sandbox.tests["none"] = lambda value: value is None or value is NULL
    sandbox.tests["sameas"] = lambda value, other: value is other or (value is NULL and other is None)
    sandbox.globals["zip"] = zip
    for name in TEXT_FILTERS:
        sandbox.filters[name] = of_printable(sandbox.filters[name])
    del sandbox.filters["random"]
    del sandbox.globals["lipsum"]
    sandbox.meter_filters()
    return sandbox


@functools.cache
def _environment_without_globals() -> ImmutableSandboxedEnvironment:
    """Return an environment for finding names, in which a column may be called `range`."""
    bare = BoundedSandbox()
    bare.filters = environment().filters
    bare.tests = environment().tests
    bare.globals = {}
    return bare


@functools.lru_cache(maxsize=512)
def compiled(text: str) -> jinja2.Template:
    """Return a compiled template.

    Raises:
        jinja2.TemplateError: the text is not valid Jinja.
    """
    return environment().from_string(parsed(text))


def trimmed_lines(text: str) -> list[str]:
    """Return the lines that hold more than tags and lose the line break after a tag, or the spaces before one.

    Jinja leaves them out by `trim_blocks` and `lstrip_blocks`, the same as in chat templates of transformers.
    """
    lines = text.split("\n")
    trimmed = []
    for number, line in enumerate(lines, 1):
        loses_break = number < len(lines) and re.search(r"(?<![+-])[%#]\}$", line)
        loses_spaces = re.match(r"[ \t]+\{[%#](?![+-])", line)
        if (loses_break or loses_spaces) and _TAG.sub("", line).strip():
            trimmed.append(line)
    return trimmed


@functools.lru_cache(maxsize=512)
def compiled_expression(text: str) -> Callable[..., Any]:
    """Return a compiled expression, which is called with the values of a row.

    Raises:
        jinja2.TemplateError: the text is not a valid expression of Jinja.
    """
    return environment().compile_expression(text, undefined_to_none=False)


@functools.lru_cache(maxsize=512)
def compiled_choices(text: str) -> jinja2.Template:
    """Return a compiled template that writes CHOICE_END for each of its separators, and never for one of a row.

    A text that is an argument of a method, such as that of `split`, is compared with a row and stays as it is.
    """
    tree = parsed(text)
    compared: set[int] = set()
    for call in tree.find_all(jinja2.nodes.Call):
        compared.update(map(id, jinja2.nodes.Output(call.args).find_all(jinja2.nodes.Const)))
    for words in tree.find_all(jinja2.nodes.TemplateData):
        words.data = words.data.replace(SEPARATOR, CHOICE_END)
    for constant in tree.find_all(jinja2.nodes.Const):
        if isinstance(constant.value, str) and id(constant) not in compared:
            constant.value = constant.value.replace(SEPARATOR, CHOICE_END)
    return environment().from_string(tree)


@functools.lru_cache(maxsize=512)
def printed_values(text: str) -> jinja2.Template:
    """Return a template that writes the values that another prints of a row, without that one's own words.

    VALUE_END replaces the words, except within a branch or loop: all that a branch or loop prints is one value.
    """
    tree = without_trim_blocks(parsed(text))
    for words in tree.find_all(jinja2.nodes.TemplateData):
        words.data = " "
    for node in tree.body:
        for piece in _pieces(node):
            if isinstance(piece, jinja2.nodes.TemplateData):
                piece.data = VALUE_END
    return environment().from_string(tree)


@functools.lru_cache(maxsize=512)
def compiled_prefix(text: str, constants: frozenset[str]) -> jinja2.Template:
    """Return a template that writes what another writes before the first value of a row, and then VALUE_END.

    Args:
        text: the other template.
        constants: variables that are the same for every row. A branch, loop or assignment counts as a row's value.
    """
    tree = without_trim_blocks(parsed(text))
    for index, node in enumerate(tree.body):
        pieces = _pieces(node)
        fixed = []
        for piece in pieces:
            if _undeclared(jinja2.nodes.Output([piece])) - constants:
                break
            fixed.append(piece)
        if not pieces or len(fixed) < len(pieces):
            end = jinja2.nodes.TemplateData(VALUE_END, lineno=node.lineno)
            tree.body[index:] = [jinja2.nodes.Output([*fixed, end], lineno=node.lineno)]
            break
    tree.set_environment(environment())
    return environment().from_string(tree)


def parsed(text: str, *, marks: bool = False) -> jinja2.nodes.Template:
    """Parse a text so that `~` makes texts by the filter `string`, which does not print a list.

    Args:
        text: Jinja text.
        marks: keep the marks of `{% soft %}`, as scopes.
    """
    tree = environment().parse(text)
    if not marks:
        tree = without_marks(tree)
    for node in tree.find_all(jinja2.nodes.Concat):
        node.nodes = [
            jinja2.nodes.Filter(part, "string", [], [], None, None, lineno=part.lineno) for part in node.nodes
        ]
    return tree


def _pieces(node: jinja2.nodes.Node) -> list[jinja2.nodes.Expr]:
    """Return the words and expressions that a node prints; none of a branch, loop or assignment."""
    return node.nodes if isinstance(node, jinja2.nodes.Output) else []


def without_trim_blocks(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """Replace `{% filter trim %}` blocks, which promptsource's templates have, by what they hold."""
    body = []
    for node in tree.body:
        if isinstance(node, jinja2.nodes.FilterBlock) and _is_trim(node.filter):
            body += node.body
        else:
            body.append(node)
    tree.body = body
    return tree


def _is_trim(node: jinja2.nodes.Filter) -> bool:
    return node.name == "trim" and not node.args and node.node is None


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
            needed |= _undeclared(jinja2.nodes.FilterBlock([], node.filter)) - defined
            needed |= _needed_names(node.body, set(defined))
        elif isinstance(node, jinja2.nodes.For):
            needed |= _needed_by_for(node, defined)
        else:
            needed |= _undeclared(node) - defined
            if isinstance(node, jinja2.nodes.Macro):
                defined.add(node.name)
            elif isinstance(node, (jinja2.nodes.Assign, jinja2.nodes.AssignBlock)):
                defined |= _stored_names(node)
    return needed


def _needed_by_if(node: jinja2.nodes.If, defined: set[str]) -> set[str]:
    """Return the names that an `if` needs, and add to `defined` what every branch sets."""
    needed: set[str] = set()
    for branch in (node, *node.elif_):
        needed |= _undeclared(jinja2.nodes.Output([branch.test])) - defined
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
    needed = _undeclared(head) - defined
    needed |= _needed_names(node.body, defined | _stored_names(head) | {"loop"})
    return needed | _needed_names(node.else_, set(defined))


def _stored_names(node: jinja2.nodes.Node) -> set[str]:
    return {name.name for name in node.find_all(jinja2.nodes.Name) if name.ctx == "store"}


def _undeclared(node: jinja2.nodes.Node) -> set[str]:
    """Return the names that a node reads and does not set, except the global functions that it calls."""
    tree = jinja2.nodes.Template([node], lineno=1)
    tree.set_environment(_environment_without_globals())
    called = {call.node.name for call in tree.find_all(jinja2.nodes.Call) if isinstance(call.node, jinja2.nodes.Name)}
    return jinja2.meta.find_undeclared_variables(tree) - (called & environment().globals.keys())


def _most_frequent(items: Any) -> list[Any]:
    """Return all items that no other item outnumbers, in their order."""
    counts = Counter(items)
    highest = max(counts.values(), default=0)
    return [item for item, count in counts.items() if count == highest]
