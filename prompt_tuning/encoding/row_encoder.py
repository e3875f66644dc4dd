"""Text -> token ids within a budget, and back."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import OverlongError, TemplateError
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.support.text import gap_after
from prompt_tuning.templates.languages import language_variables
from prompt_tuning.templates.sandbox import VALUE_END
from prompt_tuning.templates.template import Rendered, Template

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

CHOICES_NAMED = 8

# What chat templates that say today's date say, so that a run's rows are the same tomorrow; Llama's own default.
CHAT_DAY = datetime(2024, 7, 26)


@dataclass(frozen=True)
class Encoder:
    """Turns a row into token ids with a template and a tokenizer.

    A causal row is what Trainer expects of a language model: `input_ids` = source + target + end, `labels` the same
    with -100 over the source. An encoder-decoder row has the source as `input_ids` and target + end as `labels`.

    Args:
        is_encoder_decoder: as the model's configuration says.
        max_source_tokens: budget of a rendered source with its demonstrations; virtual tokens are not part of it.
        max_target_tokens: budget of a target with its end-of-sequence token.
        truncate: columns that give way, in this order, when the source is over budget; by default the template's.
        languages: `template.language_variables(...)`.
        score_choices: a template with answer_choices is answered by the likeliest of them; False: in free text.
        chosen: how many of the template's demonstrations, its last, are training rows that a recipe chose.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase
    is_encoder_decoder: bool = False
    max_source_tokens: int = 512
    max_target_tokens: int = 64
    truncate: tuple[str, ...] | None = None
    languages: dict[str, str] | None = None
    score_choices: bool = True
    chosen: int = 0

    @classmethod
    def of_recipe(
        cls, recipe: Recipe, template: Template, tokenizer: PreTrainedTokenizerBase, is_encoder_decoder: bool
    ) -> Encoder:
        """With the budgets, languages and `truncate` of a recipe."""
        prompt, data = recipe.prompt, recipe.data
        return cls(
            template,
            tokenizer,
            is_encoder_decoder,
            prompt.max_source_tokens,
            prompt.max_target_tokens,
            None if prompt.truncate is None else tuple(prompt.truncate),
            language_variables(data.source_lang, data.target_lang),
            prompt.score_choices,
        )

    @property
    def closed(self) -> bool:
        """Whether rows are answered by one of their choices."""
        return self.score_choices and self.template.answer_choices is not None

    def row(self, row: dict[str, Any], nearest: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """`input_ids`, `labels`, the `source` as text, `references`, and how many tokens were `cut`.

        Also how many demonstrations were `left_out`, since they did not fit, how many chosen ones are `shown`, and
        where rows are answered by one of their choices, `choices` as texts and `choice_ids`.

        Args:
            nearest: training rows that are this row's own demonstrations, the nearest first.

        Raises:
            TemplateError: the row cannot be rendered, or its target is not among its choices.
            OverlongError: the source does not fit its budget.
        """
        encoder, left_out = self.fitted(row, nearest)
        shown = len(encoder.template.demonstrations) - len(self.template.demonstrations) + self.chosen
        ids, cut, text = encoder._within_budget(row)
        target, references = self.template.render_target(row, self.languages)
        target_ids = self._target_ids(text, ids, target)
        if self.is_encoder_decoder:
            encoded = {"input_ids": ids, "labels": target_ids}
        else:
            encoded = {"input_ids": ids + target_ids, "labels": [-100] * len(ids) + target_ids}
        if self.closed:
            choices, choice_ids = self.choices(row, text, ids)
            if target.strip() not in choices:
                raise TemplateError(
                    f"the target {target!r} is not among the row's choices ({_listed(choices)}); correct the row or "
                    "answer_choices, or set score_choices: false, and the model writes its answer"
                )
            encoded |= {"choices": choices, "choice_ids": choice_ids}
        facts = {"cut": cut, "left_out": left_out, "shown": shown}
        return encoded | {"source": text, "references": list(references)} | facts

    def training_row(self, row: dict[str, Any], nearest: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """As `row`, of a row whose target fits its budget: it is never cut.

        Raises:
            TemplateError, OverlongError: as `row`, and a target that is longer than max_target_tokens.
        """
        encoded = self.row(row, nearest)
        length = sum(label != -100 for label in encoded["labels"])
        if length > self.max_target_tokens:
            raise OverlongError(
                f"the target has {length} tokens with its end, max_target_tokens is {self.max_target_tokens}; "
                "raise it, or set drop_overlong"
            )
        return encoded

    def choices(self, row: dict[str, Any], source: str, source_ids: list[int]) -> tuple[list[str], list[list[int]]]:
        """The texts that a row may be answered with, and their ids as they follow its source, without the end.

        Raises:
            TemplateError: fewer than two, or an empty one.
            OverlongError: one does not fit the budget of a target.
        """
        texts = self.template.choices(row, self.languages)
        if len(texts) < 2 or not all(texts):
            raise TemplateError(
                f"template {self.template.name}: answer_choices gives {_listed(texts)}; expected two or more texts, "
                "none of them empty, with ||| between them"
            )
        ids = [self._target_ids(source, source_ids, text) for text in texts]
        longest = max(ids, key=len)
        if len(longest) > self.max_target_tokens:
            raise OverlongError(
                f"the choice {texts[ids.index(longest)]!r} has {len(longest)} tokens with its end, max_target_tokens "
                f"is {self.max_target_tokens}; raise it"
            )
        end = self.tokenizer.eos_token_id
        ids = [choice[: choice.index(end) if end in choice else -1] for choice in ids]
        known: dict[tuple[int, ...], str] = {}
        for choice, text in zip(ids, texts, strict=True):
            if not choice:
                raise TemplateError(f"template {self.template.name}: the choice {text!r} has no token of its own")
            if known.setdefault(tuple(choice), text) != text:
                raise TemplateError(
                    f"template {self.template.name}: this tokenizer does not tell the choices "
                    f"{known[tuple(choice)]!r} and {text!r} apart; word them in other ways"
                )
        return texts, ids

    def source(self, row: dict[str, Any]) -> tuple[list[int], int, str]:
        """Token ids of a row's source, the number of tokens cut to fit, and the source as text.

        Only the columns in `truncate` are cut, from their end, once the chosen demonstrations that do not fit are left
        out; the rest of the prompt is never touched.

        Raises:
            TemplateError: the row cannot be rendered or as nothing, or a column in `truncate` is not text.
            OverlongError: the source does not fit its budget with nothing left to cut.
        """
        return self.fitted(row)[0]._within_budget(row)

    def fitted(self, row: dict[str, Any], nearest: Sequence[dict[str, Any]] = ()) -> tuple[Encoder, int]:
        """This encoder with the demonstrations that a row is shown, and how many more there were no tokens for.

        Chosen demonstrations of the row's own source are never shown; the last of the others give way first.
        """
        if not self.chosen and not nearest:
            return self, 0
        given = self.template.demonstrations
        own, chosen = given[: len(given) - self.chosen], (*given[len(given) - self.chosen :], *nearest)
        source = self.template.source_key(row, self.languages)
        others = [each for each in chosen if self.template.source_key(each, self.languages) != source]
        for count in range(len(others), -1, -1):
            template = replace(self.template, demonstrations=(*own, *others[:count]))
            encoder = replace(self, template=template, chosen=0)
            if count == 0 or len(self._ids(encoder._source_text(row))) <= self.max_source_tokens:
                break
        return encoder, len(others) - count

    def _within_budget(self, row: dict[str, Any]) -> tuple[list[int], int, str]:
        text = self._source_text(row)
        ids = self._ids(text)
        full = len(ids)
        for column in self.template.truncate if self.truncate is None else self.truncate:
            while len(ids) > self.max_source_tokens and row.get(column):
                row = row | {column: self._shorten(row[column], column, len(ids) - self.max_source_tokens)}
                text = self._source_text(row)
                ids = self._ids(text)
        if len(ids) > self.max_source_tokens:
            raise OverlongError(
                f"the source has {len(ids)} tokens with nothing left to cut, "
                f"max_source_tokens is {self.max_source_tokens}; "
                "raise it, name a column in truncate, or set drop_overlong"
            )
        if not ids:
            raise TemplateError(
                f"template {self.template.name}: the source is empty, and a model has nothing to go on from; give the "
                "row a text, or the template a word of its own"
            )
        return ids, max(full - len(ids), 0), text

    def demonstration(self, row: dict[str, Any]) -> str:
        """A row's source and target as one text, the source within its budget; raises as `source` does."""
        _, _, source = self.source(row)
        target, _ = self.template.render_target(row, self.languages)
        return source + self._gap(source) + target

    def opening(self) -> str:
        """The text that opens every source: system message, demonstrations, the template's first words.

        Without a space at its end, which belongs to the word that follows.
        """
        return self._as_text(self.template.opening(self.languages)).split(VALUE_END)[0].rstrip(" ")

    def _gap(self, source: str) -> str:
        return "" if self.template.chat else gap_after(source)

    def _source_text(self, row: dict[str, Any]) -> str:
        return self._as_text(self.template.render(row, self.languages, with_target=False))

    def _as_text(self, rendered: Rendered) -> str:
        if not self.template.chat:
            return rendered.source
        if not self.tokenizer.chat_template:
            raise TemplateError(
                f"template {self.template.name} wants a chat template and this tokenizer has none; "
                "use one without chat: true"
            )
        messages = list(rendered.messages)
        try:
            chat_template = _of_one_day(self.tokenizer.get_chat_template())
            return self.tokenizer.apply_chat_template(
                messages, chat_template=chat_template, tokenize=False, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:  # as of one that takes no system message
            raise TemplateError(
                f"template {self.template.name}: the tokenizer's chat template refuses its messages ("
                f"{', '.join(each['role'] for each in messages)}): {error}; use a template without them"
            ) from error

    def _ids(self, text: str) -> list[int]:
        # A chat template writes its own special tokens.
        ids = self.tokenizer(text, add_special_tokens=not self.template.chat).input_ids
        end = self.tokenizer.eos_token_id
        appended = not self.is_encoder_decoder and ids[-1:] == [end] and not text.endswith(self.tokenizer.eos_token)
        return ids[:-1] if appended else ids

    def _target_ids(self, source: str, source_ids: list[int], target: str) -> list[int]:
        """The target's ids as they follow the source, ended by the end-of-sequence token."""
        end = self.tokenizer.eos_token_id
        if self.is_encoder_decoder:
            ids = self.tokenizer(text_target=target).input_ids
            return ids if end in ids else [*ids, end]  # mBART writes the language behind the end
        gap = self._gap(source)
        joint = self._ids(source + gap + target)
        if joint[: len(source_ids)] == source_ids:
            ids = joint[len(source_ids) :]
        else:  # the tokenizer merged across the boundary; generation will not, so neither does training
            ids = self.tokenizer(gap + target, add_special_tokens=False).input_ids
        return [*ids, end]

    def _shorten(self, text: str, column: str, tokens: int) -> str:
        if not isinstance(text, str):
            raise TemplateError(f"column {column!r} is not text, so it cannot be cut; take it out of truncate")
        if not self.tokenizer.is_fast:  # and so tells no offsets
            kept = self.tokenizer(text, add_special_tokens=False).input_ids[:-tokens]
            return self.tokenizer.decode(kept, clean_up_tokenization_spaces=False).rstrip()
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        keep = len(offsets) - tokens
        return text[: offsets[keep][0]].rstrip() if keep > 0 else ""


@functools.cache
def _of_one_day(chat_template: str) -> str:
    """A chat template in which today is CHAT_DAY."""
    today = r"""strftime_now\(\s*(?:format\s*=\s*)?(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*,?\s*\)"""
    fixed = re.sub(today, lambda call: repr(CHAT_DAY.strftime(call["format"])), chat_template)
    if "strftime_now(" in fixed:
        logger.warning("the chat template says today's date in a way that cannot be fixed: rows change with the day")
    return fixed


def _listed(choices: Sequence[str]) -> str:
    return ", ".join(map(repr, choices[:CHOICES_NAMED])) + (", ..." if len(choices) > CHOICES_NAMED else "")
