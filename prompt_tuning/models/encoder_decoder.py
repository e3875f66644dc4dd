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
import torch.nn.functional as F
from peft import PeftConfig, PeftModelForSeq2SeqLM
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.engine.base_checks import check_encoder_takes_embeddings
from prompt_tuning.engine.calls import full_mask, further_arguments, generate_arguments, setting
from prompt_tuning.engine.places import rows_first, select
from prompt_tuning.engine.prompt_adapters import PromptAdapters
from prompt_tuning.engine.trained_config import TrainedTokensConfig
from prompt_tuning.engine.trained_tokens import PLACES, check_trained_tokens
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

RECEIVES_UNSCALED = ("blenderbot-small", "marian", "mvp", "pegasus")


class EncoderDecoderPromptModel(PromptAdapters, PeftModelForSeq2SeqLM):
    """`PeftModelForSeq2SeqLM` with a prefix in every attention, and with soft prompts whose every row is trained.

    `EncoderDecoderPromptModel(base_model, config)` takes an `EncoderDecoderPrefixConfig`, a `PromptTuningConfig`, a
    `PromptEncoderConfig` or a `MultitaskPromptTuningConfig`. A soft prompt `[P, H]` (Lester et al. 2021) stands before
    the encoder's input and takes PEFT's own forward. Unlike PEFT's, `disable_adapter()` holds in `generate` too.
    """

    @classmethod
    def saved_config(cls, model_id: str | Path, *, is_trainable: bool, **kwargs: Any) -> PeftConfig:
        """Return the configuration of a saved adapter, also of a prefix in every attention."""
        return load_prompt_config(model_id, is_trainable=is_trainable, **kwargs)

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, **kwargs: Any) -> None:
        """Add an adapter; unlike PEFT, refuse prompts of which some rows would not be trained.

        Raises:
            AdapterError: the configuration makes no prompt here, or one with rows that are never trained.
            ModelError: it has trained tokens.
        """
        if isinstance(peft_config, TrainedTokensConfig):
            check_trained_tokens(self.base_model.config, layer_vectors=peft_config.layer_vectors)
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
            check_encoder_takes_embeddings(self.base_model, _embedding_scale(self.base_model))
            super()._setup_prompt_encoder(adapter_name)
            self.word_embeddings = self.base_model.get_input_embeddings()
            self._add_trained_tokens(adapter_name)
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
        self.word_embeddings = base.get_input_embeddings()
        self._add_trained_tokens(adapter_name)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        task_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the base model behind the prompt.

        Args:
            input_ids: `[B, T]`, padded on either side.
            attention_mask: `[B, T]`; by default every token counts.
            *args: the other arguments in the order of the base model's forward, which differs from PEFT's.
            task_ids: `[B]`, or `[1]` for all rows: the task, for multitask prompts.
            **kwargs: the other arguments of the base model, such as labels `[B, U]`.

        Returns:
            The output of the base model, with logits `[B, U, V]`. States of the encoder, `[B, P + T, H]`, are those of
            rows that are padded on the right.

        Raises:
            AdapterError: the mask has another shape than the rows, or the encoder's states lack a soft prompt.
        """
        further = further_arguments(self.base_model.forward, args, kwargs)
        inputs = _move_padding_right({"input_ids": input_ids, "attention_mask": attention_mask} | further)
        with self._pass_prefix(), self.trained_tokens():
            return self.base_model(**self._put_before_rows(inputs, task_ids))

    @torch.no_grad()
    def generate(self, *args: Any, task_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Run the base model's `generate` behind the prompt; without it while the adapter is disabled.

        Args:
            *args: as for the base model's `generate`, in its order.
            task_ids: `[B]`, or `[1]` for all rows: the task, for multitask prompts.
            **kwargs: as for the base model's `generate`: `inputs` or `input_ids` `[B, T]`, `attention_mask` `[B, T]`,
                which is by default 0 for padding tokens, and settings.

        Raises:
            AdapterError: a row has no token, the mask has another shape, or an argument would miss a soft prompt.
        """
        base = self.base_model
        deeper_decoder = base.config.model_type in T5_LIKE and base.config.num_layers < base.config.num_decoder_layers
        if deeper_decoder and kwargs.get("use_cache", True) and "cache_implementation" not in kwargs:
            # transformers creates a cache with as many layers as the encoder has. This cache grows as needed.
            kwargs.setdefault("cache", EncoderDecoderCache(DynamicCache(), DynamicCache()))
        if self._adapters_disabled:
            return base.generate(*args, **kwargs)
        inputs = generate_arguments(base, args, kwargs)
        inputs = _move_padding_right(inputs)
        with self._pass_prefix(), self.trained_tokens():
            return base.generate(**self._read_sources(inputs, task_ids))

    def _read_sources(self, inputs: dict[str, Any], task_ids: torch.Tensor | None) -> dict[str, Any]:
        """Return the arguments of `generate` with the states of the encoder, which has read prompt and rows.

        A prefix alone changes no argument.

        Raises:
            AdapterError: an argument would miss what the encoder reads.
        """
        base = self.base_model
        if self._prompt_is_prefix and self._table is None:
            return inputs
        if inputs.get("assistant_model") is not None:
            raise AdapterError("generate: assistant_model knows nothing of the prompt. Leave it out.")
        ids = inputs.get("input_ids")
        if ids is not None and self._table is not None:
            ids = self._table.ordinary(ids)
        inputs = self._put_before_rows(inputs, task_ids)
        states = base.get_encoder()(
            **{name: inputs.pop(name) for name in ("inputs_embeds", PLACES) if name in inputs},
            attention_mask=inputs.get("attention_mask"),
            output_attentions=setting(base, inputs, "output_attentions"),
            output_hidden_states=setting(base, inputs, "output_hidden_states"),
            return_dict=True,
        )
        # Settings that look at the ids of a source get them, although the encoder has read them already.
        return inputs | {"input_ids": ids, "encoder_outputs": states}

    def _put_before_rows(self, inputs: dict[str, Any], task_ids: torch.Tensor | None) -> dict[str, Any]:
        """Return the arguments with `inputs_embeds` `[B, P + T, H]` of soft prompt and rows, and the mask of both.

        Raises:
            AdapterError: the encoder's states are given, which lack the prompt.
        """
        table = self._table
        if self._prompt_is_prefix and (table is None or inputs.get("encoder_outputs") is not None):
            return inputs
        if inputs.get("encoder_outputs") is not None:
            raise AdapterError(
                "encoder_outputs: they lack the soft prompt, which the encoder reads. Give input_ids instead, or give "
                "the states of a forward behind the prompt to the base model."
            )
        base = self.base_model
        scale = _embedding_scale(base)
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        if embeds is None:
            embeds = self.embed(ids) * scale
        columns = torch.full(embeds.shape[:2], -1) if table is None or ids is None else table.columns(ids)
        length = 0
        if not self._prompt_is_prefix:
            length = self.active_peft_config.num_virtual_tokens
            prompt = self.get_prompt(batch_size=len(embeds), task_ids=task_ids)[:, :length].to(embeds.dtype) * scale
            embeds = torch.cat([prompt, embeds], 1)
        prompted: dict[str, Any] = {"inputs_embeds": embeds}
        if table is not None:
            of_prompt = table.prompt_columns(self.active_adapter, length).expand(len(columns), -1)
            prompted |= table.layer_arguments(torch.cat([of_prompt, columns], 1))
        if inputs.get("attention_mask") is not None:
            prompted["attention_mask"] = F.pad(inputs["attention_mask"], (length, 0), value=1)
        return {name: value for name, value in inputs.items() if name != "input_ids"} | prompted

    @property
    def _prompt_is_prefix(self) -> bool:
        return isinstance(self.active_peft_config, EncoderDecoderPrefixConfig)

    @contextmanager
    def _pass_prefix(self) -> Iterator[None]:
        """Let the base model's encoder and decoder pass the active prefix, if any, to their attention in the block."""
        if not self._prompt_is_prefix:
            yield
            return
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


def _embedding_scale(base: PreTrainedModel) -> float:
    """Return the factor that an encoder applies only to embeddings that it looks up, not to those it receives."""
    return base.get_encoder().embed_scale if base.config.model_type in RECEIVES_UNSCALED else 1


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
    """Return the arguments with the padding of rows `[B, T]` or `[B, T, H]` on the right; the rows follow the prompt.

    Raises:
        AdapterError: the mask has another shape.
    """
    rows = {name: inputs[name] for name in ("input_ids", "inputs_embeds") if inputs.get(name) is not None}
    mask = inputs.get("attention_mask")
    if not rows or mask is None:
        return inputs
    name, row = next(iter(rows.items()))
    mask = full_mask(row, mask)
    order = rows_first(mask)
    return inputs | {name: select(row, order), "attention_mask": select(mask, order)}
