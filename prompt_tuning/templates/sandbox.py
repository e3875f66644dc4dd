"""Compile Jinja in a sandbox, since a template may come with a stranger's adapter."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

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
            if undeclared(jinja2.nodes.Output([piece])) - constants:
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


def undeclared(node: jinja2.nodes.Node) -> set[str]:
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
