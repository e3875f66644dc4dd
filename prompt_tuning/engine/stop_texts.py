"""The end of a prediction, and its ids as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from prompt_tuning.encoding.chat import answer_ends


class StopTexts(StoppingCriteria):
    r"""A criterion that ends a row as soon as it has written a stop text; for one call of `generate`.

    Unlike `stop_strings`, it skips leading white space, so that `stop: ["\n"]` does not silence a model that opens
    with a line break.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        """Set the tokenizer of the rows and the texts that end them."""
        self.tokenizer = tokenizer
        self.stop = stop
        self.start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return for each row of ids `[B, T]` whether it has ended, `[B]`."""
        if self.start is None:
            self.start = input_ids.shape[1] - 1  # The first call comes after the first new token.
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        ended = [any(end in text.lstrip() for end in self.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def stopping(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> dict[str, list[StopTexts]]:
    """Return the arguments of `generate` that end a row at one of these texts; none without any."""
    return {"stopping_criteria": [StopTexts(tokenizer, stop)]} if stop else {}


def decode(ids: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> list[str]:
    """Return generated ids as text without special tokens, stripped, cut at the first stop text; -100 is padding."""
    pad = tokenizer.pad_token_id
    rows = [[pad if token == -100 else int(token) for token in row] for row in ids]
    texts = [text.lstrip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    return [min((text.split(end)[0] for end in stop), key=len, default=text).strip() for text in texts]


def add_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let `generate` end at the tokens with which targets end, and at the model's own."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    missing = [end for end in answer_ends(tokenizer) if end not in ends]
    if missing:
        model.generation_config.eos_token_id = [*missing, *ends]
