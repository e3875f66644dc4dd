"""The plug-in of vLLM that lets it serve exports with layer vectors.

vLLM finds it by the entry point `vllm.general_plugins` of this package.
"""

from __future__ import annotations

from transformers import AutoConfig

from prompt_tuning.models.layered_config import LayeredLlamaConfig


def register() -> None:
    """Name the configuration to transformers and the architecture to vLLM. vLLM calls it in each of its processes."""
    from vllm import ModelRegistry  # Only an environment of vLLM has it.

    AutoConfig.register(LayeredLlamaConfig.model_type, LayeredLlamaConfig, exist_ok=True)
    name = "LayeredLlamaForCausalLM"
    ModelRegistry.register_model(name, f"prompt_tuning.models.layered_vllm:{name}")
