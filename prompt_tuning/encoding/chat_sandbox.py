"""Render chat templates, which come with a stranger's tokenizer, as transformers does, with a bound on their cost."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from prompt_tuning.support.jinja_limits import BoundedSandbox


class _Generation(Extension):
    """Take `{% generation %}`, which marks an answer for training in transformers, for a block that prints itself."""

    tags = {"generation"}  # noqa: RUF012  Jinja declares it so.

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


def render_chat(
    chat_template: str,
    messages: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    """Return messages as `apply_chat_template(..., tokenize=False)` writes them.

    Args:
        chat_template: the Jinja text.
        messages: the turns, with `role` and `content`.
        special_tokens: `special_tokens_map` of the tokenizer.
        add_generation_prompt: write the start of an answer.

    Raises:
        jinja2.TemplateError: the text is not valid Jinja, raises an error, or costs more than a rendering may. The
            other errors are those of JINJA_ERRORS.
    """
    return _compiled(chat_template).render(
        messages=list(messages),
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **special_tokens,
    )


@functools.lru_cache(maxsize=16)
def _compiled(chat_template: str) -> jinja2.Template:
    environment = _environment()
    return environment.from_string(environment.parse(chat_template))


@functools.cache
def _environment() -> BoundedSandbox:
    """Return a sandbox with the functions that transformers gives to chat templates."""
    sandbox = BoundedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    sandbox.meter_filters()
    return sandbox


def _to_json(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:  # noqa: FBT001, FBT002
    return json.dumps(value, ensure_ascii=ensure_ascii, **settings)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
