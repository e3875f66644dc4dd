"""Refuse tokens that a tokenizer has and its model does not."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import TemplateError
from prompt_tuning.support.text import listed


def check_embedded(ids: list[int], tokenizer: PreTrainedTokenizerBase, num_embeddings: int | None) -> list[int]:
    """Return token ids that all have an embedding.

    Args:
        ids: the token ids.
        tokenizer: names the tokens.
        num_embeddings: the number of the model's embeddings; None if it is not known.

    Raises:
        TemplateError: the model has no embedding for one of them.
    """
    if num_embeddings is None or max(ids, default=0) < num_embeddings:
        return ids
    beyond = sorted({id for id in ids if id >= num_embeddings})
    raise TemplateError(
        f"the model has embeddings for the ids below {num_embeddings}, and none for {listed(beyond)} "
        f"({listed(tokenizer.convert_ids_to_tokens(beyond))}); take the model's own tokenizer, or resize the model's "
        "embeddings (resize_token_embeddings) and save it"
    )
