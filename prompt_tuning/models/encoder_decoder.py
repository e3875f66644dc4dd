"""Prompts of encoder-decoder models: a prefix in every attention, or a soft prompt before the encoder's input.

PEFT's prefix for these models reaches only decoder self-attention. It gives layers i and i + L/2 the same keys and
values, and half of what it trains never gets a gradient. Here encoder self-attention, decoder self-attention and
cross-attention each have keys and values (Li & Liang 2021, Prefix-Tuning; Liu et al. 2022, P-Tuning v2).

The prefix never enters a cache. The encoder and the decoder pass it to their attention modules as a keyword argument,
and models/encoder_decoder_attention.py applies it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModelForSeq2SeqLM
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import move_padding
from prompt_tuning.engine.prompt_network import load_network
from prompt_tuning.errors import AdapterError, ModelError
from prompt_tuning.models.encoder_decoder_attention import (
    PREFIXED_ATTENTION,
    T5_LIKE,
    attention_modules,
    head_shape,
    key_value_deviations,
)
from prompt_tuning.models.encoder_decoder_prefix import (
    EncoderDecoderPrefix,
    EncoderDecoderPrefixConfig,
    load_prompt_config,
)

# The encoders of these models scale embeddings that they look up, but not embeddings that they receive.
RECEIVES_UNSCALED = ("blenderbot-small", "marian", "mvp", "pegasus")


class EncoderDecoderPromptModel(PeftModelForSeq2SeqLM):
    """`PeftModelForSeq2SeqLM` with a prefix in every attention, and with soft prompts whose every row is trained.

    `EncoderDecoderPromptModel(base_model, config)` takes an `EncoderDecoderPrefixConfig`, a `PromptTuningConfig`, a
    `PromptEncoderConfig` or a `MultitaskPromptTuningConfig`. A soft prompt `[P, H]` (Lester et al. 2021) stands before
    the encoder's input and takes PEFT's own forward. Unlike PEFT's, `disable_adapter()` holds in `generate` too.
    """

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,  # PEFT passes it by its place.
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> EncoderDecoderPromptModel:
        """Return the base model with a saved adapter.

        Args:
            model: the base model. It is changed.
            model_id: the adapter's folder.
            adapter_name: the name of the adapter in the model.
            is_trainable: the training is continued.
            config: the configuration; by default the saved one.
            kwargs: the other arguments of `load_adapter`.

        Raises:
            AdapterError: the adapter does not fit the model.
        """
        if config is None:
            config = load_prompt_config(model_id, is_trainable=is_trainable, **cls._split_kwargs(kwargs)[0])
        peft_model = cls(model, config, adapter_name)
        peft_model.load_adapter(model_id, adapter_name, is_trainable=is_trainable, **kwargs)
        return peft_model

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,  # PEFT passes it by its place.
        **kwargs: Any,
    ) -> Any:
        """Load a saved adapter; unlike PEFT, also this module's, and the network that writes the prompt.

        Only a checkpoint holds the network. Elsewhere only its output is saved, which then replaces the network.

        Raises:
            AdapterError: training is to resume, and only what the network wrote was saved.
        """
        if adapter_name not in self.peft_config:
            config = load_prompt_config(model_id, is_trainable=is_trainable, **self._split_kwargs(kwargs)[0])
            self.add_adapter(adapter_name, config)
        loaded = load_network(self, adapter_name, model_id, is_trainable=is_trainable)
        if loaded is not None:
            return loaded
        config = self.peft_config[adapter_name]
        result = super().load_adapter(str(model_id), adapter_name, is_trainable=is_trainable, **kwargs)
        # PEFT then takes the loaded embeddings as they are.
        config.inference_mode |= find_method(config.peft_type).written_by_network
        return result

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, **kwargs: Any) -> None:
        """Add an adapter; unlike PEFT, refuse prompts of which some rows would not be trained.

        Raises:
            AdapterError: the configuration makes no prompt here, or one with rows that are never trained.
        """
        if isinstance(peft_config, EncoderDecoderPrefixConfig):
            super().add_adapter(adapter_name, peft_config, **kwargs)
            return
        method = find_method(peft_config.peft_type)
        if not (method.trains_embeddings and method.fits_encoder_decoder):
            raise AdapterError(
                f"a {type(peft_config).__name__} makes no prompt for an encoder-decoder model. Use an "
                "EncoderDecoderPrefixConfig, PromptTuningConfig, PromptEncoderConfig or MultitaskPromptTuningConfig."
            )
        submodules = peft_config.num_transformer_submodules or 1
        if submodules != 1 and not peft_config.inference_mode:
            raise AdapterError(
                f"num_transformer_submodules is {submodules}, but the prompt stands only before the encoder's input, "
                "and the other rows would never be trained. Set it to 1."
            )
        peft_config.num_transformer_submodules = submodules
        super().add_adapter(adapter_name, peft_config, **kwargs)

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        """Create the prompt of an adapter; unlike PEFT, also a prefix in every attention."""
        config = self.peft_config[adapter_name]
        if not isinstance(config, EncoderDecoderPrefixConfig):
            super()._setup_prompt_encoder(adapter_name)
            return
        base = self.base_model.requires_grad_(requires_grad=False)
        modules = _prefixed_modules(base, config)
        _check_base(base, config, modules)
        config.num_transformer_submodules = 1
        prefix = EncoderDecoderPrefix(config)
        if not config.inference_mode:
            deviations = torch.zeros(len(prefix.widths))
            if config.init_weights != "zero":
                deviations = key_value_deviations(base, _flat(modules))
            prefix.initialise(deviations)
        if "prompt_encoder" not in self._modules:
            self.prompt_encoder = nn.ModuleDict()
            self.prompt_tokens = {}
        self.prompt_encoder[adapter_name] = prefix.to(base.device)
        # PEFT reads the indices of the virtual tokens when it saves.
        self.prompt_tokens[adapter_name] = torch.arange(config.num_virtual_tokens)
        base.set_attn_implementation(PREFIXED_ATTENTION)

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run the base model behind the prompt.

        Args:
            input_ids: `[B, T]`, padded on either side.
            attention_mask: `[B, T]`.
            kwargs: the other arguments of the base model, such as labels `[B, U]`.

        Returns:
            The output of the base model, with logits `[B, U, V]`.
        """
        inputs = _move_padding_right({"input_ids": input_ids, "attention_mask": attention_mask} | kwargs)
        if isinstance(self.active_peft_config, EncoderDecoderPrefixConfig):
            with self._pass_prefix():
                return self.base_model(**inputs)
        with self._scale_embeddings():
            return super().forward(**inputs)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base model's `generate` behind the prompt; without it while the adapter is disabled."""
        config = self.base_model.config
        deeper_decoder = config.model_type in T5_LIKE and config.num_layers < config.num_decoder_layers
        if deeper_decoder and kwargs.get("use_cache", True) and "cache_implementation" not in kwargs:
            # transformers creates a cache with as many layers as the encoder has. This cache grows as needed.
            kwargs.setdefault("cache", EncoderDecoderCache(DynamicCache(), DynamicCache()))
        if self._adapters_disabled:
            return self.base_model.generate(*args, **kwargs)
        kwargs = _move_padding_right(kwargs)
        if isinstance(self.active_peft_config, EncoderDecoderPrefixConfig):
            with self._pass_prefix():
                return self.base_model.generate(*args, **kwargs)
        with self._scale_embeddings():
            return super().generate(*args, **kwargs)

    @contextmanager
    def _scale_embeddings(self) -> Iterator[None]:
        """Let the base model's encoder scale the prompt and the rows in the block, as it scales what it looks up."""
        if self._adapters_disabled or self.base_model.config.model_type not in RECEIVES_UNSCALED:
            yield
            return

        def scale(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            embeds = kwargs.get("inputs_embeds")
            if embeds is None:
                return args, kwargs
            return args, kwargs | {"inputs_embeds": embeds * module.embed_scale}

        handle = self.base_model.get_encoder().register_forward_pre_hook(scale, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _pass_prefix(self) -> Iterator[None]:
        """Let the base model's encoder and decoder pass the active prefix to their attention modules in the block."""
        slots = iter(self.prompt_encoder[self.active_adapter].slots())
        states: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        for module in _flat(_prefixed_modules(self.base_model, self.active_peft_config)):
            # [P, heads * size] -> [heads, P, size]
            key = next(slots).unflatten(1, head_shape(module)).transpose(0, 1)
            value = next(slots).unflatten(1, head_shape(module)).transpose(0, 1)
            states[module] = (key, value)

        # The prefix is an argument, not an attribute of the modules: activation checkpointing runs a layer again with
        # its arguments, after the block. DataParallel's replicas share their hooks but not their modules, so that
        # each adds its states.
        def add_states(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            return args, kwargs | {"prefix_states": kwargs.get("prefix_states", {}) | states}

        stacks = (self.base_model.get_encoder(), self.base_model.get_decoder())
        handles = [stack.register_forward_pre_hook(add_states, with_kwargs=True) for stack in stacks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _check_base(
    base: PreTrainedModel, config: EncoderDecoderPrefixConfig, modules: dict[str, list[nn.Module]]
) -> None:
    """Fill in the places of a prefix, or raise an error if the base model does not fit it."""
    # transformers has no public name for it.
    attention = base.config._attn_implementation  # noqa: SLF001 - no public name
    if attention not in ("sdpa", PREFIXED_ATTENTION):
        raise ModelError(
            f"{type(base).__name__} runs {attention} attention, which takes no prefix. Load it with "
            'attn_implementation="sdpa".'
        )
    places = {place: [len(layers), *head_shape(layers[0])] for place, layers in modules.items()}
    if config.places and config.places != places:
        raise AdapterError(
            f"a prefix for {config.places} (layers, heads, head size), but {type(base).__name__} has {places}. Load "
            "it on the model that it was trained on."
        )
    config.places = places


def _prefixed_modules(base: PreTrainedModel, config: EncoderDecoderPrefixConfig) -> dict[str, list[nn.Module]]:
    """Return the attention modules of the places that are switched on, layer by layer."""
    switches = {"encoder": config.prefix_encoder, "decoder": config.prefix_decoder, "cross": config.prefix_cross}
    return {place: modules for place, modules in attention_modules(base).items() if switches[place]}


def _flat(modules: dict[str, list[nn.Module]]) -> list[nn.Module]:
    return list(itertools.chain.from_iterable(modules.values()))


def _move_padding_right(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with the padding of `input_ids` `[B, T]` on the right, so that rows follow the prompt."""
    ids = inputs.get("input_ids")
    mask = inputs.get("attention_mask")
    if ids is None or mask is None or not bool((mask[:, 1:] > mask[:, :-1]).any()):
        return inputs
    mask, ids = move_padding("right", mask, ids)
    return inputs | {"input_ids": ids, "attention_mask": mask}
