"""The architecture of `layered_llama` for vLLM, in which each layer adds the vectors of the tokens that it reads.

vLLM keeps keys and values by token ids, on which the vectors depend, so that its prefix cache stays right. Its
compiler reads the annotations of `forward`, which must not be texts: this module imports no `annotations`.
"""

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from vllm.sequence import IntermediateTensors

from prompt_tuning.models.layered_config import vector_rows


class LayeredLlamaLayer(LlamaDecoderLayer):
    """A layer of a Llama with a table `[N + 1, H]` of vectors."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Make room for the table of the file."""
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self.token_vectors = nn.Embedding(config.num_layered_tokens + 1, config.hidden_size)

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        vector_rows: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the rows `[T]` of the table to the input, which is the sum of states and residual `[T, H]`."""
        if vector_rows is not None:
            hidden_states = hidden_states + self.token_vectors(vector_rows)
        return super().forward(positions, hidden_states, residual)


@support_torch_compile
class LayeredLlamaModel(LlamaModel):
    """The layers of a Llama, which add the vectors of the tokens that they read."""

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors | tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the layers. Rows that come as `inputs_embeds` have no vectors."""
        rows = None if input_ids is None else vector_rows(self.config, input_ids)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, vector_rows=rows)


class LayeredLlamaForCausalLM(LlamaForCausalLM):
    """A Llama with a head, whose tokens have vectors in every layer."""

    def _init_model(
        self, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = LayeredLlamaLayer
    ) -> nn.Module:
        return LayeredLlamaModel(vllm_config=vllm_config, prefix=prefix, layer_type=LayeredLlamaLayer)
