"""Prompts of encoder-decoder models: a prefix in every attention, or a soft prompt before the encoder's input.

PEFT's prefix for them reaches decoder self-attention alone, gives layers i and i + L/2 the same keys and values, and
leaves half of what it trains without a gradient. Here encoder self-attention, decoder self-attention and
cross-attention have keys and values of their own (Li & Liang 2021, Prefix-Tuning; Liu et al. 2022, P-Tuning v2).

The prefix never enters a cache. The two stacks hand it to their attention modules as a keyword argument, and an
attention function registered with transformers puts it before the keys and values, cached or not: always visible, with
relative position bias 0, and moving no position. Without that argument it is transformers' own attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModelForSeq2SeqLM, PrefixTuningConfig, TaskType
from peft.tuners.tuners_utils import BasePromptEncoder
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import move_padding
from prompt_tuning.engine.prompt_network import load_network
from prompt_tuning.errors import AdapterError, ModelError

PREFIXED_ATTENTION = "encoder_decoder_prefix"
# What adapter_config.json says instead of PREFIX_TUNING, so that plain PEFT stops at a method it does not know.
SAVED_TYPE = "ENCODER_DECODER_PREFIX"
FORMAT = "prompt_tuning/encoder_decoder_prefix/1"
# tests/models/test_encoder_decoder.py holds each of these to attention computed by hand.
T5_LIKE, BART_LIKE = ("t5", "mt5"), ("bart", "marian", "mbart", "pegasus")
# Their encoders scale what they look up, and not embeddings that they are given, as a soft prompt's rows are.
GIVEN_UNSCALED = ("blenderbot-small", "marian", "mvp", "pegasus")


@dataclass
class EncoderDecoderPrefixConfig(PrefixTuningConfig):
    """A prefix for encoder-decoder models, trained where it is switched on.

    Args:
        prefix_encoder: keys and values before those of encoder self-attention.
        prefix_decoder: before those of decoder self-attention.
        prefix_cross: before those of cross-attention.
        prefix_projection: train an MLP with `encoder_hidden_size` hidden units that writes the prefix, which is saved.
        init_weights: "zero" for zero keys and values. By default normal noise with, layer by layer, the standard
            deviation of the keys and of the values that the model itself computes.
        places: layers, heads and head size of each place, filled in from the base model; prefix_format: of the files.
    """

    prefix_encoder: bool = True
    prefix_decoder: bool = True
    prefix_cross: bool = True
    places: dict[str, list[int]] | None = None
    prefix_format: str = FORMAT

    def __post_init__(self) -> None:
        super().__post_init__()
        self.task_type = TaskType.SEQ_2_SEQ_LM
        if not (self.prefix_encoder or self.prefix_decoder or self.prefix_cross):
            raise AdapterError("no place is switched on; set prefix_encoder, prefix_decoder or prefix_cross to true")
        if not self.num_virtual_tokens or self.num_virtual_tokens < 1:
            raise AdapterError(f"num_virtual_tokens is {self.num_virtual_tokens}; a prefix needs at least 1")
        if self.prefix_format != FORMAT:
            raise AdapterError(
                f"prefix_format is {self.prefix_format}, expected {FORMAT}; use the release that wrote it"
            )

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"peft_type": SAVED_TYPE}

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        saved = super().from_json_file(path_json_file, **kwargs)
        return {name: value for name, value in saved.items() if name != "peft_type"}  # PEFT would look it up


def load_prompt_config(folder: str | Path, is_trainable: bool = False, **kwargs: Any) -> PeftConfig:
    """The configuration of an adapter, PEFT's or this module's, at which `PeftConfig.from_pretrained` stops."""
    own = PeftConfig._get_peft_type(str(folder), **kwargs) == SAVED_TYPE
    config = (EncoderDecoderPrefixConfig if own else PeftConfig).from_pretrained(str(folder), **kwargs)
    config.inference_mode = not is_trainable
    if own and is_trainable:
        config.prefix_projection = False  # the file holds what the MLP wrote
    return config


class EncoderDecoderPrefix(BasePromptEncoder):
    """Trained keys and values in float32, or an MLP that writes them; W sums 2 * layers * heads * size over places."""

    def __init__(self, config: EncoderDecoderPrefixConfig) -> None:
        super().__init__()
        length, width, hidden = config.num_virtual_tokens, config.token_dim, config.encoder_hidden_size
        self.widths = [heads * size for layers, heads, size in config.places.values() for _ in range(2 * layers)]
        self.projected = config.prefix_projection and not config.inference_mode
        self.embedding, self.transform = nn.Embedding(length, sum(self.widths)), nn.Identity()
        if self.projected:
            self.embedding = nn.Embedding(length, width)
            self.transform = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, sum(self.widths)))
        self.float().requires_grad_(not config.inference_mode)

    def forward(self, indices: torch.Tensor | None = None) -> torch.Tensor:
        """`[1, P, W]`; `indices` are PEFT's, when it saves, and always all of them."""
        return self.transform(self.embedding.weight)[None]

    def slots(self) -> list[torch.Tensor]:
        """Keys, then values, of each layer of each place: `[P, heads * size]`."""
        return self()[0].split(self.widths, dim=1)

    @torch.no_grad()
    def initialise(self, deviations: torch.Tensor) -> None:
        """Start from normal noise of these deviations `[2 * layers of all places]`; an MLP is scaled to write such."""
        scale = deviations.repeat_interleave(torch.tensor(self.widths))
        if self.projected:
            scale = scale / self().std()
            self.transform[-1].weight.mul_(scale[:, None])
            self.transform[-1].bias.mul_(scale)
        else:
            self.embedding.weight.normal_().mul_(scale)

    def _load_adapter_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        saved, old = state_dict["prompt_embeddings"], self.embedding.weight
        expected = len(old), sum(self.widths)
        if tuple(saved.shape) != expected:
            raise AdapterError(
                f"the saved prefix has shape {tuple(saved.shape)}, expected {expected}; load it with "
                "EncoderDecoderPromptModel.from_pretrained, which reads its configuration"
            )
        if self.projected:  # what an MLP wrote replaces it
            self.embedding, self.transform = nn.Embedding(*expected, device=old.device), nn.Identity()
            self.projected = False
        self.embedding.weight.data.copy_(saved)


