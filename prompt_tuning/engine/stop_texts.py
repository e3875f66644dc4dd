"""The end of a prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from prompt_tuning.encoding.chat import answer_ends
from prompt_tuning.encoding.decoding import special_stop_ids, special_tokens
from prompt_tuning.engine.calls import WITHOUT_PROMPT, first_set, setting
from prompt_tuning.engine.dispatch import get_base, has_prompt
from prompt_tuning.errors import ModelError, RecipeError
from prompt_tuning.support.text import REPLACEMENT

# These settings return more than ids. Without a dictionary the others return nothing.
RETURNED = ("return_dict_in_generate", "output_attentions", "output_hidden_states")
# These settings of `generate` are for a single row, change the length of sources, or are code of the hub.
ONE_ROW = (
    "token_healing",
    "prompt_lookup_num_tokens",
    "assistant_model",
    "assistant_early_exit",
    "custom_generate",
    "use_mtp",
    "penalty_alpha",
    "dola_layers",
    "constraints",
    "force_words_ids",
)
MAX_STOP = 1000  # Characters of all `stop_strings`: the library compares each token with each place in them.
UNSTABLE = 8  # So many characters at the start of a decoded part may differ from those within the whole text.


class StopTexts(StoppingCriteria):
    r"""A criterion that ends a row as soon as it has written a stop text or token; for one call of `generate`.

    Unlike `stop_strings`, it skips leading white space, so that `stop: ["\n"]` does not silence a model that opens
    with a line break. It decodes only a row's last tokens, and all of them before it ends a row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        """Set the tokenizer of the rows and the texts that end them."""
        self.tokenizer = tokenizer
        self.stop = stop
        self.stop_ids = special_stop_ids(tokenizer, stop)
        self.start: int | None = None
        self._special = set(special_tokens(tokenizer).values())
        self._context = max(map(len, stop), default=0) + UNSTABLE
        self._width = 0
        self._ended: set[tuple[int, ...]] = set()  # Rows may change their places, and are known by their tokens.

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return for each row of ids `[B, T]` whether it has ended, `[B]`."""
        width = input_ids.shape[1]
        if self.start is None:
            self.start = self._width = width - 1  # The first call comes after the first new token.
        num_new = width - self._width
        self._width = width
        rows = [tuple(row) for row in input_ids[:, self.start :].tolist()]
        ended = [row[:-num_new] in self._ended or self._ends(row, num_new) for row in rows]
        self._ended = {row for row, end in zip(rows, ended, strict=True) if end}
        return torch.tensor(ended, device=input_ids.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these rows of the batch alone."""

    def _ends(self, row: tuple[int, ...], num_new: int) -> bool:
        """Return whether the last `num_new` tokens of a row end it."""
        new = row[-num_new:]
        if not self.stop_ids.isdisjoint(new):
            return True
        if self._special.issuperset(new):
            return False  # Decoding leaves them out, so that the text is the one of the previous call.
        text = self._last_text(row, num_new)
        return self._has_stop(text) and self._has_stop(self._decode(row).lstrip())

    def _last_text(self, row: tuple[int, ...], num_new: int) -> str:
        """Return the text of the last `num_new` tokens behind so much context that no stop text begins before it."""
        needed = self._context + len(self._decode(row[-num_new:]))
        size = num_new + self._context
        while size < len(row):
            text = self._decode(row[-size:])
            # Bytes that are not a character may be one together with the bytes before them.
            if len(text) >= needed and REPLACEMENT not in text[UNSTABLE:]:
                return text
            size *= 2
        return self._decode(row)

    def _has_stop(self, text: str) -> bool:
        return any(end in text for end in self.stop)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


class StopTextsOfRows(StopTexts):
    """A criterion that ends each row at stop texts of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[Sequence[str]]) -> None:
        """Set the tokenizer, and for each row the texts that end it."""
        super().__init__(tokenizer, ())
        self.of_rows = [StopTexts(tokenizer, stop) for stop in stops]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return for each row of ids `[B, T]` whether it has ended, `[B]`."""
        rows = input_ids.split(1)
        return torch.cat([criterion(row, scores) for criterion, row in zip(self.of_rows, rows, strict=True)])

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these rows of the batch alone."""
        self.of_rows = [self.of_rows[row] for row in rows]


class HalfFinished(StoppingCriteria):
    """A criterion that ends a batch as soon as half of its rows have ended, and remembers which."""

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        """Set the criteria by which a row ends."""
        self.criteria = criteria
        self.finished = torch.zeros((), dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return `[B]`, true for all rows as soon as half of them have ended."""
        ended = self.criteria(input_ids, scores, **kwargs)
        self.finished = self.finished.to(ended.device) | ended
        if int((~self.finished).sum()) <= len(ended) // 2:
            return torch.ones_like(ended)
        return ended


def text_settings(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `generate` with which a batch gives ids of one text for each row.

    Args:
        model: its generation config holds the settings that are not passed.
        tokenizer: the model's; the model's own `stop_strings` need it.
        stop: texts that end a row.
        kwargs: the arguments that are passed to `generate` besides.

    Raises:
        RecipeError: an argument asks for several texts, or for what does not hold for the rows of a batch.
        ModelError: a setting of the model does so.
    """
    base = get_base(model)
    several = setting(base, kwargs, "num_return_sequences", 1)
    if several > 1:
        raise RecipeError(f"num_return_sequences is {several}, and a row has one prediction; leave it out")
    prompted = has_prompt(model) and not base.config.is_encoder_decoder
    name = first_set(base, kwargs, (*ONE_ROW, *WITHOUT_PROMPT) if prompted else ONE_ROW)
    if name in kwargs:
        raise RecipeError(f"generate: {name} does not hold for rows of a batch. Leave it out.")
    if name is not None:
        raise ModelError(
            f"generation_config.json of {base.name_or_path}: {name} does not hold for rows of a batch. Remove it."
        )
    settings: dict[str, Any] = {name: False for name in RETURNED if setting(base, kwargs, name)}
    stop_strings = setting(base, kwargs, "stop_strings")
    if stop_strings:
        settings["tokenizer"] = tokenizer
    if len("".join(stop_strings or ())) > MAX_STOP:
        raise ModelError(
            f"generation_config.json of {base.name_or_path}: stop_strings has more than {MAX_STOP:,} characters. "
            "Shorten it."
        )
    if stop:
        settings["stopping_criteria"] = [StopTexts(tokenizer, stop)]
    return settings


def limit_of_tokens(model: PreTrainedModel | PeftModel, kwargs: Mapping[str, Any]) -> int | None:
    """Return how many tokens a row at the limit has written: `forced_eos_token_id` replaces the last one.

    Args:
        model: its generation config holds the settings that are not passed.
        kwargs: the arguments that are passed to `generate`.
    """
    base = get_base(model)
    limit = setting(base, kwargs, "max_new_tokens")
    return limit - 1 if limit and setting(base, kwargs, "forced_eos_token_id") is not None else limit


def add_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let `generate` end at the tokens with which targets end, and at the model's own."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    missing = [end for end in answer_ends(tokenizer) if end not in ends]
    if missing:
        model.generation_config.eos_token_id = [*missing, *ends]
