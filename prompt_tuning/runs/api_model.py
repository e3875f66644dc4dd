"""A model behind an API: it answers the hard prompts of encoded rows, each paid once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from accelerate import PartialState
from datasets import Dataset
from transformers.utils.logging import tqdm

from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.data.loading import row_origin
from prompt_tuning.encoding.decoding import server_stops
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import ModelError, RecipeError
from prompt_tuning.hub.upload import public_name
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.losses import prediction_counts
from prompt_tuning.runs.api_answers import AnswerCache, Bill, PaidOnce, cache_file
from prompt_tuning.runs.api_choices import TokenList
from prompt_tuning.runs.api_client import Body, Reply, ask, in_order, openai_client
from prompt_tuning.support.json_values import parse_json
from prompt_tuning.support.text import normalised, words

CONCURRENCY = 8
MOST_STOPS = 4
"""The most stop texts that servers take. Answers are cut at the others here."""


class ApiAnswer(NamedTuple):
    """The answer to a row.

    Attributes:
        text: what the model writes, as this package cuts it.
        at_limit: only the limit of new tokens ended the text.
        refused: the server or the model refuses to answer.
        no_choice: the question is closed, and the text is none of its choices.
        uncertain: the choice is the likeliest of those whose tokens the server lists, and others may be likelier.
    """

    text: str
    at_limit: bool
    refused: bool
    no_choice: bool = False
    uncertain: bool = False


@dataclass
class ApiModel:
    """A model behind an API.

    Args:
        name: the name that the server has for it.
        server: the server's address.
        send: sends a request once.
        concurrency: the most requests that the server has at once.
        reported: how often the server reported each model and fingerprint.
        tokens: lists tokens for closed questions; None if they are answered by text.
    """

    name: str
    server: str
    send: PaidOnce
    concurrency: int = CONCURRENCY
    reported: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: TokenList | None = None
    _asked_for_tokens: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, args: ModelArguments) -> ApiModel:
        """Return the model that a recipe names, with the answers that were paid before.

        Raises:
            RecipeError: there are several processes, each of which would pay.
            ModelError: the package openai is not installed, or a named variable of the environment is not set.
        """
        server = str(args.base_url)
        if PartialState().num_processes > 1:
            raise RecipeError(f"{args.model_name_or_path}: one process asks an API. Start it without a launcher.")
        prices = None if args.token_prices is None else (args.token_prices[0], args.token_prices[1])
        client = openai_client(server, args.api_key_env)
        send = PaidOnce(client, AnswerCache(cache_file()), Bill(prices, args.max_cost), server)
        return cls(str(args.api_name), server, send, args.api_concurrency or CONCURRENCY)

    def answer(self, encoder: Encoder, prompt: dict[str, Any], max_tokens: int) -> ApiAnswer:
        """Return the greedy answer to a prompt.

        Args:
            encoder: its template has the stop texts.
            prompt: of `Encoder.api_prompt`.
            max_tokens: the most tokens of the answer.

        Raises:
            ModelError: the server does not answer, or the answer could cost too much.
        """
        body: Body = {"model": self.name, **prompt, "max_tokens": max_tokens, "temperature": 0}
        stop = server_stops(encoder.tokenizer, encoder.template.stop)
        if stop:
            body["stop"] = stop[:MOST_STOPS]
        reply, text, at_limit = ask(self.send, body, stop)
        self._note(reply)
        return ApiAnswer(text, at_limit, reply.refused)

    def prepare_choices(self, encoder: Encoder, prompt: dict[str, Any]) -> None:
        """Find out once, by a prompt, whether the server lists the tokens by which closed questions are answered."""
        if encoder.closed and "prompt" in prompt and not self._asked_for_tokens:
            self.tokens = TokenList.find(self.send, self.name, prompt["prompt"])
            self._asked_for_tokens = True

    def answer_question(
        self, encoder: Encoder, prompt: dict[str, Any], choices: Sequence[str], recipe: Recipe
    ) -> ApiAnswer:
        """Return the answer to a row: a choice by its likelihood or by its text, or what the model writes.

        Args:
            encoder: writes the rows.
            prompt: of `Encoder.api_prompt`.
            choices: of a closed question.
            recipe: says how long an answer may be, and how choices are scored.

        Raises:
            ModelError: as `answer` does.
        """
        if encoder.closed and self.tokens is not None and "prompt" in prompt:
            chosen = self.tokens.choose(prompt["prompt"], choices, recipe.prompt.choice_normalization)
            if chosen is not None:
                text, certain = chosen
                return ApiAnswer(text, at_limit=False, refused=False, uncertain=not certain)
        written = self.answer(encoder, prompt, recipe.decoding["max_new_tokens"])
        return by_choice(written, choices) if encoder.closed else written

    @property
    def choice_method(self) -> str:
        """How closed questions are answered, for results.json."""
        return "by text" if self.tokens is None else "by likelihood"

    def _note(self, reply: Reply) -> None:
        with self._lock:
            self.reported[reply.model, reply.fingerprint] += 1

    def answer_rows(self, rows: Dataset, encoder: Encoder, recipe: Recipe, split: str) -> list[ApiAnswer]:
        """Return the answers to the encoded rows of a split, which a progress bar counts with tokens and cost.

        Raises:
            ModelError: the server does not answer a row, or the next answer could cost too much. Answers before it
                are kept.
        """

        def answer(row: dict[str, Any]) -> ApiAnswer:
            try:
                return self.answer_question(encoder, parse_json(row["prompt"]), row.get("choices", ()), recipe)
            except ModelError as error:
                raise ModelError(f"{row_origin(recipe.data, split, row['row'])}: {error}") from None

        if encoder.closed and len(rows):
            self.prepare_choices(encoder, parse_json(rows[0]["prompt"]))
        answers = []
        asked = rows.select_columns(["prompt", "row", *(["choices"] if encoder.closed else [])])
        with tqdm(total=len(rows), desc=self.name, unit="row", disable=recipe.training.disable_tqdm) as bar:
            for _, of_row in in_order(asked, answer, self.concurrency):
                answers.append(of_row)
                bar.update()
                bar.set_postfix_str(str(self.send.bill), refresh=False)
        return answers

    def facts(self) -> dict[str, Any]:
        """Return what was asked, what it cost and what the server says of itself, as results.json has it."""
        bill = self.send.bill
        models: Counter[str] = Counter()
        fingerprints: Counter[str] = Counter()
        for (model, fingerprint), count in self.reported.items():
            models[public_name(model)] += count  # llama.cpp's server reports the path of its file.
            fingerprints[fingerprint] += count
        facts: dict[str, Any] = {"base_url": self.server, **{name: bill.counts[name] for name in COUNTS}}
        if bill.counts["without_usage"]:
            facts["without_usage"] = bill.counts["without_usage"]
        if bill.prices is not None:
            facts["token_prices"] = list(bill.prices)
            facts["cost"] = round(bill.cost(facts["input_tokens"], facts["output_tokens"]), 6)
            facts["paid"] = round(bill.paid, 6)
        reported = {"models": models, "system_fingerprints": fingerprints}
        for name, counts in reported.items():
            said = {text: count for text, count in counts.items() if text}
            if said:
                facts[name] = said
        return facts


def by_choice(answer: ApiAnswer, choices: Sequence[str]) -> ApiAnswer:
    """Return the choice that an answer to a closed question is, in any case and with any punctuation; else itself."""
    said = words(normalised(answer.text)) or answer.text
    for choice in choices:
        if said == (words(normalised(choice)) or choice):
            return answer._replace(text=choice)
    return answer._replace(no_choice=True)


COUNTS = ("requests", "from_cache", "input_tokens", "output_tokens")
"""What results.json counts of every evaluation by an API."""


def api_counts(answers: list[ApiAnswer]) -> dict[str, int]:
    """Count answers that are cut, refused, empty, or none of a row's choices.

    An answer that is refused or empty is not counted as no choice too, and a refusal not as empty.
    """
    texts = [answer.text for answer in answers]
    counts = prediction_counts(texts, [answer.at_limit for answer in answers])
    counts["refused"] = sum(answer.refused for answer in answers)
    no_choice = sum(answer.no_choice and not answer.refused and bool(answer.text) for answer in answers)
    if no_choice:
        counts["no_choice"] = no_choice
    uncertain = sum(answer.uncertain for answer in answers)
    if uncertain:
        counts["uncertain"] = uncertain
    counts["empty"] -= sum(answer.refused and not answer.text for answer in answers)
    return counts
