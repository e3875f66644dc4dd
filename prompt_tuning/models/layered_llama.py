"""An exported Llama whose added tokens have a vector for each layer, added to the layer's input.

The tokens are known by their ids, so that a model folder holds all that a row needs. Importing this module lets
transformers' AutoConfig and AutoModelForCausalLM load such a folder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from prompt_tuning.models.layered_config import LayeredLlamaConfig, vector_rows


class LayeredLlamaLayer(LlamaDecoderLayer):
    """A layer of a Llama with a table of vectors.

    Attributes:
        token_vectors: a table `[N + 1, H]` with the vectors of N tokens, and 0 for all others.
    """

    def __init__(self, config: LayeredLlamaConfig, layer_idx: int) -> None:
        """Start with vectors of 0."""
        super().__init__(config, layer_idx)
        self.token_vectors = nn.Embedding(config.num_layered_tokens + 1, config.hidden_size)
        nn.init.zeros_(self.token_vectors.weight)

    def forward(self, hidden_states: torch.Tensor, vector_rows: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Add the rows `[B, T]` of the table to the input `[B, T, H]`, and compute the layer."""
        if vector_rows is not None:
            hidden_states = hidden_states + self.token_vectors(vector_rows)
        return super().forward(hidden_states, **kwargs)


class LayeredLlamaModel(LlamaModel):
    """The layers of a Llama, which add the vectors of the tokens that they read."""

    config_class = LayeredLlamaConfig

    def __init__(self, config: LayeredLlamaConfig) -> None:
        """Make a LlamaModel with other layers."""
        super().__init__(config)
        layers = [LayeredLlamaLayer(config, number) for number in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.post_init()

    def forward(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Compute the layers. Rows that come as `inputs_embeds` have no vectors."""
        if input_ids is not None:
            kwargs["vector_rows"] = vector_rows(self.config, input_ids)
        return super().forward(input_ids=input_ids, **kwargs)


class LayeredLlamaForCausalLM(LlamaForCausalLM):
    """A Llama with a head, whose tokens have vectors in every layer."""

    config_class = LayeredLlamaConfig

    def __init__(self, config: LayeredLlamaConfig) -> None:
        """Put a head on a LayeredLlamaModel."""
        super().__init__(config)
        self.model = LayeredLlamaModel(config)
        self.post_init()


def with_layer_vectors(model: PreTrainedModel, first_id: int, vectors: torch.Tensor) -> LayeredLlamaForCausalLM:
    """Return a Llama with vectors for some of its tokens. It has the tensors of the given model.

    Args:
        model: a Llama.
        first_id: the id of the first of N tokens.
        vectors: `[L, N, H]`, added to the inputs of the layers.
    """
    settings = {
        "model_type": LayeredLlamaConfig.model_type,
        "first_layered_id": first_id,
        "num_layered_tokens": vectors.shape[1],
    }
    with torch.device("meta"):
        layered = LayeredLlamaForCausalLM(LayeredLlamaConfig(**model.config.to_dict() | settings))
    tables = torch.nn.functional.pad(vectors, (0, 0, 0, 1)).to(model.dtype)
    named = {f"model.layers.{number}.token_vectors.weight": table for number, table in enumerate(tables)}
    layered.load_state_dict(model.state_dict() | named, assign=True)
    layered.model.rotary_emb = model.model.rotary_emb  # Its tensors are not in the state dict.
    layered.generation_config = model.generation_config
    return layered.requires_grad_(requires_grad=False).eval()


AutoConfig.register(LayeredLlamaConfig.model_type, LayeredLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(LayeredLlamaConfig, LayeredLlamaForCausalLM, exist_ok=True)
