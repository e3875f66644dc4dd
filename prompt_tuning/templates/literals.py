"""Find a template's literals, its own fixed texts, in what it writes of a row.

A literal is written between marks, which are then taken out again. Text that a filter, a macro or a variable may
change is not a literal, except in a template that is one `{% filter trim %}` block, such as those of promptsource.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jinja2
from jinja2 import nodes

from prompt_tuning.errors import TemplateError
from prompt_tuning.support.jinja import JINJA_ERRORS
from prompt_tuning.templates.rendered import Rendered
from prompt_tuning.templates.sandbox import environment, parsed, without_trim_blocks
from prompt_tuning.templates.soft_text import PRINTED_BODIES, PRINTING_BLOCKS, without_marks
from prompt_tuning.templates.template import Template

Part = Literal["ending", "all", "marked"]
"""The literals that are trained: the last one of the source, all of them, or those that are marked."""

MARK = "\U0010fffe"
"""Unicode reserves it for the inside of programs; no text may hold it."""

Constants = tuple[tuple[str, str], ...]
"""The variables that are the same in every row, with their values."""

_RESERVED = f"a text holds U+{ord(MARK):X}, which is not a character. Take it out."
_MARKS = re.compile(rf"{MARK}(\d*){MARK}")


class Span(NamedTuple):
    """The place of a literal in a text.

    Args:
        literal: its number in the template.
        start: the first character in the text.
        end: the character after its last one.
        skipped: the number of the literal's first characters that are trimmed from the text.
    """

    literal: int
    start: int
    end: int
    skipped: int = 0


def literals(template: Template, languages: dict[str, str] | None, part: Part) -> tuple[str, ...]:
    """Return the texts of a template's literals, those of the source first and then those of the system message.

    Args:
        template: the template.
        languages: from `language_variables`. Their names are fixed text too, since they are the same in every row.
        part: the literals that count.

    Raises:
        TemplateError: there are none; or a mark of `{% soft %}` stands where its text may be changed.
    """
    constants = _constants(languages)
    try:
        texts = _literals(template.source, constants, part)
        if template.system and part != "ending":
            texts += _literals(template.system, constants, part)
    except JINJA_ERRORS as error:
        raise TemplateError(f"template {template.name}: {error}") from None
    if not texts:
        raise TemplateError(f"template {template.name}: trained_text {part}: {_ADVICE[part]}")
    if any(MARK in text for text in texts):
        raise TemplateError(
            f"template {template.name}: it holds U+{ord(MARK):X}, which is not a character; take it out"
        )
    return texts


_ADVICE = {
    "ending": "its source ends with a column, a branch or a loop. End it with fixed text, such as \\nAnswer:",
    "all": "it has no fixed text. Write words beside its columns",
    "marked": "it marks no text. Write {% soft %} and {% endsoft %} around the words to train",
}


def locate(
    template: Template, row: Mapping[str, Any], languages: dict[str, str] | None, part: Part
) -> tuple[Rendered, list[list[Span]]]:
    """Return what a template writes of a row, and for every message the places of the literals in it.

    The ending is that of the row's own source. Demonstrations have the other literals too.

    Args:
        template: the template.
        row: values by column.
        languages: from `language_variables`.
        part: says which fixed text is trained, as `trained_text` of a recipe does.

    Raises:
        TemplateError: as `Template.render` does.
    """
    rendered = template.render(row, languages, with_target=False)
    compile_text = functools.partial(_compiled, constants=_constants(languages), part=part)
    marked = template.render(row, languages, with_target=False, compile_text=compile_text).messages
    num_source = len(_literals(template.source, _constants(languages), part))
    located = []
    for number, (message, with_marks) in enumerate(zip(rendered.messages, marked, strict=True), 1):
        spans = _spans(with_marks["content"], message["content"])
        if part == "ending" and number < len(marked):
            spans = []
        if message["role"] == "system":
            spans = [span._replace(literal=span.literal + num_source) for span in spans]
        located.append(spans)
    return rendered, located


def _spans(marked: str, text: str) -> list[Span]:
    """Return the places of the literals in a text; `marked` is the text with marks, before a trim block."""
    start, place = 0, 0
    literal = ""
    spans = []
    pieces = _MARKS.split(marked)
    whole = "".join(pieces[::2])
    lead = 0 if whole == text else len(whole) - len(whole.lstrip())
    if MARK in text or text not in (whole, whole.strip()):
        raise TemplateError(f"the row: {_RESERVED}")
    for number, piece in zip(["", *pieces[1::2]], pieces[::2], strict=True):
        if number:
            literal, start = number, place
        elif literal:
            first, last = (min(max(edge - lead, 0), len(text)) for edge in (start, place))
            spans.append(Span(int(literal), first, last, max(lead - start, 0)))
            literal = ""
        place += len(piece)
    return spans


def _constants(languages: dict[str, str] | None) -> Constants:
    return tuple(sorted((languages or {}).items()))


@functools.lru_cache(maxsize=512)
def _literals(text: str, constants: Constants, part: Part) -> tuple[str, ...]:
    return tuple("".join(words.data for words in run) for run in _runs_of(_tree(text, constants, part), part))


@functools.lru_cache(maxsize=512)
def _compiled(text: str, constants: Constants, part: Part) -> jinja2.Template:
    """Return a template that writes what another writes, with each literal as MARK number MARK literal MARK MARK."""
    tree = _tree(text, constants, part)
    for number, run in enumerate(_runs_of(tree, part)):
        run[0].data = f"{MARK}{number}{MARK}{run[0].data}"
        run[-1].data += MARK + MARK
    return environment().from_string(without_marks(tree))


def _tree(text: str, constants: Constants, part: Part) -> nodes.Template:
    """Return the parsed text, in which each printed constant is a word."""
    tree = parsed(text, marks=part == "marked")
    if len(tree.body) == 1:
        tree = without_trim_blocks(tree)
    changed = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    values = {name: value for name, value in constants if name not in changed}
    for output in tree.find_all(nodes.Output):
        output.nodes = [_written(piece, values) for piece in output.nodes]
    return tree


def _written(piece: nodes.Expr, values: dict[str, str]) -> nodes.Expr:
    """Return what an expression of constants prints, as words; any other expression as it is."""
    output = nodes.Output([piece], lineno=piece.lineno)
    names = {name.name for name in output.find_all(nodes.Name)}
    if not names or names - values.keys() or output.find(nodes.Call):
        return piece
    tree = nodes.Template([output], lineno=piece.lineno)
    tree.set_environment(environment())
    return nodes.TemplateData(environment().from_string(tree).render(values), lineno=piece.lineno)


def _runs_of(tree: nodes.Template, part: Part) -> list[list[nodes.TemplateData]]:
    runs = list(_runs(tree.body, collect=part != "marked"))
    if part != "ending":
        return runs
    last = tree.body[-1] if tree.body else None
    words = last.nodes[-1] if isinstance(last, nodes.Output) else None
    return [run for run in runs if run[-1] is words]


def _runs(body: list[Any], *, collect: bool) -> Iterator[list[nodes.TemplateData]]:
    """Yield the words that are printed as they are, neighbours together; with `collect` false those in marks only."""
    pieces: list[Any] = []
    for node in body:
        pieces += node.nodes if isinstance(node, nodes.Output) else [node]
    run: list[nodes.TemplateData] = []
    for piece in pieces:
        if isinstance(piece, nodes.TemplateData):
            run.append(piece)
            continue
        if run and collect:
            yield run
        run = []
        if isinstance(piece, nodes.Scope):
            yield from _runs(piece.body, collect=True)
        elif isinstance(piece, PRINTING_BLOCKS):
            for _, part in piece.iter_fields(only=PRINTED_BODIES):
                yield from _runs(part, collect=collect)
    if run and collect:
        yield run
