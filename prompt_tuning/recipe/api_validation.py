"""Check the settings of a model behind an API, by the text of the recipe and of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prompt_tuning.arguments.model_args import API_PREFIX
from prompt_tuning.recipe.rules import Rules, broken_rules

if TYPE_CHECKING:
    from prompt_tuning.recipe.recipe import Draft

API_SETTINGS = ("tokenizer_name", "api_endpoint", "token_prices")
"""The settings that a recipe can set only for a model behind an API."""


def api_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with the settings of a model behind an API, or that such settings have no effect."""
    model = recipe.model
    if model.api_name is None:
        rules: Rules = []
        for name in API_SETTINGS:
            message = f"{name} has no effect without model_name_or_path: {API_PREFIX}NAME. Leave it out, or set that."
            rules.append((vars(model)[name] is not None, message))
        return broken_rules(rules)
    prices = model.token_prices
    return broken_rules(
        [
            (
                not model.api_name,
                f"model_name_or_path {API_PREFIX}: the name of the server's model is missing. Add it.",
            ),
            (
                model.base_url is None,
                f"model_name_or_path {model.model_name_or_path}: no file decides which server is asked. Give "
                "--base_url on the command line, such as http://localhost:8000/v1.",
            ),
            (
                model.base_url and not _is_address(model.base_url),
                "base_url: expected an address such as https://api.example.com/v1, without a password and without a "
                "query. A key belongs into the environment variable that --api_key_env names.",
            ),
            (
                not model.tokenizer_name,
                "tokenizer_name is missing. Set it to the folder or the hub id of the tokenizer that counts the "
                "tokens of rows, such as that of the small model beside this one in a table.",
            ),
            (
                prices is not None and (len(prices) != 2 or not all(0 <= price < float("inf") for price in prices)),
                f"token_prices is {prices}. Set two numbers: the prices of a million tokens read and written.",
            ),
            (
                model.max_cost is not None and prices is None,
                "max_cost has no effect without token_prices. Set them to the server's prices.",
            ),
            (
                (recipe.training.generation_num_beams or 1) > 1,
                "generation_num_beams: an API has no beams. Leave it out.",
            ),
            (
                recipe.prompt.choice_normalization == "unconditional",
                "choice_normalization unconditional: an API is asked with a source only. Set another one.",
            ),
        ]
    )


def _is_address(url: str) -> bool:
    """Return whether a text is the address of a server, without a password or a query that could hold a key."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # It raises ValueError for a port that is not a number.
    except ValueError:
        return False
    is_plain = not (parts.query or parts.fragment or parts.username or parts.password)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_plain
