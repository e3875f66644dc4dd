"""The settings of the base model."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, Literal

from prompt_tuning.support.json_values import parse_json

API_PREFIX = "openai:"
"""What the name of a model behind an API starts with."""

SETTINGS_OF_CALL = ("base_url", "api_key_env", "api_concurrency", "max_cost")
"""Settings of a model behind an API that belong to one call, so that no saved recipe has them."""


@dataclass
class ModelArguments:
    """The frozen base model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id of the base model; or openai:NAME, a model that a server of OpenAI's API has "
            "under this name. The server is asked for answers to hard prompts, and nothing is trained."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a hub model."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Type of the frozen weights; the soft prompt is always trained in float32."}
    )
    quantization_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Load the frozen weights in fewer bits, by the mapping that transformers takes: {quant_method: "
            "bitsandbytes, load_in_4bit: true} (QLoRA, Dettmers et al. 2023), or one with quant_method: torchao. On "
            "the command line it is JSON. Not tested on GPUs."
        },
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "Name of the chat template, for a tokenizer that has several; by default `default`."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: folder or hub id of the tokenizer that counts the tokens of rows, such as that of "
            "the small model beside it in a table. It is not sent."
        },
    )
    base_url: str | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: address of the server with the path of its API, such as http://localhost:8000/v1. "
            "Only the command line can set it."
        },
    )
    api_key_env: str | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: name of the environment variable that holds the server's key (OPENAI_API_KEY). Only "
            "the command line can set it."
        },
    )
    api_endpoint: Literal["completions", "chat"] | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: completions sends a source as text to /completions, chat as a message to "
            "/chat/completions. By default chat for a template with chat: true, and completions for the others."
        },
    )
    api_concurrency: int | None = field(
        default=None, metadata={"help": "openai:NAME: the most requests that the server has at once (8)."}
    )
    token_prices: list[float] | None = field(
        default=None,
        metadata={"help": "openai:NAME: price of a million tokens that the model reads, and of those that it writes."},
    )
    max_cost: float | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: send no request that could cost more than this in one command, by token_prices. "
            "Answers that were paid are kept for the next call."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run Python code of others: that of a model or a tokenizer, or a metric that is not shipped. A "
            "recipe may ask for it, and only the command line allows it."
        },
    )

    @property
    def api_name(self) -> str | None:
        """The name that a server has for the model; None for a model that is loaded here."""
        name = self.model_name_or_path or ""
        return name.removeprefix(API_PREFIX) if name.startswith(API_PREFIX) else None

    def __post_init__(self) -> None:
        """Read `quantization_config` from JSON, as TrainingArguments reads its mappings.

        Raises:
            ValueError: it is not a mapping.
        """
        if isinstance(self.quantization_config, str):
            with contextlib.suppress(ValueError):
                self.quantization_config = parse_json(self.quantization_config)
        if not isinstance(self.quantization_config, dict | None):
            raise ValueError(
                f"quantization_config: expected a mapping, found {self.quantization_config!r}. "
                'Set {"quant_method": "bitsandbytes", "load_in_4bit": true}, or leave it out.'
            )
