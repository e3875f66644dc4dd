"""Write the source, the target and the choices of a row as marked texts, which control_tokens.py explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from prompt_tuning.encoding.chat import chat_format, chat_text
from prompt_tuning.encoding.control_tokens import ControlTokens, control_tokens
from prompt_tuning.errors import EmptyRowError, TemplateError
from prompt_tuning.support.text import gap_after
from prompt_tuning.templates.rendered import Rendered
from prompt_tuning.templates.sandbox import VALUE_END
from prompt_tuning.templates.template import Template


@dataclass(frozen=True)
class RowTexts:
    """Writes rows by a template and the chat template, with marks in what comes from data.

    Args:
        template: the hard prompt.
        tokenizer: has the control tokens and the chat template.
        languages: `language_variables(...)`, for a translation.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase
    languages: dict[str, str] | None = None

    @property
    def control(self) -> ControlTokens:
        """The control tokens of the tokenizer, by which rows are marked."""
        return control_tokens(self.tokenizer)

    def common_prefix(self) -> str:
        """Return the marked text that every source starts with: system message, demonstrations, the first words.

        A space at its end is left out, because it belongs to the token of the next word.
        """
        return self._as_text(self.marked_template().common_prefix(self.languages)).split(VALUE_END)[0].rstrip(" ")

    def source(self, row: Mapping[str, Any]) -> str:
        """Return a row's source as the template and the chat template write it: a marked text of any length.

        Raises:
            TemplateError: the row cannot be rendered, or the template compares a value with a control token.
            EmptyRowError: the template writes nothing but white space.
        """
        marked_row = self.control.mark({**row})
        template = self.marked_template()
        rendered = template.render(marked_row, self.languages, with_target=False)
        if not rendered.source.strip():
            raise EmptyRowError(
                f"template {self.template.name}: the source is empty, so that a model has nothing to continue; give "
                "the row a text, or add a word to the template"
            )
        if marked_row != {**row}:
            unmarked = template.render(row, self.languages, with_target=False)
            self._check_marks(rendered.source, unmarked.source)
        return self._as_text(rendered)

    def target(self, row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return a row's target as marked text, and its references; raise TemplateError as `source` does."""
        target, references = self.template.render_target(row, self.languages)
        marked_row = self.control.mark({**row})
        if marked_row == {**row}:
            return target, references
        marked, _ = self.template.render_target(marked_row, self.languages)
        self._check_marks(marked, target)
        return marked, references

    def choices(self, row: Mapping[str, Any]) -> list[str]:
        """Return the texts that a row may be answered with, as marked texts; none if the question is open."""
        return self.template.choices(self.control.mark({**row}), self.languages)

    def gap(self, source: str) -> str:
        """Return what separates a source from its target."""
        return chat_format(self.tokenizer).gap if self.template.chat else gap_after(source)

    def marked_template(self) -> Template:
        """Return the template with marked demonstrations, which are data."""
        if not self.template.demonstrations:
            return self.template
        return replace(self.template, demonstrations=tuple(self.control.mark([*self.template.demonstrations])))

    def _as_text(self, rendered: Rendered) -> str:
        if not self.template.chat:
            return rendered.source
        if not self.tokenizer.chat_template:
            raise TemplateError(
                f"template {self.template.name} wants a chat template and this tokenizer has none; "
                "use one without chat: true"
            )
        try:
            return chat_text(self.tokenizer, rendered.messages)
        except TemplateError as error:
            raise TemplateError(f"template {self.template.name}: {error}") from error

    def _check_marks(self, marked: str, unmarked: str) -> None:
        """Raise a TemplateError if a template writes another text because its values are marked."""
        if self.control.plain(marked) != self.control.plain(unmarked):
            raise TemplateError(
                f"template {self.template.name}: it compares or changes the text of a special token in the row, which "
                "reaches the model as plain text; take the token out of the row"
            )
