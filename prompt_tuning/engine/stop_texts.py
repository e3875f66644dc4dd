"""The end of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from prompt_tuning.encoding.chat import answer_ends
from prompt_tuning.encoding.decoding import special_stop_ids


class StopTexts(StoppingCriteria):
    r"""A criterion that ends a row as soon as it has written a stop text or token; for one call of `generate`.

    Unlike `stop_strings`, it skips leading white space, so that `stop: ["\n"]` does not silence a model that opens
    with a line break.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        """Set the tokenizer of the rows and the texts that end them."""
        self.tokenizer = tokenizer
        self.stop = stop
        self.stop_ids = special_stop_ids(tokenizer, stop)
        self.start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return for each row of ids `[B, T]` whether it has ended, `[B]`."""
        if self.start is None:
            self.start = input_ids.shape[1] - 1  # The first call comes after the first new token.
        written = input_ids[:, self.start :]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        ended = torch.tensor([any(end in text.lstrip() for end in self.stop) for text in texts])
        stop_ids = written.new_tensor(sorted(self.stop_ids))
        return ended.to(input_ids.device) | torch.isin(written, stop_ids).any(1)


def stopping(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> dict[str, list[StopTexts]]:
    """Return the arguments of `generate` that end a row at one of these texts; none without any."""
    return {"stopping_criteria": [StopTexts(tokenizer, stop)]} if stop else {}


def add_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let `generate` end at the tokens with which targets end, and at the model's own."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    missing = [end for end in answer_ends(tokenizer) if end not in ends]
    if missing:
        model.generation_config.eos_token_id = [*missing, *ends]
