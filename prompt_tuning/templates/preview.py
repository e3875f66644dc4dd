"""Show templates in a terminal: as a table, as a file, or rendered on a row. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from prompt_tuning.errors import DataError, TemplateError
from prompt_tuning.support.tables import text_table
from prompt_tuning.support.text import gap_after, has_unseen_characters, listed
from prompt_tuning.templates.languages import language_variables
from prompt_tuning.templates.shapes import standard_columns, with_translation
from prompt_tuning.templates.template import Template

FIRST_WORDS_WIDTH = 60


def template_table(templates: dict[str, Template]) -> str:
    """Return a table with name, kind, columns for training and first words of each template."""
    rows = []
    for name, template in templates.items():
        text = re.sub(r"\{%.*?%\}", " ", f"{template.system or ''} {template.source}", flags=re.S)
        words = " ".join(text.split())[:FIRST_WORDS_WIDTH]
        rows.append((name, _kind(template), ", ".join(sorted(template.columns)), words))
    return text_table(("name", "kind", "columns", "first words"), rows)


def template_file(name: str, template: Template) -> str:
    """Return a template as a file that `Template.load` reads."""
    return f"# {name}\n{template.to_yaml()}"


def render_on_row(
    templates: dict[str, Template], row: dict[str, Any], languages: dict[str, str]
) -> tuple[list[str], list[str]]:
    """Return the text of each template for a row, and why others cannot be rendered.

    Args:
        templates: templates by name.
        row: values by column.
        languages: from `language_variables`.

    Raises:
        TemplateError: no template can be rendered.
    """
    texts = []
    problems = []
    num_unfit = 0
    for name, template in templates.items():
        if template.missing_columns(template.source_columns, row):
            num_unfit += 1
            continue
        try:
            texts.append(_render_one(name, template, row, languages))
        except TemplateError as error:
            problems.append(str(error))
    if num_unfit == len(templates):
        template = next(iter(templates.values()))
        template.check_columns(list(row), "the row", template.source_columns)
    if not texts:
        raise TemplateError("\n".join(problems))
    if num_unfit:
        problems.append(f"{num_unfit} of {len(templates)} templates, which read columns that the row does not have")
    return texts, problems


def rename_columns(
    row: dict[str, Any], columns: dict[str, str | None], source_lang: str | None, target_lang: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the row under the usual columns, as `load_splits` names them, and the language variables.

    Args:
        row: values by column.
        columns: the settings that name columns, by name.
        source_lang: by default the first language of the column `translation`.
        target_lang: by default the next language of the column `translation`.

    Raises:
        DataError: the row lacks a column that a setting names.
    """
    languages = {"source_lang": source_lang, "target_lang": target_lang}
    for usual_name, column in standard_columns(columns | languages).items():
        if column and column not in row:
            raise DataError(f"the row has no column {column!r}. It has {listed([*row], 30)}.")
        if column:
            value = row[column]
            row = {key: item for key, item in row.items() if key != column}
            row[usual_name] = value
    row = dict(with_translation(row, source_lang, target_lang))
    pair = row.get("translation")
    others = [code for code in pair if code not in (source_lang, target_lang)] if isinstance(pair, dict) else []
    source_lang = source_lang or (others.pop(0) if others else None)
    target_lang = target_lang or (others.pop(0) if others else None)
    return row, language_variables(source_lang, target_lang)


def _kind(template: Template) -> str:
    kinds = []
    if template.demonstrations:
        kinds.append("few-shot")
    if template.chat:
        kinds.append("chat")
    return ", ".join(kinds) or "text"


def _render_one(name: str, template: Template, row: dict[str, Any], languages: dict[str, str]) -> str:
    """Return source, target, references and choices of a row under the template's name."""
    missing = template.missing_columns(template.training_columns, row)
    rendered = template.render(row, languages, with_target=not missing)
    source = rendered.source
    if template.chat:
        source = "\n".join(f"[{message['role']}]\n{message['content']}" for message in rendered.messages)
    lines = [f"== {name}", source]
    if has_unseen_characters(rendered.source):
        lines.append(f"-- as it is written: {rendered.source!r}")
    if missing:
        lines.append(f"-- target: needs the column {missing[0]!r}")
    else:
        references = " / ".join(map(repr, rendered.references))
        lines += [f"-- target: {rendered.target!r}", f"-- references: {references}"]
    if template.chat:
        lines.append("-- a tokenizer's chat template writes its own tokens around the messages, as `render` shows")
    elif gap_after(rendered.source):
        lines.append("-- a space stands between source and target")
    if template.answer_choices:
        lines.append(f"-- choices: {' / '.join(map(repr, template.choices(row, languages)))}")
    return "\n".join([*lines, ""])
