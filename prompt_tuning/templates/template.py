"""Hard prompts: Jinja templates that turn a row of data into a source and a target."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jinja2

from prompt_tuning.errors import EmptyRowError, TemplateError
from prompt_tuning.support.jinja import JINJA_ERRORS
from prompt_tuning.support.text import listed, normalised
from prompt_tuning.support.yaml_files import to_yaml
from prompt_tuning.templates.columns import columns_of_row, needed_columns
from prompt_tuning.templates.conversations import turns_of
from prompt_tuning.templates.fields import LIST_FIELDS, check_fields, check_marks, checked_list, column_hint
from prompt_tuning.templates.languages import LANGUAGE_VARIABLES
from prompt_tuning.templates.loading import find_entries, find_entry
from prompt_tuning.templates.rendered import Rendered
from prompt_tuning.templates.sandbox import (
    CHOICE_END,
    ROW,
    VALUE_END,
    compiled,
    compiled_choices,
    compiled_expression,
    compiled_prefix,
    printed_values,
    trimmed_lines,
)
from prompt_tuning.templates.shapes import COLUMN_SETTINGS, shape_hint, standard_shapes
from prompt_tuning.templates.values import kind_of, replaced, with_nulls

UNNAMED_HINT = '. A column with a space or a dash in its name is row["its name"]'

Compile = Callable[[str], jinja2.Template]


@dataclass(frozen=True)
class Template:
    """A hard prompt.

    Args:
        source: Jinja text of the model's input. Its variables are columns of the data, `source_lang` and
            `target_lang` (codes), and `source_language` and `target_language` (English names), and the
            same with `_zh` (Chinese names).
        target: Jinja text of the model's output.
        references: Jinja expression of the list of texts that count as right; by default only the target.
        system: text of a system message. Without a chat template it stands before the source.
        demonstrations: rows that are written with the same source and target before each source.
        chat: wrap the source in the tokenizer's chat template.
        stop: a prediction ends at the first of these texts that follows something other than white space.
        truncate: the columns that are cut, in this order, if a source is over its token budget.
        answer_choices: Jinja text of all answers to a closed question, with `|||` between them. Source, target and
            references read them as the list `answer_choices`.
        history: Jinja expression of the turns of a conversation that stand before the source.
        name: where the template came from, for messages.
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
    history: str | None = None
    name: str = "inline"

    @classmethod
    def load(cls, name: str | Path) -> Template:
        """Return a shipped template by its name (`question_answering/plain`), or a template of a YAML file.

        A file holds the fields of one template (`mine.yaml`), or several by name (`mine.yaml:short`), or is a file of
        promptsource (`templates.yaml:Its Name`).

        Raises:
            TemplateError: there is no such template, or a field is unknown, missing or not valid Jinja.
        """
        entry = find_entry(str(name))
        return cls.from_dict(entry.fields(), entry.name)

    @classmethod
    def from_dict(cls, values: Any, name: str = "inline") -> Template:
        """Return a template from parsed YAML, checked.

        Args:
            values: the fields by name.
            name: where they came from, for messages.

        Raises:
            TemplateError: a field is unknown, missing, of another type or not valid Jinja.
        """
        check_fields(values, {field.name for field in fields(cls)} - {"name"}, name)
        lists = {key: checked_list(values[key], key, name) for key in LIST_FIELDS if key in values}
        template = cls(**(values | lists), name=name)
        template.columns  # noqa: B018 - Compiles every field, so that a mistake is reported here.
        check_marks(values, name)
        template.check_truncate(template.truncate)
        return template

    def to_yaml(self) -> str:
        """Return the template as the text of a file that `load` reads.

        Raises:
            TemplateError: a demonstration holds something other than text, numbers, dates, lists and mappings.
        """
        values = {}
        for key, value in asdict(self).items():
            if key == "source" or (value and key != "name"):
                values[key] = list(value) if isinstance(value, tuple) else value
        try:
            return to_yaml(values)
        except TypeError as error:
            raise TemplateError(
                f"template {self.name}: a demonstration holds {error}, which no template file can hold. Make it a "
                "text or a number in the data."
            ) from None

    @property
    def source_columns(self) -> frozenset[str]:
        """The columns that a row needs for prediction."""
        texts = (self.source, self.system or "", self.answer_choices or "", _as_statement("history", self.history))
        return frozenset().union(*map(self._variables, texts))

    @property
    def training_columns(self) -> frozenset[str]:
        """The columns that a row needs for training."""
        return self.source_columns | self._variables(self.target)

    @property
    def trimmed_lines(self) -> list[str]:
        """The lines of its texts that are written without a line break or spaces beside one of their tags."""
        lines = []
        for text in self._texts:
            lines += trimmed_lines(text)
        return lines

    @property
    def columns(self) -> frozenset[str]:
        """The columns that a row needs for evaluation, which are those for training and those of references."""
        return self.training_columns | self._variables(self._references)

    def missing_columns(self, needed: Iterable[str], available: Iterable[str]) -> list[str]:
        """Return the columns that are needed and not available. A column named `row` gives what texts read of it."""
        missing = set(needed) - set(available)
        if ROW in available:
            missing -= frozenset().union(*map(columns_of_row, self._texts))
        return sorted(missing)

    def check_columns(self, available: Sequence[str], where: str, needed: Iterable[str] | None = None) -> None:
        """Check that the data has the columns that the template reads.

        Args:
            available: the columns of the data.
            where: where the data came from, for the message.
            needed: source_columns or training_columns; None for all columns.

        Raises:
            TemplateError: a column is missing.
        """
        missing = self.missing_columns(self.columns if needed is None else needed, available)
        if missing:
            setting = COLUMN_SETTINGS.get(missing[0])
            flag = f" (--{setting} NAME)" if setting else ""
            raise TemplateError(
                f"template {self.name} needs the column {missing[0]!r}, and {where} has "
                f"{listed([*available], 30) or 'none'}. Choose another template, or name the column to read "
                f"instead{flag}.{column_hint(missing[0], available)}"
            )

    def check_truncate(self, columns: Sequence[str]) -> None:
        """Check that the source reads each of the columns to be cut.

        Raises:
            TemplateError: the source does not read a column, so that nothing would be cut.
        """
        read = sorted(self.source_columns)
        for column in columns:
            if column not in read:
                raise TemplateError(
                    f"template {self.name}: truncate names {column!r}, and its source reads "
                    f"{', '.join(map(repr, read)) or 'no column'}. Name one of these."
                )

    def render(
        self,
        row: Mapping[str, Any],
        languages: dict[str, str] | None = None,
        *,
        with_target: bool = True,
        compile_text: Compile = compiled,
    ) -> Rendered:
        """Return one row as messages, target and references.

        Args:
            row: values by column.
            languages: from `language_variables`.
            with_target: render target and references too; a row to predict on has neither.
            compile_text: compiles source and system, those of demonstrations too.

        Raises:
            TemplateError: the row lacks something that the template reads, a value is null, or the target is empty.
        """
        values = self._values(row, languages)
        history = turns_of(self.history, values)
        messages = self._messages(
            languages, lambda text: self._render(text, values, compile_text), compile_text, history
        )
        target, references = self.render_target(row, languages) if with_target else (None, ())
        return Rendered(messages, target, references)

    def common_prefix(self, languages: dict[str, str] | None = None) -> Rendered:
        """Return what every row is rendered as up to its first own text, which VALUE_END stands for.

        A row whose conversation has a system turn of its own begins otherwise.

        Args:
            languages: from `language_variables`.
        """
        variables = languages or {}
        compile_text = functools.partial(compiled_prefix, constants=frozenset(variables))
        history = [{"role": "user", "content": VALUE_END}] if self.history else []
        messages = self._messages(languages, lambda text: self._render(text, variables, compile_text), history=history)
        return Rendered(messages, None, ())

    def render_target(
        self, row: Mapping[str, Any], languages: dict[str, str] | None = None
    ) -> tuple[str, tuple[str, ...]]:
        """Return only the target and the references of a row; no references if it lacks a column that they read.

        Args:
            row: values by column.
            languages: from `language_variables`.

        Raises:
            TemplateError: the row lacks something that they read, a value is null, or the target is empty.
        """
        values = self._values(row, languages)
        target = self._render(self.target, values)
        if not target.strip():
            raise EmptyRowError(f"template {self.name}: the target is empty")
        if not self.references:
            return target, (target,)
        has_references = not self.missing_columns(self._variables(self._references), row)
        return target, self._evaluate(self.references, values) if has_references else ()

    def source_key(self, row: Mapping[str, Any], languages: dict[str, str] | None = None) -> tuple[str, ...]:
        """Return the values that the source prints of a row, without case and white space. Equal rows share the key.

        Neither the template's own words nor the values in its system message are part of the key.

        Args:
            row: values by column.
            languages: from `language_variables`.

        Raises:
            TemplateError: the row lacks something that the source reads.
        """
        values = replaced(self._values(row, languages), VALUE_END, " ")
        text = self._render(self.source, values, printed_values)
        turns = [turn["content"] for turn in turns_of(self.history, values) if turn["role"] != "system"]
        return (*map(normalised, text.split(VALUE_END)), *([normalised(" ".join(turns))] if self.history else []))

    def choices(self, row: Mapping[str, Any], languages: dict[str, str] | None = None) -> list[str]:
        """Return the possible answers to a row, in their order; none if the question is open.

        Args:
            row: values by column.
            languages: from `language_variables`.

        Raises:
            TemplateError: the row lacks something that answer_choices reads.
        """
        if self.answer_choices is None:
            return []
        text = self._render(self.answer_choices, self._row_values(row, languages), compiled_choices)
        return [choice.strip() for choice in text.split(CHOICE_END)]

    def standard_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with answers, translation and document in the shape that the fields of this template expect."""
        return standard_shapes(row, self._texts)

    @property
    def _texts(self) -> tuple[str, ...]:
        """The fields that are Jinja texts."""
        fields = (self.source, self.target, self._references, self.system, self.answer_choices)
        return tuple(filter(None, (*fields, _as_statement("history", self.history))))

    @property
    def _references(self) -> str:
        """The expression `references` as Jinja text, which prints nothing."""
        return _as_statement("references", self.references)

    def _messages(
        self,
        languages: dict[str, str] | None,
        write: Callable[[str], str],
        compile_text: Compile = compiled,
        history: Sequence[dict[str, str]] = (),
    ) -> tuple[dict[str, str], ...]:
        """Return system message, demonstrations, history and source as turns; `write` makes text of a field."""
        messages = [turn for turn in history if turn["role"] == "system"]
        if self.system:
            messages.append({"role": "system", "content": write(self.system)})
        if len(messages) > 1:
            raise TemplateError(
                f"template {self.name}: it has a system message, and so has the row. Leave out one of the two."
            )
        messages += self._demonstration_messages(languages, compile_text)
        messages += [turn for turn in history if turn["role"] != "system"]
        messages.append({"role": "user", "content": write(self.source)})
        return tuple(messages)

    def _demonstration_messages(self, languages: dict[str, str] | None, compile_text: Compile) -> list[dict[str, str]]:
        messages = []
        template = replace(self, demonstrations=(), system=None, references=None)
        for number, demonstration in enumerate(self.demonstrations, 1):
            try:
                example = template.render(demonstration, languages, compile_text=compile_text)
            except TemplateError as error:
                raise TemplateError(
                    f"{error} (in its demonstration {number}; a file of your own may show others)"
                ) from None
            messages += [turn for turn in example.messages if turn["role"] != "system"]
            messages.append({"role": "assistant", "content": example.target or ""})
        return messages

    def _values(self, row: Mapping[str, Any], languages: dict[str, str] | None) -> dict[str, Any]:
        """Return the variables of source and target."""
        values = self._row_values(row, languages)
        if self.answer_choices is None:
            return values
        return values | {"answer_choices": with_nulls(self.choices(row, languages))}

    def _row_values(self, row: Mapping[str, Any], languages: dict[str, str] | None) -> dict[str, Any]:
        """Return the columns of a row and its languages, and the row as a whole for the columns of other names."""
        values = with_nulls(self.standard_row(row) | (languages or {}))
        return {ROW: values} | values if any(ROW in text for text in self._texts) else values

    def _variables(self, text: str) -> frozenset[str]:
        """Return the columns that a field needs; raise TemplateError if it is not valid Jinja."""
        constants = LANGUAGE_VARIABLES if self.answer_choices is None else LANGUAGE_VARIABLES | {"answer_choices"}
        try:
            return needed_columns(text, frozenset(constants))
        except (*JINJA_ERRORS, SyntaxError) as error:  # Loops nested too deeply are a SyntaxError of Python.
            hint = UNNAMED_HINT if str(error).startswith("expected token 'end of print statement'") else ""
            raise TemplateError(f"template {self.name}: {error} in {text.strip()[:80]!r}{hint}") from None

    def _render(
        self,
        text: str,
        values: Mapping[str, Any],
        compile_text: Compile = compiled,
    ) -> str:
        try:
            return compile_text(text).render(values)
        except JINJA_ERRORS as error:
            raise TemplateError(f"template {self.name}: {error}{shape_hint(str(error), values)}") from None

    def _evaluate(self, expression: str, values: dict[str, Any]) -> tuple[str, ...]:
        """Return the texts of the expression `references`."""
        try:
            result = compiled_expression(expression)(values)
            if isinstance(result, Mapping):
                result = result.items()
            is_list = isinstance(result, Iterable) and not isinstance(result, str)
            texts = list(result) if is_list else [result]
        except JINJA_ERRORS as error:
            raise TemplateError(f"template {self.name}: references: {error}") from None
        for text in texts:
            if not isinstance(text, str | int | float):
                raise TemplateError(
                    f"template {self.name}: references holds {kind_of(text)}, which is not a text. Name texts of the "
                    "row."
                )
        return tuple(map(str, texts))


def _as_statement(name: str, expression: str | None) -> str:
    """Return an expression as Jinja text, which prints nothing; no text without an expression."""
    return f"{{% set {name} = {expression} %}}" if expression else ""


def load_templates(where: str | Path | None = None) -> tuple[dict[str, Template], dict[str, str]]:
    """Return templates by the name that `Template.load` takes, and why each of the others cannot be read.

    Args:
        where: a shipped template, a task (all that are shipped for it), a file, or a folder, searched for YAML files
            with its subfolders; by default all shipped templates.

    Raises:
        TemplateError: there is nothing of that name, or the file is not YAML.
    """
    entries, unreadable = find_entries(where)
    templates = {}
    for entry in entries:
        try:
            templates[entry.name] = Template.from_dict(entry.fields(), entry.name)
        except TemplateError as error:
            unreadable[entry.name] = str(error)
    return templates, unreadable
