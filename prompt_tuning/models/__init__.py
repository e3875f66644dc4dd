"""A frozen base model and the adapter added to it."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.models.adapter_config import load_adapter_config
    from prompt_tuning.models.gguf import import_gguf
    from prompt_tuning.models.layered_llama import LayeredLlamaForCausalLM
    from prompt_tuning.models.loading import load_base_model, load_config, load_tokenizer
    from prompt_tuning.models.prompts import (
        add_adapter,
        add_soft_prompt,
        load_adapter,
        prompt_config,
    )

__all__ = [
    "LayeredLlamaForCausalLM",
    "add_adapter",
    "add_soft_prompt",
    "import_gguf",
    "load_adapter",
    "load_adapter_config",
    "load_base_model",
    "load_config",
    "load_tokenizer",
    "prompt_config",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "LayeredLlamaForCausalLM": "layered_llama",
        "add_adapter": "prompts",
        "add_soft_prompt": "prompts",
        "import_gguf": "gguf",
        "load_adapter": "prompts",
        "load_adapter_config": "adapter_config",
        "load_base_model": "loading",
        "load_config": "loading",
        "load_tokenizer": "loading",
        "prompt_config": "prompts",
    },
)
