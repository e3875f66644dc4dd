"""Turn one row into token ids within a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.encoding.chat import chat_format
from prompt_tuning.encoding.control_tokens import ControlTokens
from prompt_tuning.encoding.embedded import check_embedded
from prompt_tuning.encoding.row_checks import answer_is_cut, unreachable_target
from prompt_tuning.encoding.row_texts import RowTexts
from prompt_tuning.encoding.text_tokens import EncodedSource, TextToken, text_tokens
from prompt_tuning.encoding.trained_text import TrainedText
from prompt_tuning.errors import OverlongError, OverlongTargetError, TemplateError
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.support.text import listed
from prompt_tuning.templates.languages import language_variables
from prompt_tuning.templates.literals import Part, locate
from prompt_tuning.templates.template import Template


@dataclass(frozen=True)
class Encoder:
    """Turns a row into token ids with a template and a tokenizer.

    A causal row is what Trainer expects of a language model: `input_ids` = source + target + end, `labels` the same
    with -100 over the source. An encoder-decoder row has the source as `input_ids` and target + end as `labels`.

    Args:
        template: the hard prompt.
        tokenizer: the model's tokenizer.
        is_encoder_decoder: as the model's configuration says.
        max_source_tokens: budget of a rendered source with its demonstrations; virtual tokens are not part of it.
        max_target_tokens: budget of a target with its end-of-sequence token.
        truncate: columns that are cut, in this order, if the source is over its budget; None for the template's.
        languages: `language_variables(...)`, for a translation.
        score_choices: answer a template with answer_choices by the likeliest choice; False lets the model write.
        num_chosen: the number of the template's demonstrations, its last, that are training rows a recipe chose.
        source_setting: the setting that the budget of a source is from, for messages.
        num_embeddings: the number of tokens that the model has embeddings for; None for all of the tokenizer.
        trained_text: the tokens of the template that have trained ids; None if it is an ordinary hard prompt.
        endpoint: the endpoint of the API that answers; None for a model that is loaded here.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase
    is_encoder_decoder: bool = False
    max_source_tokens: int = 512
    max_target_tokens: int = 64
    truncate: tuple[str, ...] | None = None
    languages: dict[str, str] | None = None
    score_choices: bool = True
    num_chosen: int = 0
    source_setting: str = "max_source_tokens"
    num_embeddings: int | None = None
    trained_text: TrainedText | None = None
    endpoint: Literal["completions", "chat"] | None = None

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, template: Template, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
    ) -> Encoder:
        """Make an encoder with the budgets, languages and `truncate` of a recipe, for a model's configuration."""
        prompt, data = recipe.prompt, recipe.data
        return cls(
            template,
            tokenizer,
            is_encoder_decoder=config.is_encoder_decoder,
            max_source_tokens=prompt.max_source_tokens,
            max_target_tokens=prompt.max_target_tokens,
            truncate=None if prompt.truncate is None else tuple(prompt.truncate),
            languages=language_variables(data.source_lang, data.target_lang),
            score_choices=prompt.score_choices,
            num_embeddings=config.get_text_config().vocab_size,
            endpoint=endpoint_of(recipe.model, template),
        )

    @property
    def texts(self) -> RowTexts:
        """What writes rows as marked texts, before they are token ids."""
        return RowTexts(self.template, self.tokenizer, self.languages)

    @property
    def control(self) -> ControlTokens:
        """The control tokens of the tokenizer, by which rows are marked."""
        return self.texts.control

    @property
    def closed(self) -> bool:
        """True if rows are answered by one of their choices."""
        return self.score_choices and self.template.answer_choices is not None

    def row(self, row: dict[str, Any], nearest: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Encode a row for evaluation.

        Args:
            row: the row, with the columns that the template reads.
            nearest: training rows that are this row's own demonstrations, the nearest first.

        Returns:
            `input_ids`, `labels`, the `source` as text, `references`, `cut_tokens`, the number of chosen
            `shown_demonstrations` and of `omitted_demonstrations`, which do not fit; of a closed question also
            `choices` as texts, `choice_ids`, and the number `target_choice` of the right one. Two more are for the
            report: `unreachable` says why no prediction can be the target, and `answer_cut` is true if the cut
            columns lost every reference.

        Raises:
            TemplateError: the row cannot be rendered, its target is no choice, or a token has no embedding.
            OverlongError: the source does not fit its budget.
        """
        encoder, omitted = self.fit_demonstrations(row, nearest)
        source = encoder.cut_source(row)
        ids = source.ids
        marked_target, references = self.texts.target(row)
        target = self.control.plain(marked_target)
        target_ids = self._target_ids(source.text, ids, marked_target)
        check_embedded(target_ids, self.tokenizer, self.num_embeddings)
        encoded = {
            "input_ids": ids if self.is_encoder_decoder else ids + target_ids,
            "labels": target_ids if self.is_encoder_decoder else [-100] * len(ids) + target_ids,
            "source": self.control.plain(source.text),
            "references": list(references),
            "cut_tokens": source.cut_tokens,
            "untrained_tokens": source.untrained_tokens,
            "unreachable": "",
            "answer_cut": False,
            "shown_demonstrations": len(encoder.template.demonstrations) - self._num_permanent,
            "omitted_demonstrations": omitted,
        }
        if self.endpoint is not None:
            encoded["prompt"] = json.dumps(encoder.api_prompt(source))
        if self.closed:
            choices, choice_ids = self.choices(row, source.text, ids)
            if target.strip() not in choices:
                raise TemplateError(
                    f"the target {target!r} is not among the row's choices ({listed(choices)}); correct the row or "
                    "answer_choices, or set score_choices: false, and the model writes its answer"
                )
            right = choices.index(target.strip())
            return encoded | {"choices": choices, "choice_ids": choice_ids, "target_choice": right}
        stop = self.template.stop
        encoded["unreachable"] = unreachable_target(target_ids, target, references, self.tokenizer, stop)
        if source.cut_tokens:
            whole = self.template.standard_row(row)
            encoded["answer_cut"] = answer_is_cut(whole, source.row, self._cut_columns, references)
        return encoded

    def training_row(self, row: dict[str, Any], nearest: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Encode a row for training, whose target must fit its budget: it is never cut.

        Args and Returns are those of `row`.

        Raises:
            TemplateError: as `row` does.
            OverlongError: as `row` does.
            OverlongTargetError: the target is longer than max_target_tokens.
        """
        try:
            encoded = self.row(row, nearest)
        except OverlongError as error:
            raise OverlongError(f"{error}, or set drop_overlong") from error
        length = sum(label != -100 for label in encoded["labels"])
        if length > self.max_target_tokens:
            raise OverlongTargetError(
                f"the target has {length} tokens with its end, max_target_tokens is {self.max_target_tokens}; "
                "raise it, or set drop_overlong"
            )
        return encoded

    def choices(self, row: dict[str, Any], source: str, source_ids: list[int]) -> tuple[list[str], list[list[int]]]:
        """Return the texts that a row may be answered with, and their token ids.

        Args:
            row: the row.
            source: its source as marked text, which decides how a choice after it is split into tokens.
            source_ids: the token ids of the source.

        Returns:
            The texts, and `[choices][T]` token ids without the end-of-sequence token.

        Raises:
            TemplateError: there are fewer than two choices, one is empty, or two have the same tokens.
            OverlongError: one does not fit the budget of a target.
        """
        marked = self.texts.choices(row)
        texts = list(map(self.control.plain, marked))
        if len(texts) < 2 or not all(texts):
            raise TemplateError(
                f"template {self.template.name}: answer_choices gives {listed(texts)}; expected two or more texts, "
                "none of them empty, with ||| between them"
            )
        targets = [self._target_ids(source, source_ids, text, tail="") for text in marked]
        longest = max(targets, key=len)
        if len(longest) > self.max_target_tokens:
            raise OverlongError(
                f"the choice {texts[targets.index(longest)]!r} has {len(longest)} tokens with its end, "
                f"max_target_tokens is {self.max_target_tokens}; raise it"
            )
        _, end = self._end()
        ids = [target[: target.index(end)] if end in target else target[:-1] for target in targets]
        texts_of_ids: dict[tuple[int, ...], str] = {}
        for choice, text in zip(ids, texts, strict=True):
            check_embedded(choice, self.tokenizer, self.num_embeddings)
            if not choice:
                raise TemplateError(
                    f"template {self.template.name}: the choice {text!r} has no token of its own; word it differently"
                )
            other = texts_of_ids.setdefault(tuple(choice), text)
            if other != text:
                raise TemplateError(
                    f"template {self.template.name}: the choices {other!r} and {text!r} have the same tokens in this "
                    "tokenizer; word them differently"
                )
        return texts, ids

    def source(self, row: dict[str, Any]) -> EncodedSource:
        """Encode a row's source within its budget.

        The chosen demonstrations that do not fit are omitted first. Then the columns in `truncate` are cut from their
        end. The rest of the prompt is never cut.

        Raises:
            TemplateError: the row cannot be rendered or is rendered as nothing, or a column in `truncate` is not text.
            OverlongError: the source does not fit its budget with nothing left to cut.
        """
        return self.fit_demonstrations(row)[0].cut_source(row)

    @property
    def _num_permanent(self) -> int:
        """The number of demonstrations that the template has by itself, which every row shows."""
        return len(self.template.demonstrations) - self.num_chosen

    def fit_demonstrations(self, row: dict[str, Any], nearest: Sequence[dict[str, Any]] = ()) -> tuple[Encoder, int]:
        """Return the encoder with the chosen demonstrations that a row is shown, and how many more do not fit.

        A chosen demonstration with the row's own source is never shown. Of the others the last is omitted first.
        """
        if not self.num_chosen and not nearest:
            return self, 0
        permanent = self.template.demonstrations[: self._num_permanent]
        chosen = (*self.template.demonstrations[self._num_permanent :], *nearest)
        source = self.template.source_key(row, self.languages)
        others = [other for other in chosen if self.template.source_key(other, self.languages) != source]
        for count in range(len(others), -1, -1):
            template = replace(self.template, demonstrations=(*permanent, *others[:count]))
            encoder = replace(self, template=template, num_chosen=0)
            if count == 0 or len(encoder.tokenize(encoder.texts.source(row))) <= self.max_source_tokens:
                break
        return encoder, len(others) - count

    @property
    def _cut_columns(self) -> tuple[str, ...]:
        return self.template.truncate if self.truncate is None else self.truncate

    def cut_source(self, row: dict[str, Any]) -> EncodedSource:
        """Encode a row's source with all of the template's demonstrations.

        Raises:
            TemplateError: as `source` does; or the source does not end with the trained ending.
        """
        row = self.template.standard_row(row)
        text = self.texts.source(row)
        ids = self.tokenize(text)
        full = len(ids)
        for column in self._cut_columns:
            while len(ids) > self.max_source_tokens and row.get(column):
                row = row | {column: self._shorten(row[column], column, len(ids) - self.max_source_tokens)}
                text = self.texts.source(row)
                ids = self.tokenize(text)
        if len(ids) > self.max_source_tokens:
            columns = sorted(self.template.source_columns - set(self._cut_columns))
            name_column = f", or name {' or '.join(columns)} in truncate" if columns else ""
            raise OverlongError(
                f"the source has {len(ids)} tokens with nothing left to cut, {self.source_setting} is "
                f"{self.max_source_tokens}; raise it{name_column}"
            )
        check_embedded(ids, self.tokenizer, self.num_embeddings)
        source = EncodedSource(ids, text, row, max(full - len(ids), 0))
        if self.trained_text is None:
            return source
        tokens = self.text_tokens(source, self.trained_text.part)
        ids, untrained = self.trained_text.apply(ids, tokens, self.template.name)
        return replace(source, ids=ids, untrained_tokens=untrained)

    def api_prompt(self, source: EncodedSource) -> dict[str, Any]:
        """Return `prompt` or `messages` of a request to the endpoint, whose server has a chat template of its own."""
        if self.endpoint == "completions":
            return {"prompt": self.control.plain(source.text)}
        rendered = self.template.render(source.row, self.languages, with_target=False)
        if self.template.chat:
            return {"messages": list(rendered.messages)}
        return {"messages": [{"role": "user", "content": rendered.source}]}

    def text_tokens(self, source: EncodedSource, part: Part) -> list[TextToken | None]:
        """Return for each token of a source, with ordinary ids, the token of a literal that it is, or None."""
        row = self.control.mark({**source.row})
        rendered, spans = locate(self.texts.marked_template(), row, self.languages, part)
        return text_tokens(source, rendered, spans, self.control, chat=self.template.chat)

    def demonstration(self, row: dict[str, Any]) -> str:
        """Return a row's source, within its budget, and target as one marked text; raises as `source` does."""
        source = self.source(row).text
        target, _ = self.texts.target(row)
        return source + self.texts.gap(source) + target

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a source, a marked text, without an end token that a tokenizer appends."""
        # A chat template writes its own special tokens.
        ids = self.control.encode(text, add_special_tokens=not self.template.chat)
        end = self.tokenizer.eos_token_id
        appended = not self.is_encoder_decoder and ids[-1:] == [end] and not text.endswith(self.tokenizer.eos_token)
        return ids[:-1] if appended else ids

    def _end(self) -> tuple[str, int]:
        """Return the text between a target and its end token, and the end token."""
        if not self.template.chat or self.is_encoder_decoder:
            return "", self.tokenizer.eos_token_id
        chat = chat_format(self.tokenizer)
        return chat.tail, chat.end_id

    def _target_ids(self, source: str, source_ids: list[int], target: str, tail: str | None = None) -> list[int]:
        """Return the token ids of a marked target as they follow a marked source, with its end token.

        `tail` stands between target and end token, and is the chat template's by default.
        """
        usual_tail, end = self._end()
        if self.is_encoder_decoder:
            ids = self.control.encode(target, target=True)
            return ids if end in ids else [*ids, end]  # mBART writes the language after the end.
        text = self.texts.gap(source) + target + (usual_tail if tail is None else tail)
        joint = self.tokenize(source + text)
        if self.trained_text:
            source_ids = self.trained_text.ordinary_ids(source_ids)
        if joint[: len(source_ids)] == source_ids:
            return [*joint[len(source_ids) :], end]
        # The tokenizer merged across the boundary. Generation cannot do that, so training must not either.
        return [*self.control.continuation(text), end]

    def _shorten(self, text: str, column: str, tokens: int) -> str:
        """Return a column's text without its last tokens."""
        if not isinstance(text, str):
            raise TemplateError(f"column {column!r} is not text, so it cannot be cut; take it out of truncate")
        return self.control.shorten(text, tokens)


def endpoint_of(model: ModelArguments, template: Template) -> Literal["completions", "chat"] | None:
    """Return the endpoint of an API that a template is sent to; None for a model that is loaded here.

    Raises:
        TemplateError: the template wants a chat, and the recipe sets api_endpoint: completions.
    """
    if model.api_name is None:
        return None
    if template.chat and model.api_endpoint == "completions":
        raise TemplateError(
            f"template {template.name}: it has chat: true, whose messages are sent to the endpoint chat. Leave "
            "api_endpoint out."
        )
    return "chat" if template.chat else model.api_endpoint or "completions"
