"""Templates as text for a terminal: a table, one whole, or what each makes of a row. Imports no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prompt_tuning.errors import DataError, TemplateError
from prompt_tuning.support.tables import text_table
from prompt_tuning.templates.languages import language_variables
from prompt_tuning.templates.template import COLUMN_SETTINGS, Template

OPENING_WIDTH = 60


def table(templates: dict[str, Template]) -> str:
    """A line each: name, kind, the columns to train on, the first words."""
    rows = []
    for name, template in templates.items():
        words = " ".join(re.sub(r"\{%.*?%\}", " ", f"{template.system or ''} {template.source}", flags=re.S).split())
        rows.append((name, _kind(template), ", ".join(sorted(template.columns)), words[:OPENING_WIDTH]))
    return text_table(("name", "kind", "columns", "first words"), rows)


def whole(name: str, template: Template) -> str:
    """A template as a file that `Template.load` reads."""
    return f"# {name}\n{template.to_yaml()}"


def on_row(
    templates: dict[str, Template], row: dict[str, Any], languages: dict[str, str]
) -> tuple[list[str], list[str]]:
    """What each template makes of a row; and for those that cannot be rendered, why.

    Raises:
        TemplateError: none can be rendered.
    """
    fitting = [name for name, template in templates.items() if template.source_columns <= set(row)]
    if not fitting:
        next(iter(templates.values())).check_columns(list(row), "the row", for_prediction=True)
    texts, problems = [], []
    for name in fitting:
        try:
            texts.append(_on_row(name, templates[name], row, languages))
        except TemplateError as error:
            problems.append(str(error))
    if not texts:
        raise TemplateError("\n".join(problems))
    if unfit := len(templates) - len(fitting):
        problems.append(f"{unfit} of {len(templates)} templates, which read columns that the row has not")
    return texts, problems


def read_row(given: str) -> dict[str, Any]:
    """A row written out as JSON, or the first of a json or jsonl file.

    Raises:
        DataError: neither.
    """
    written_out = given.lstrip().startswith("{")
    where = "--row" if written_out else f"--row {given}"
    if not written_out and not Path(given).is_file():
        raise DataError(f"{where}: no such file; name a json or jsonl file, or write the row as '{{\"column\": ...}}'")
    try:
        text = given if written_out else Path(given).read_text(encoding="utf-8-sig").lstrip()
        row = json.loads(text) if written_out else json.JSONDecoder().raw_decode(text)[0]
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    if isinstance(row, list) and row:
        row = row[0]
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def row_of_template(
    row: dict[str, Any], columns: dict[str, str | None], source_lang: str | None, target_lang: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The row under the usual columns, as `load_splits` names them, and the language variables.

    Args:
        columns: the settings of COLUMN_SETTINGS.
        source_lang, target_lang: by default the first and the second language of the column translation.
    """
    for usual, setting in COLUMN_SETTINGS.items():
        if theirs := columns[setting]:
            if theirs not in row:
                raise DataError(f"the row has no column {theirs!r}; it has {', '.join(map(repr, row))}")
            row = {key: value for key, value in row.items() if key != theirs} | {usual: row[theirs]}
    if "translation" not in row and {source_lang, target_lang} <= set(row):
        row = row | {"translation": {code: row[code] for code in (source_lang, target_lang)}}
    pair = row.get("translation")
    others = [code for code in pair if code not in (source_lang, target_lang)] if isinstance(pair, dict) else []
    source_lang = source_lang or (others.pop(0) if others else None)
    target_lang = target_lang or (others.pop(0) if others else None)
    return row, language_variables(source_lang, target_lang)


def _kind(template: Template) -> str:
    shown = ["few-shot"] if template.demonstrations else []
    return ", ".join([*shown, "chat"] if template.chat else shown or ["text"])


def _on_row(name: str, template: Template, row: dict[str, Any], languages: dict[str, str]) -> str:
    missing = sorted(template.columns - set(row))
    rendered = template.render(row, languages, with_target=not missing)
    source = rendered.source
    if template.chat:  # what the tokenizer's chat template is given
        source = "\n".join(f"[{message['role']}]\n{message['content']}" for message in rendered.messages)
    lines = [f"== {name}", source]
    if missing:
        lines.append(f"-- target: needs the column {missing[0]!r}")
    else:
        references = " / ".join(map(repr, rendered.references))
        lines += [f"-- target: {rendered.target!r}", f"-- references: {references}"]
    if template.answer_choices:
        lines.append(f"-- choices: {' / '.join(map(repr, template.choices(row, languages)))}")
    return "\n".join([*lines, ""])