class EncoderDecoderPromptModel(PeftModelForSeq2SeqLM):
    """`PeftModelForSeq2SeqLM` whose prompts are right: a prefix in every attention, soft prompts without dead rows.

    Built like it: `EncoderDecoderPromptModel(base_model, config)` with an `EncoderDecoderPrefixConfig`, a
    `PromptTuningConfig` or a `PromptEncoderConfig`. A soft prompt `[P, H]` (Lester et al. 2021) stands before the
    encoder's input and takes PEFT's own forward. `disable_adapter()` holds in `generate` too.
    """

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> EncoderDecoderPromptModel:
        """The base model with a saved adapter, `kwargs` as for `load_adapter`; a prefix's MLP is not brought back."""
        config = config or load_prompt_config(model_id, is_trainable, **cls._split_kwargs(kwargs)[0])
        peft_model = cls(model, config, adapter_name)
        peft_model.load_adapter(model_id, adapter_name, is_trainable, **kwargs)
        return peft_model

    def load_adapter(self, model_id: str | Path, adapter_name: str, is_trainable: bool = False, **kwargs: Any) -> Any:
        """Load a saved adapter; unlike PEFT, also this module's, and the network that writes the prompt.

        Only a checkpoint holds the network. Elsewhere only its output is saved, which then replaces the network.

        Raises:
            AdapterError: training is to resume, and only what the network wrote was saved.
        """
        if adapter_name not in self.peft_config:
            config = load_prompt_config(model_id, is_trainable, **self._split_kwargs(kwargs)[0])
            self.add_adapter(adapter_name, config)
        loaded = load_network(self, adapter_name, model_id, is_trainable)
        if loaded is not None:
            return loaded
        config = self.peft_config[adapter_name]
        result = super().load_adapter(str(model_id), adapter_name, is_trainable, **kwargs)
        # PEFT then takes the loaded embeddings as they are.
        config.inference_mode |= find_method(config.peft_type).written_by_network
        return result

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, **kwargs: Any) -> None:
        """As PEFT's, for the prompts that are right."""
        if not isinstance(peft_config, EncoderDecoderPrefixConfig):
            method = find_method(peft_config.peft_type)
            if not (method.trains_embeddings and method.fits_encoder_decoder):
                raise AdapterError(
                    f"a {type(peft_config).__name__} makes no prompt for an encoder-decoder model here; expected "
                    "EncoderDecoderPrefixConfig, PromptTuningConfig, PromptEncoderConfig or "
                    "MultitaskPromptTuningConfig"
                )
            submodules = peft_config.num_transformer_submodules or 1
            if submodules != 1 and not peft_config.inference_mode:
                raise AdapterError(
                    f"num_transformer_submodules is {submodules}, but the prompt stands before the encoder's input "
                    "alone and the other rows would never be trained; set it to 1"
                )
            peft_config.num_transformer_submodules = submodules
        super().add_adapter(adapter_name, peft_config, **kwargs)

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        config = self.peft_config[adapter_name]
        if not isinstance(config, EncoderDecoderPrefixConfig):
            return super()._setup_prompt_encoder(adapter_name)
        base = self.base_model.requires_grad_(False)
        attentions = _attentions(base, config)
        if base.config._attn_implementation not in ("sdpa", PREFIXED_ATTENTION):
            raise ModelError(
                f"{type(base).__name__} runs {base.config._attn_implementation} attention, which takes no prefix; "
                'load it with attn_implementation="sdpa"'
            )
        places = {place: [len(modules), *_heads(modules[0])] for place, modules in attentions.items()}
        if config.places not in (None, places):
            raise AdapterError(
                f"a prefix for {config.places} (layers, heads, head size), but {type(base).__name__} has {places}; "
                "load it on the model that it was trained on"
            )
        config.places, config.num_transformer_submodules = places, 1
        prefix = EncoderDecoderPrefix(config)
        if not config.inference_mode:
            zero = config.init_weights == "zero"
            prefix.initialise(torch.zeros(len(prefix.widths)) if zero else _own_deviations(base, attentions))
        if "prompt_encoder" not in self._modules:
            self.prompt_encoder, self.prompt_tokens = nn.ModuleDict(), {}
        self.prompt_encoder[adapter_name] = prefix.to(base.device)
        self.prompt_tokens[adapter_name] = torch.arange(config.num_virtual_tokens)  # for PEFT, when it saves
        base.set_attn_implementation(PREFIXED_ATTENTION)

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """The base model's forward behind the prompt: input_ids `[B, T]`, labels `[B, U]` to logits `[B, U, V]`."""
        given = _padded_behind({"input_ids": input_ids, "attention_mask": attention_mask} | kwargs)
        if isinstance(self.active_peft_config, EncoderDecoderPrefixConfig):
            with self._prefix_handed_over():
                return self.base_model(**given)
        with self._embeddings_scaled():
            return super().forward(**given)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's `generate` behind the prompt, unless that is disabled."""
        config = self.base_model.config
        deeper = config.model_type in T5_LIKE and config.num_layers < config.num_decoder_layers
        if deeper and kwargs.get("use_cache", True) and "cache_implementation" not in kwargs:
            # transformers would make a cache of as many layers as the encoder has; one without a number grows.
            kwargs.setdefault("cache", EncoderDecoderCache(DynamicCache(), DynamicCache()))
        if self._adapters_disabled:
            return self.base_model.generate(*args, **kwargs)
        kwargs = _padded_behind(kwargs)
        if isinstance(self.active_peft_config, EncoderDecoderPrefixConfig):
            with self._prefix_handed_over():
                return self.base_model.generate(*args, **kwargs)
        with self._embeddings_scaled():
            return super().generate(*args, **kwargs)

    @contextmanager
    def _embeddings_scaled(self) -> Iterator[None]:
        """Within it the base model's encoder scales prompt and rows as it does what it looks up itself."""
        if self._adapters_disabled or self.base_model.config.model_type not in GIVEN_UNSCALED:
            yield
            return

        def scale(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            embeds = kwargs.get("inputs_embeds")
            return args, kwargs if embeds is None else kwargs | {"inputs_embeds": embeds * module.embed_scale}

        handle = self.base_model.get_encoder().register_forward_pre_hook(scale, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _prefix_handed_over(self) -> Iterator[None]:
        """Within it the base model's stacks pass the active prefix, computed once, to their attention modules."""
        modules = [each for place in _attentions(self.base_model, self.active_peft_config).values() for each in place]
        slots = iter(self.prompt_encoder[self.active_adapter].slots())
        states = {m: tuple(next(slots).unflatten(1, _heads(m)).transpose(0, 1) for _ in "kv") for m in modules}

        # An argument, not an attribute of the modules: activation checkpointing runs a layer again with its
        # arguments, after this context has been left.
        def hand_over(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            # DataParallel's replicas share their hooks, not their modules.
            return args, kwargs | {"prefix_states": kwargs.get("prefix_states", {}) | states}

        stacks = self.base_model.get_encoder(), self.base_model.get_decoder()
        handles = [stack.register_forward_pre_hook(hand_over, with_kwargs=True) for stack in stacks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _padded_behind(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments whose rows `[B, T]` follow the prompt at once, wherever their padding stood."""
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if ids is None or mask is None or not bool((mask[:, 1:] > mask[:, :-1]).any()):
        return given
    mask, ids = move_padding("right", mask, ids)
    return given | {"input_ids": ids, "attention_mask": mask}


def _attentions(base: PreTrainedModel, config: EncoderDecoderPrefixConfig) -> dict[str, list[nn.Module]]:
    """The attention modules of the places that are switched on, layer by layer."""
    encoder, decoder = base.get_encoder(), base.get_decoder()
    if base.config.model_type in T5_LIKE:
        own = [[block.layer[0].SelfAttention for block in stack.block] for stack in (encoder, decoder)]
        cross = [block.layer[1].EncDecAttention for block in decoder.block]
    elif base.config.model_type in BART_LIKE:
        own = [[layer.self_attn for layer in stack.layers] for stack in (encoder, decoder)]
        cross = [layer.encoder_attn for layer in decoder.layers]
    else:
        raise ModelError(
            f"{type(base).__name__} has model_type {base.config.model_type}; there is a prefix for "
            f"{', '.join(T5_LIKE + BART_LIKE)}; take one of these, or a soft prompt (PromptTuningConfig)"
        )
    places = (config.prefix_encoder, "encoder", own[0]), (config.prefix_decoder, "decoder", own[1])
    return {place: modules for on, place, modules in (*places, (config.prefix_cross, "cross", cross)) if on}


def _heads(attention: nn.Module) -> tuple[int, int]:
    """Number and size of heads, whose product is not always the hidden size in T5."""
    if attention.config.model_type in T5_LIKE:
        return attention.n_heads, attention.key_value_proj_dim
    return attention.num_heads, attention.head_dim


@torch.no_grad()
def _own_deviations(base: PreTrainedModel, attentions: dict[str, list[nn.Module]]) -> torch.Tensor:
    """The deviation of the model's own keys and of its values for 32 tokens, place by place and layer by layer."""
    names = ("k", "v") if base.config.model_type in T5_LIKE else ("k_proj", "v_proj")
    projections = [each.get_submodule(name) for place in attentions.values() for each in place for name in names]
    seen: dict[nn.Module, torch.Tensor] = {}

    def record(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        seen[module] = output.float().std()

    handles = [each.register_forward_hook(record) for each in projections]
    ids = torch.linspace(0, base.config.vocab_size - 1, 32, device=base.device).long()[None]
    training = base.training
    base.eval()(input_ids=ids, decoder_input_ids=ids)
    base.train(training)
    for handle in handles:
        handle.remove()
    return torch.stack([seen[each] for each in projections]).cpu()


def prefixed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    prefix_states: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query `[B, heads, T, D]` over `[prefix, key]`, key `[B, heads, U, D]`; returns `[B, T, heads, D]`.

    `prefix_states` holds keys and values `[heads, P, D]` for some modules. The mask `[B, 1, T, U]` and T5's
    `position_bias` `[1, heads, T, U]` are those of `key` alone.
    """
    if prefix_states is not None and module in prefix_states:
        prefix_key, prefix_value = prefix_states[module]
        length, rows = prefix_key.shape[1], len(query)
        if attention_mask is None and module.is_causal and query.shape[2] > 1:
            # Left to itself, sdpa would count the prefix among the keys that a causal mask hides.
            first, second = (torch.arange(states.shape[2], device=query.device) for states in (query, key))
            attention_mask = (first[:, None] >= second)[None, None]
        if attention_mask is not None:
            seen = torch.ones_like if attention_mask.dtype == torch.bool else torch.zeros_like
            attention_mask = torch.cat([seen(attention_mask[..., :1].expand(-1, -1, -1, length)), attention_mask], -1)
        if kwargs.get("position_bias") is not None:
            kwargs["position_bias"] = F.pad(kwargs["position_bias"], (length, 0))
        key = torch.cat([prefix_key.to(key.dtype).expand(rows, -1, -1, -1), key], 2)
        value = torch.cat([prefix_value.to(value.dtype).expand(rows, -1, -1, -1), value], 2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(PREFIXED_ATTENTION, prefixed_attention)
AttentionMaskInterface.register(PREFIXED_ATTENTION, sdpa_mask)
