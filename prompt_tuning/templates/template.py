"""Hard prompts: Jinja templates that turn a row of data into a source and a target."""

from __future__ import annotations

import difflib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jinja2

from prompt_tuning.errors import TemplateError
from prompt_tuning.support.text import gap_after, normalised
from prompt_tuning.support.yaml_files import read_yaml, to_yaml
from prompt_tuning.templates.languages import LANGUAGE_VARIABLES
from prompt_tuning.templates.promptsource import SEPARATOR, convert
from prompt_tuning.templates.sandbox import (
    VALUE_END,
    compiled,
    compiled_expression,
    compiled_opening,
    needed_columns,
    printed_values,
    with_nulls,
)

FOLDER = Path(__file__).parent / "library"
FIELDS_NAMED = 8
SUFFIXES = (".yaml", ".yml")
LISTS = {"demonstrations": dict, "stop": str, "truncate": str}  # and what they hold

# The setting that reads a column under another name, by the usual name.
COLUMN_SETTINGS = {
    "document": "text_column",
    "summary": "summary_column",
    "context": "context_column",
    "question": "question_column",
    "answers": "answer_column",
}


# What somebody's Jinja may raise, a macro that calls itself and `items|dictsort` of a text among it.
JINJA_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError,
)  # fmt: skip

# Stands for a separator within a row's own text while choices are told apart: a code point for private use.
_HELD_SEPARATOR = "\ue000"


