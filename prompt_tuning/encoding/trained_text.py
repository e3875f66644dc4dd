"""Trained text: tokens of a template's literals that have trained embeddings, and trained ids behind the model's own.

A row has the tokens of its hard prompt. Only the ids change, and only of tokens that lie wholly within a literal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any, TypedDict

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from prompt_tuning.encoding.text_tokens import TextToken
from prompt_tuning.errors import AdapterError, DataError, ModelError, TemplateError
from prompt_tuning.support.json_types import Place, check_value
from prompt_tuning.support.text import counted
from prompt_tuning.templates.literals import Part, literals
from prompt_tuning.templates.template import Template

ADVICE = "Copy the adapter from its run again."


class SavedText(TypedDict):
    """What adapter_config.json holds of trained text, besides the ordinary ids of its tokens."""

    part: Part
    literals: list[str]
    tokens: list[list[int]]


@dataclass(frozen=True)
class TrainedText:
    """The trained tokens of a template.

    Args:
        part: the literals that are trained, as the setting `trained_text` names them.
        literals: their texts.
        tokens: the tokens, in the order of their trained ids. For the ending, in the order in which they end a source.
        first_id: V, the number of the model's own embeddings. The trained ids are V, V + 1, and so on.
    """

    part: Part
    literals: tuple[str, ...]
    tokens: tuple[TextToken, ...]
    first_id: int

    @classmethod
    def of_rows(
        cls,
        part: Part,
        texts: tuple[str, ...],
        first_id: int,
        rows: Iterable[tuple[int, Sequence[TextToken]]],
        name_row: Callable[[int], str],
    ) -> TrainedText:
        """Return the trained text of a template: the tokens of its literals that training rows have.

        Args:
            part: the literals that are trained.
            texts: the texts of the literals.
            first_id: V, the number of the model's own embeddings.
            rows: for every training row its number, and the tokens of the literals in its source.
            name_row: names the row of a number in the message.

        Raises:
            TemplateError: the rows have no token of a literal, or none that ends all of them.
        """
        if part == "ending":
            tokens, number = _common_ending(rows)
            if not tokens and number is not None:
                raise TemplateError(
                    f"trained_text ending: {name_row(number)} does not end with the last token of {texts[0]!r}, or "
                    "the rows before it do not. End the template with a word of its own, or set trained_text: none"
                )
        else:
            tokens = sorted(set(chain.from_iterable(found for _, found in rows)))
        if not tokens:
            raise TemplateError(
                f"trained_text {part}: no token of a training row lies wholly within the template's fixed text. Put a "
                "line break between the text and the columns beside it, or set trained_text: none"
            )
        return cls(part, texts, tuple(tokens), first_id)

    @property
    def start_ids(self) -> list[int]:
        """The ordinary ids of the tokens, whose embeddings they start from."""
        return [token.id for token in self.tokens]

    def to_json(self) -> dict[str, Any]:
        """Return what an adapter's configuration holds of it, besides `start_ids`."""
        return {
            "part": self.part,
            "literals": list(self.literals),
            "tokens": [list(token[:3]) for token in self.tokens],
        }

    @classmethod
    def from_json(cls, value: Any, start_ids: Sequence[int], first_id: int, name: str) -> TrainedText:
        """Return the trained text that an adapter's configuration holds.

        Args:
            value: the JSON of `to_json`.
            start_ids: the ordinary ids of the tokens.
            first_id: the number of the model's own embeddings.
            name: where it came from, for messages.

        Raises:
            AdapterError: the value has another shape, or a token lies in no literal or has no embedding.
        """
        try:
            check_value(value, SavedText, Place(name, "trained_text", ADVICE))
        except DataError as error:
            raise AdapterError(str(error)) from None
        texts = value["literals"]
        tokens = []
        for numbers, id in zip(value["tokens"], start_ids, strict=False):
            literal, start, end = numbers if len(numbers) == 3 else (-1, 0, 0)
            if not (0 <= literal < len(texts) and 0 <= start < end <= len(texts[literal]) and 0 <= id < first_id):
                raise AdapterError(f"{name}: trained_text: token {numbers}, id {id}, is in no literal. {ADVICE}")
            tokens.append(TextToken(literal, start, end, id))
        # A character of equal bytes has equal tokens, which the ending counts by their place.
        repeats = value["part"] != "ending" and len(set(tokens)) < len(tokens)
        if not tokens or len(value["tokens"]) != len(start_ids) or repeats:
            raise AdapterError(f"{name}: trained_text: its tokens are not those of text_token_ids. {ADVICE}")
        return cls(value["part"], tuple(texts), tuple(tokens), first_id)

    def check_template(self, template: Template, languages: dict[str, str] | None, name: str) -> None:
        """Raise an AdapterError unless a template has the literals that an adapter was trained on.

        Args:
            template: the template to encode rows with.
            languages: its language variables.
            name: the adapter's folder, for the message.
        """
        template_literals = literals(template, languages, self.part)
        if template_literals != self.literals:
            pairs = zip([*self.literals, ""], [*template_literals, ""], strict=False)
            trained, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise AdapterError(
                f"{name}: it was trained on a template with the fixed text {trained!r}, and template {template.name} "
                f"has {other!r} there. Use the template in the run's folder."
            )

    def apply(self, ids: Sequence[int], tokens: Sequence[TextToken | None], template: str) -> tuple[list[int], int]:
        """Return the ids of a source with trained ids, and the number of literals' tokens that are not trained.

        Args:
            ids: the ordinary ids.
            tokens: for each id the token of a literal that it is, or None.
            template: the template's name, for messages.

        Raises:
            TemplateError: the part is the ending, and the source ends with other tokens.
        """
        if self.part == "ending":
            return self._with_ending(ids, tokens, template), 0
        trained = {token: self.first_id + number for number, token in enumerate(self.tokens)}
        applied = [trained.get(token, id) if token else id for token, id in zip(tokens, ids, strict=True)]
        return applied, sum(token is not None and token not in trained for token in tokens)

    def _with_ending(self, ids: Sequence[int], tokens: Sequence[TextToken | None], template: str) -> list[int]:
        """Return the ids with trained ids at the last tokens of the literal, two of which may be the same byte."""
        places = [place for place, token in enumerate(tokens) if token][-len(self.tokens) :]
        if tuple(tokens[place] for place in places) != self.tokens:
            raise TemplateError(
                f"template {template}: the source does not end with the {counted(len(self.tokens), 'token')} of the "
                f"trained ending {self.literals[0]!r}; its first token may be joined to the text before it. Let a "
                "line break start the ending, or set trained_text: all"
            )
        applied = list(ids)
        for number, place in enumerate(places):
            applied[place] = self.first_id + number
        return applied

    def ordinary_ids(self, ids: Iterable[int]) -> list[int]:
        """Return ids with the ordinary id of every trained token."""
        return [id if id < self.first_id else self.tokens[id - self.first_id].id for id in ids]

    def ordinary_rows(self, rows: Dataset) -> Dataset:
        """Return encoded rows as the hard prompt has them."""
        return rows.map(
            _ordinary_batch, batched=True, input_columns=["input_ids"], fn_kwargs={"trained_text": self}, desc=None
        )


def _common_ending(
    rows: Iterable[tuple[int, Sequence[TextToken]]],
) -> tuple[Sequence[TextToken], int | None]:
    """Return the longest run of tokens in which all rows end, and the number of the row after which none is left."""
    ending: Sequence[TextToken] | None = None
    for number, tokens in rows:
        if ending is None:
            ending = tokens
        pairs = zip(reversed(ending), reversed(tokens), strict=False)
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        ending = ending[len(ending) - length :]
        if not ending:
            return ending, number
    return ending or (), None


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a ModelError for a slow tokenizer, which does not say where its tokens are in a text."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"trained_text needs a fast tokenizer, which says where its tokens are in a text, and "
            f"{type(tokenizer).__name__} is slow. Take a model with a tokenizer.json, or set trained_text: none."
        )


def _ordinary_batch(batch: list[list[int]], trained_text: TrainedText) -> dict[str, list[list[int]]]:
    return {"input_ids": list(map(trained_text.ordinary_ids, batch))}
