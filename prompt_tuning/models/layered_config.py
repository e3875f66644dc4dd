"""The configuration of an exported Llama whose added tokens have vectors in every layer.

This module needs only torch and transformers, so that a server's plug-in can import it without the other packages.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig

BASES = ("llama",)
"""The architectures whose exports can have layer vectors."""


class LayeredLlamaConfig(LlamaConfig):
    """The configuration of a Llama, and which of its tokens have vectors.

    Its `model_type` is not `llama`: a program without this package stops instead of reading the tokens without their
    vectors.

    Args:
        first_layered_id: the id of the first token with vectors.
        num_layered_tokens: N, the number of these tokens. Their ids follow each other.
    """

    model_type = "prompt_tuning_llama"

    first_layered_id: int = 0
    num_layered_tokens: int = 0


def vector_rows(config: LayeredLlamaConfig, ids: torch.Tensor) -> torch.Tensor:
    """Return for each id `[...]` its row in a layer's table `[N + 1, H]`: N, a row of 0, for an ordinary token."""
    rows = ids - config.first_layered_id
    return torch.where((rows >= 0) & (rows < config.num_layered_tokens), rows, config.num_layered_tokens)