@dataclass(frozen=True)
class Rendered:
    """One row as text. `target` is None where the row was rendered for prediction alone."""

    messages: tuple[dict[str, str], ...]
    target: str | None
    references: tuple[str, ...]

    @property
    def source(self) -> str:
        """All messages as plain text, without a chat template: a demonstration's target follows its source."""
        parts: list[str] = []
        for message in self.messages:
            if message["role"] == "assistant":
                parts[-1] += gap_after(parts[-1]) + message["content"]
            else:
                parts.append(message["content"])
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Template:
    """A hard prompt.

    Args:
        source: Jinja text of what the model is given. Its variables are columns of the data, and `source_lang`,
            `target_lang` (codes) and `source_language`, `target_language` (English names).
        target: Jinja text of what the model is to write.
        references: Jinja expression of the list of texts that count as right; without it, the target alone.
        system: text of a system message; put before the source where there is no chat template.
        demonstrations: rows, written with the same source and target, shown before each source.
        chat: wrap the source in the tokenizer's chat template.
        stop: a prediction ends at the first of these texts that follows something other than white space.
        truncate: columns that give way, in this order, when a source is over its token budget.
        answer_choices: Jinja text of all texts that a closed question may be answered with, `|||` between them;
            source, target and references read them as the list `answer_choices`.
        name: where it came from, for messages.
    """

    source: str
    target: str
    references: str | None = None
    system: str | None = None
    demonstrations: tuple[dict[str, Any], ...] = ()
    chat: bool = False
    stop: tuple[str, ...] = ()
    truncate: tuple[str, ...] = ()
    answer_choices: str | None = None
    name: str = "inline"

    @classmethod
    def load(cls, name: str | Path) -> Template:
        """A shipped template by its name (`question_answering/plain`), or one of a YAML file.

        A file holds the fields of one template (`mine.yaml`), or several by name (`mine.yaml:short`), or is one of
        promptsource's (`templates.yaml:Its Name`).

        Raises:
            TemplateError: no such template, or a field that is unknown, missing or not valid Jinja.
        """
        if in_file := re.fullmatch(r"(.+?\.ya?ml)(?::(.+))?", str(name)):
            return _one_of_file(Path(in_file[1]), in_file[2])
        shipped = shipped_templates()
        if str(name) not in shipped:
            nearest = difflib.get_close_matches(str(name), shipped, n=1, cutoff=0.3)
            hint = f"did you mean {nearest[0]}?" if nearest else "a file of your own must end in .yaml"
            raise TemplateError(f"template {name} is not among the shipped ones ({', '.join(shipped)}); {hint}")
        return cls.from_dict(shipped[str(name)], str(name))

    @classmethod
    def from_dict(cls, values: Any, name: str = "inline") -> Template:
        """A template from parsed YAML, checked.

        Raises:
            TemplateError: a field is unknown, missing, of another kind or not valid Jinja.
        """
        known = {field.name for field in fields(cls)} - {"name"}
        if not isinstance(values, dict) or not {"source", "target"} <= set(values):
            raise TemplateError(f"template {name}: expected the fields source and target, found {_found(values)}")
        if unknown := sorted(map(str, set(values) - known)):
            raise TemplateError(
                f"template {name}: unknown field {unknown[0]}; the fields are {', '.join(sorted(known))}"
            )
        for key in ("source", "target", "references", "system", "answer_choices"):
            if not isinstance(values.get(key, ""), str) and (values[key] is not None or key in ("source", "target")):
                kind = type(values[key]).__name__
                raise TemplateError(f"template {name}: expected text as {key}, found {kind}; put it in quotes")
        if not isinstance(values.get("chat", False), bool):
            raise TemplateError(
                f"template {name}: expected true or false as chat, found {values['chat']!r}; write one, without quotes"
            )
        lists = {key: _list(values[key], key, name) for key in LISTS if key in values}
        template = cls(**(values | lists), name=name)
        template.columns  # noqa: B018 - compiles every field, so that a mistake is found here
        template.check_truncate(template.truncate)
        return template

    def to_yaml(self) -> str:
        """The template as a file that `load` reads.

        Raises:
            TemplateError: a demonstration holds something else than text, numbers and dates.
        """
        values = {key: value for key, value in asdict(self).items() if key == "source" or (value and key != "name")}
        lists = {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
        try:
            return to_yaml(values | lists)
        except TypeError as error:
            raise TemplateError(
                f"template {self.name}: a demonstration holds {error}, which no template file can; make text or a "
                "number of it in the data"
            ) from None

    @property
    def source_columns(self) -> frozenset[str]:
        """Columns that a row must have to be predicted on."""
        texts = (self.source, self.system or "", self.answer_choices or "")
        return frozenset().union(*map(self._variables, texts))

    @property
    def columns(self) -> frozenset[str]:
        """Columns that a row must have to be trained on."""
        expression = f"{{{{ {self.references} }}}}" if self.references else ""
        return self.source_columns | self._variables(self.target) | self._variables(expression)

    def check_columns(self, available: list[str], where: str, for_prediction: bool = False) -> None:
        """Raise TemplateError if the data lacks a column, naming both sides."""
        missing = sorted((self.source_columns if for_prediction else self.columns) - set(available))
        if missing:
            raise TemplateError(
                f"template {self.name} needs the column {missing[0]!r}, and {where} has "
                f"{', '.join(map(repr, available))}; choose another template, or name the column to read in its place"
                f"{_column_flag(missing[0])}"
            )

    def check_truncate(self, columns: Sequence[str]) -> None:
        """Raise TemplateError if one of the columns to be cut is not in the source, so that nothing would be."""
        read = sorted(self.source_columns)
        if unread := [column for column in columns if column not in read]:
            raise TemplateError(
                f"template {self.name}: truncate names {unread[0]!r}, and its source reads "
                f"{', '.join(map(repr, read)) or 'no column'}; name one of these"
            )

    def render(
        self, row: dict[str, Any], languages: dict[str, str] | None = None, with_target: bool = True
    ) -> Rendered:
        """One row as messages, target and references.

        Raises:
            TemplateError: the row lacks something that the template reads, a value is null, or the target is empty.
        """
        values = self._values(row, languages)
        messages = self._messages(languages, lambda text: self._render(text, values))
        return Rendered(messages, *(self.render_target(row, languages) if with_target else (None, ())))

    def opening(self, languages: dict[str, str] | None = None) -> Rendered:
        """What every row is rendered as up to its first own text, in whose place VALUE_END stands."""
        given = languages or {}
        compile = functools.partial(compiled_opening, given=frozenset(given))
        return Rendered(self._messages(languages, lambda text: self._render(text, given, compile)), None, ())

    def _messages(self, languages: dict[str, str] | None, write: Callable[[str], str]) -> tuple[dict[str, str], ...]:
        """System message, demonstrations and source as turns; `write` makes text of a field."""
        system = [{"role": "system", "content": write(self.system)}] if self.system else []
        return (*system, *self._shown(languages), {"role": "user", "content": write(self.source)})

    def render_target(
        self, row: dict[str, Any], languages: dict[str, str] | None = None
    ) -> tuple[str, tuple[str, ...]]:
        """Target and references alone; raises as `render` does."""
        values = self._values(row, languages)
        target = self._render(self.target, values)
        if not target.strip():
            raise TemplateError(f"template {self.name}: the target is empty")
        return target, self._evaluate(self.references, values) if self.references else (target,)

    def source_key(self, row: dict[str, Any], languages: dict[str, str] | None = None) -> tuple[str, ...]:
        """What a row itself says in its source, value by value, without case and white space: equal rows share it.

        Neither the template's own words nor what it prints in its system message are part of it.

        Raises:
            TemplateError: the row lacks something that the source reads.
        """
        values = _replaced({**self._values(row, languages)}, VALUE_END, " ")
        text = self._render(self.source, values, printed_values)
        return tuple(map(normalised, text.split(VALUE_END)))

    def choices(self, row: dict[str, Any], languages: dict[str, str] | None = None) -> list[str]:
        """The texts that the row may be answered with, in their order; none where the answer is open.

        Raises:
            TemplateError: the row lacks something that answer_choices reads.
        """
        if self.answer_choices is None:
            return []
        held = _replaced(with_nulls({**row, **(languages or {})}), SEPARATOR, _HELD_SEPARATOR)
        text = self._render(self.answer_choices, held)
        return [choice.strip().replace(_HELD_SEPARATOR, SEPARATOR) for choice in text.split(SEPARATOR)]

    def _shown(self, languages: dict[str, str] | None) -> list[dict[str, str]]:
        """Demonstrations as turns."""
        messages = []
        shown = replace(self, demonstrations=(), system=None, references=None)
        for number, demonstration in enumerate(self.demonstrations, 1):
            try:
                example = shown.render(demonstration, languages)
            except TemplateError as error:
                hint = f"in its demonstration {number}; a file of your own may show others"
                raise TemplateError(f"{error} ({hint})") from None
            messages.append(example.messages[0])
            messages.append({"role": "assistant", "content": example.target or ""})
        return messages

    def _values(self, row: dict[str, Any], languages: dict[str, str] | None) -> dict[str, Any]:
        values = with_nulls({**row, **(languages or {})})  # a row of `datasets` is no dict
        return values if self.answer_choices is None else values | {"answer_choices": self.choices(row, languages)}

    def _variables(self, text: str) -> frozenset[str]:
        given = LANGUAGE_VARIABLES if self.answer_choices is None else LANGUAGE_VARIABLES | {"answer_choices"}
        try:
            return needed_columns(text, frozenset(given))
        except (*JINJA_ERRORS, SyntaxError) as error:  # of Python, for loops too deep in each other
            raise TemplateError(f"template {self.name}: {error} in {text.strip()[:80]!r}") from None

    def _render(self, text: str, values: dict[str, Any], compile: Callable[[str], jinja2.Template] = compiled) -> str:
        try:
            return compile(text).render(values)
        except JINJA_ERRORS as error:
            raise TemplateError(f"template {self.name}: {error}") from None

    def _evaluate(self, expression: str, values: dict[str, Any]) -> tuple[str, ...]:
        try:
            found = compiled_expression(expression)(values)
            texts = [found] if isinstance(found, str) or not isinstance(found, Iterable) else found
            texts = list(texts.items() if isinstance(texts, Mapping) else texts)
        except JINJA_ERRORS as error:
            raise TemplateError(f"template {self.name}: references: {error}") from None
        if wrong := [each for each in texts if not isinstance(each, str | int | float)]:
            raise TemplateError(f"template {self.name}: references holds {wrong[0]!r}, which is no text")
        return tuple(map(str, texts))


@functools.cache
def shipped_templates() -> dict[str, dict[str, Any]]:
    """Name -> fields of every template in this package, `<task>/<name>`."""
    return {
        f"{file.stem}/{name}": values
        for file in sorted(FOLDER.glob("*.yaml"))
        for name, values in read_yaml(file, TemplateError).items()
    }


def load_templates(where: str | Path | None = None) -> dict[str, Template | TemplateError]:
    """Templates by the name that `Template.load` takes; one that cannot be read is the error that says why.

    Args:
        where: a shipped template, a task (all that are shipped for it), a file, or a folder, searched for YAML files
            to its last subfolder; by default all that are shipped.

    Raises:
        TemplateError: there is nothing of that name, or the file is not YAML.
    """
    shipped = [name for name in shipped_templates() if where is None or f"{name}/".startswith(f"{where}/")]
    if shipped:
        return {name: Template.load(name) for name in shipped}
    path = Path(where)
    if path.is_file() and path.suffix in SUFFIXES:
        return _templates_of_file(path)
    if not path.is_dir():
        return {str(where): Template.load(where)}
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise TemplateError(f"{path}: no .yaml file in this folder; name one that holds templates")
    found: dict[str, Template | TemplateError] = {}
    for file in files:
        try:
            found |= _templates_of_file(file)
        except TemplateError as error:
            found[str(file)] = error
    return found


def _one_of_file(path: Path, name: str | None) -> Template:
    if not path.is_file():
        raise TemplateError(f"template {path}: no such file (looked in {Path.cwd()})")
    found = _templates_of_file(path)
    wanted = str(path) if name is None else f"{path}:{name}"
    if name is None and len(found) == 1:
        (wanted,) = found
    if wanted not in found:
        names = {full.removeprefix(f"{path}:"): full for full in found}
        (nearest,) = difflib.get_close_matches(name or "", names, n=1) or [*names][:1]
        raise TemplateError(
            f"template {wanted}: the file holds {len(names)} ({', '.join(names)}); name one, as {names[nearest]}"
        )
    if isinstance(template := found[wanted], TemplateError):
        raise template
    return template


def _templates_of_file(path: Path) -> dict[str, Template | TemplateError]:
    values = read_yaml(path, TemplateError)
    if isinstance(values, dict) and {"dataset", "templates"} <= set(values):
        return _templates_of_promptsource(path, values["templates"])
    if isinstance(values, dict) and values and all(isinstance(value, dict) for value in values.values()):
        return {f"{path}:{name}": _attempt(fields, f"{path}:{name}") for name, fields in values.items()}
    return {str(path): Template.from_dict(values, str(path))}


def _templates_of_promptsource(path: Path, entries: Any) -> dict[str, Template | TemplateError]:
    if not isinstance(entries, dict) or not entries:
        raise TemplateError(
            f"template {path}: expected templates by id under the key templates, found {_found(entries)}"
        )
    names = [str(entry.get("name") or key) if isinstance(entry, dict) else str(key) for key, entry in entries.items()]
    shared = {name for name, count in Counter(names).items() if count > 1}
    found: dict[str, Template | TemplateError] = {}
    for name, (key, entry) in zip(names, entries.items(), strict=True):
        full = f"{path}:{key if name in shared else name}"
        found[full] = _attempt(entry, full, convert)
    return found


def _attempt(values: Any, name: str, convert: Callable[[Any, str], Any] | None = None) -> Template | TemplateError:
    try:
        return Template.from_dict(convert(values, name) if convert else values, name)
    except TemplateError as error:
        return error


def _replaced(value: Any, old: str, new: str) -> Any:
    """A row with one text in place of another wherever it stands."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    return [_replaced(item, old, new) for item in value] if isinstance(value, list) else value


def _list(value: Any, key: str, name: str) -> tuple:
    if value is None:
        return ()
    kind, held = LISTS[key], "rows" if LISTS[key] is dict else "texts"
    if not isinstance(value, list) or not all(isinstance(each, kind) and each for each in value):
        raise TemplateError(
            f"template {name}: expected a list of {held} as {key}, none of them empty, found {value!r}"
        )
    return tuple(value)


def _found(values: Any) -> str:
    if not isinstance(values, dict) or not values:
        return type(values).__name__
    return ", ".join([*map(str, values)][:FIELDS_NAMED]) + (", ..." if len(values) > FIELDS_NAMED else "")


def _column_flag(column: str) -> str:
    return f" (--{COLUMN_SETTINGS[column]} NAME)" if column in COLUMN_SETTINGS else ""
