"""Hard prompts: Jinja templates that turn a row of data into a source and a target."""

from __future__ import annotations

import difflib
import functools
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prompt_tuning.errors import TemplateError

FOLDER = Path(__file__).parent / "templates"

# Not columns: what a recipe's source_lang and target_lang say, by code and by name.
LANGUAGE_VARIABLES = frozenset({"source_lang", "target_lang", "source_language", "target_language"})

LANGUAGES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "is": "Icelandic",
    "it": "Italian", "ja": "Japanese", "kk": "Kazakh", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "ps": "Pashto", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil",
    "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


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
                parts[-1] += " " + message["content"]
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
    name: str = "inline"

    @classmethod
    def load(cls, name: str | Path) -> Template:
        """A shipped template by its name (`question_answering/plain`), or a YAML file with these fields.

        Raises:
            TemplateError: no such template, or a field that is unknown, missing or not valid Jinja.
        """
        if Path(name).suffix in (".yaml", ".yml"):
            if not Path(name).is_file():
                raise TemplateError(f"template {name}: no such file (looked in {Path.cwd()})")
            return cls.from_dict(_read_yaml(Path(name)), str(name))
        shipped = shipped_templates()
        if str(name) not in shipped:
            nearest = difflib.get_close_matches(str(name), shipped, n=1, cutoff=0.3)
            hint = f"did you mean {nearest[0]}?" if nearest else "a file of your own must end in .yaml"
            raise TemplateError(f"template {name} is not among the shipped ones ({', '.join(shipped)}); {hint}")
        return cls.from_dict(shipped[str(name)], str(name))

    @classmethod
    def from_dict(cls, values: Any, name: str = "inline") -> Template:
        """A template from parsed YAML, checked."""
        known = {field.name for field in fields(cls)} - {"name"}
        if not isinstance(values, dict) or not {"source", "target"} <= set(values):
            raise TemplateError(f"template {name}: expected the fields source and target, found {_found(values)}")
        if unknown := sorted(set(values) - known):
            raise TemplateError(
                f"template {name}: unknown field {unknown[0]}; the fields are {', '.join(sorted(known))}"
            )
        lists = {key: tuple(values[key] or ()) for key in ("demonstrations", "stop", "truncate") if key in values}
        template = cls(**(values | lists), name=name)
        template.columns  # noqa: B018 - compiles every field, so that a mistake is found here
        return template

    def to_yaml(self) -> str:
        """The template as a file that `load` reads."""
        values = {key: value for key, value in asdict(self).items() if value and key != "name"}
        lists = {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
        return yaml.dump(values | lists, Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=120)

    @property
    def source_columns(self) -> frozenset[str]:
        """Columns that a row must have to be predicted on."""
        return self._variables(self.source) | self._variables(self.system or "")

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

    def render(
        self, row: dict[str, Any], languages: dict[str, str] | None = None, with_target: bool = True
    ) -> Rendered:
        """One row as messages, target and references.

        Raises:
            TemplateError: the row lacks something that the template reads, or a value is null or empty.
        """
        values = row | (languages or {})
        messages = [{"role": "system", "content": self._render(self.system, values)}] if self.system else []
        shown = replace(self, demonstrations=(), system=None, references=None)
        for demonstration in self.demonstrations:
            example = shown.render(demonstration, languages)
            messages.append(example.messages[0])
            messages.append({"role": "assistant", "content": example.target or ""})
        messages.append({"role": "user", "content": self._render(self.source, values)})
        if not with_target:
            return Rendered(tuple(messages), None, ())
        return Rendered(tuple(messages), *self.render_target(row, languages))

    def render_target(
        self, row: dict[str, Any], languages: dict[str, str] | None = None
    ) -> tuple[str, tuple[str, ...]]:
        """Target and references alone; raises as `render` does."""
        values = row | (languages or {})
        target = self._render(self.target, values)
        if not target.strip():
            raise TemplateError(f"template {self.name}: the target is empty")
        references = tuple(map(str, self._evaluate(self.references, values))) if self.references else (target,)
        return target, references

    def _variables(self, text: str) -> frozenset[str]:
        try:
            tree = _environment().parse(text)
            _environment().from_string(text)
        except jinja2.TemplateError as error:
            raise TemplateError(f"template {self.name}: {error} in {text.strip()[:80]!r}") from None
        return frozenset(jinja2.meta.find_undeclared_variables(tree)) - LANGUAGE_VARIABLES

    def _render(self, text: str, values: dict[str, Any]) -> str:
        try:
            return _environment().from_string(text).render(values)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TemplateError(f"template {self.name}: {error}") from None

    def _evaluate(self, expression: str, values: dict[str, Any]) -> list[str]:
        try:
            found = _environment().compile_expression(expression, undefined_to_none=False)(**values)
            return [found] if isinstance(found, str) else list(found)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise TemplateError(f"template {self.name}: references: {error}") from None


def language_variables(source_lang: str | None, target_lang: str | None) -> dict[str, str]:
    """What a template may say about languages: `fr` -> source_lang `fr`, source_language `French`."""
    variables = {}
    for side, code in (("source", source_lang), ("target", target_lang)):
        if code:
            base = code.replace("-", "_").split("_")[0].lower()
            variables[f"{side}_lang"] = code
            variables[f"{side}_language"] = LANGUAGES.get(base, code)
    return variables


@functools.cache
def shipped_templates() -> dict[str, dict[str, Any]]:
    """Name -> fields of every template in this package, `<task>/<name>`."""
    return {
        f"{file.stem}/{name}": values
        for file in sorted(FOLDER.glob("*.yaml"))
        for name, values in _read_yaml(file).items()
    }


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Sandboxed, since a template may come with somebody's adapter."""
    return ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_refuse_null, cache_size=400
    )


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise ValueError("a value it prints is null")
    return value


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise TemplateError(f"template {path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise TemplateError(f"template {path}: not YAML: {' '.join(str(error).split())}") from None


class _BlockDumper(yaml.SafeDumper):
    """Writes text of several lines as people do."""


_BlockDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text.strip() else None
    ),
)


def _found(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__


def _column_flag(column: str) -> str:
    flags = dict(
        document="text_column",
        summary="summary_column",
        context="context_column",
        question="question_column",
        answers="answer_column",
    )
    return f" (--{flags[column]} NAME)" if column in flags else ""
