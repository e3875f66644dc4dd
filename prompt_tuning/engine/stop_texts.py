"""Where a prediction ends, and its ids as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)


class StopTexts(StoppingCriteria):
    """Ends a row once a stop text follows what it has written; for one call of `generate`.

    Leading white space is skipped, so that a model that opens with a line break is not silenced by `stop: ["\\n"]`, as
    it would be by `stop_strings`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.start is None:
            self.start = input_ids.shape[1] - 1  # the first call comes after the first new token
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        ended = [any(end in text.lstrip() for end in self.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def stopping(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> dict[str, list[StopTexts]]:
    """What `generate` is given so that a row ends at one of these texts; nothing without any."""
    return {"stopping_criteria": [StopTexts(tokenizer, stop)]} if stop else {}


def decode(ids: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> list[str]:
    """Generated ids -> text without special tokens, stripped, cut at the first stop text. -100 counts as padding."""
    pad = tokenizer.pad_token_id
    rows = [[pad if token == -100 else int(token) for token in row] for row in ids]
    texts = [text.lstrip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    return [min((text.split(end)[0] for end in stop), key=len, default=text).strip() for text in texts]


def add_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let `generate` end at the tokenizer's end, with which targets end, beside the model's own."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if tokenizer.eos_token_id not in ends:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
