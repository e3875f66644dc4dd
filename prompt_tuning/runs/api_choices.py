"""Answer closed questions by the likelihoods of tokens that a server lists.

A server of the endpoint completions may list the likeliest next tokens of a prompt. A choice is followed from there,
token by token: its log-likelihood is the sum over the tokens that write it, as for a model that is loaded here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prompt_tuning.engine.likelihood import Normalization
from prompt_tuning.errors import ModelError, first_line
from prompt_tuning.runs.api_client import Body, Reply
from prompt_tuning.support.text import gap_after

logger = logging.getLogger(__name__)

LISTED = (20, 5)
"""The numbers of tokens that servers are asked to list, the next one if they refuse the first."""


class Followed(NamedTuple):
    """A choice, followed as far as its tokens are listed.

    Attributes:
        score: its normalised log-likelihood; an upper bound of it if the choice is not whole.
        whole: all of its tokens are listed.
    """

    score: float
    whole: bool


@dataclass(frozen=True)
class TokenList:
    """Lists the likeliest next tokens of a prompt.

    Args:
        send: sends a request once.
        name: the name that the server has for the model.
        listed: how many tokens the server lists.
    """

    send: Callable[[Body], Reply]
    name: str
    listed: int

    @classmethod
    def find(cls, send: Callable[[Body], Reply], name: str, prompt: str) -> TokenList | None:
        """Return what lists tokens after asking for those of a prompt; None if the server lists none."""
        reason = "it lists none"
        for listed in LISTED:
            tokens = cls(send, name, listed)
            try:
                if tokens.after(prompt):
                    return tokens
            except ModelError as error:
                reason = first_line(error)
        logger.warning("closed questions are answered by text, because the server lists no tokens (%s)", reason)
        return None

    def after(self, prompt: str) -> Mapping[str, float]:
        """Return the log-probabilities of the likeliest tokens after a prompt."""
        body = {"model": self.name, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": self.listed}
        return self.send(body).listed

    def choose(self, prompt: str, choices: Sequence[str], normalization: Normalization) -> tuple[str, bool] | None:
        """Return the likeliest choice, and whether it is certain; None if no choice is listed whole.

        It is not certain if a choice that is not listed whole may be likelier.
        """
        followed = [self._follow(prompt, choice, normalization) for choice in choices]
        whole = [number for number, choice in enumerate(followed) if choice.whole]
        if not whole:
            return None
        best = max(whole, key=lambda number: followed[number].score)
        others = [choice.score for choice in followed if not choice.whole]
        return choices[best], followed[best].score >= max(others, default=-math.inf)

    def _follow(self, prompt: str, choice: str, normalization: Normalization) -> Followed:
        """Add the log-probabilities of the longest listed tokens that write a choice."""
        rest = gap_after(prompt) + choice
        total = 0.0
        count = 0
        while rest:
            tokens = self.after(prompt)
            count += 1
            token = max(filter(rest.startswith, filter(None, tokens)), key=len, default=None)
            total += min(tokens.values(), default=0.0) if token is None else tokens[token]
            if token is None:
                break
            prompt, rest = prompt + token, rest[len(token) :]
        sizes = {"tokens": count, "characters": len(choice), "bytes": len(choice.encode())}
        return Followed(total / sizes.get(normalization, 1), whole=not rest)
