"""PEFT's model of a causal language model, and its prompts as input embeddings or as caches of keys and values."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftConfig, PeftModelForCausalLM
from transformers import AttentionInterface, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import start_with
from prompt_tuning.engine.attention import ATTENTION, shared_prefix_attention
from prompt_tuning.engine.base_checks import cache_shape, check_takes_embeddings
from prompt_tuning.engine.dispatch import (
    ExecutionPath,
    check_checkpointing,
    checkpointed_prefix,
    execution_path,
    has_tested_cache,
    packing_obstacle,
)
from prompt_tuning.engine.limits import rotary_limit, window_limit
from prompt_tuning.engine.peft_generation import prepare_under_old_name
from prompt_tuning.engine.prompt_adapters import PromptAdapters
from prompt_tuning.engine.prompt_names import PromptName, index_prompts
from prompt_tuning.errors import AdapterError

logger = logging.getLogger(__name__)


class PromptModel(PromptAdapters, PeftModelForCausalLM):
    """`PeftModelForCausalLM` that hands out its prompts as embeddings or as caches, each computed once."""

    active_adapter: str
    base_model_prepare_inputs_for_generation: Callable[..., dict[str, Any]]

    def __init__(self, model: torch.nn.Module, peft_config: Any, adapter_name: str = "default", **kwargs: Any) -> None:
        """Put a prompt before the base model and choose its attention; the arguments are those of the base class."""
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self._common_prefix: torch.Tensor | None = None  # It is set while the cache of a prompt is kept.
        self._kept_caches: dict[PromptName, list[DynamicCache]] = {}
        self._logged: set[str] = set()
        self._compiled = False
        path = self.execution_path
        if find_method(peft_config.peft_type).has_prompt and not packing_obstacle(model):
            # A second adapter may be packed where the first is not.
            model.set_attn_implementation(ATTENTION)
        if path.name == "cache":
            self._log_once("The prompt is computed once for a batch, but rows are padded: %s.", path.reason)
        elif path.name == "plain":
            self._log_once("The prompt is computed for each row, by PEFT's own forward: %s.", path.reason)

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        """Make the prompt's parameters; unlike PEFT, make a prefix where packed rows checkpoint activations, too.

        Unlike PEFT, try first whether the base model takes a prompt, and ask it for its embeddings.

        Raises:
            ModelError: text behind a prompt would not be what it is behind text.
            AdapterError: the prefix has another shape than the model's keys and values, or layers are checkpointed
                that it cannot be trained in.
        """
        self._check_base(self.peft_config[adapter_name])
        if self.base_model.is_activation_checkpointing:
            check_checkpointing(self.base_model, self.peft_config[adapter_name])
        path = execution_path(self.base_model, self.peft_config[adapter_name], training=True)
        modules = self.base_model.modules() if path.name == "packed" else ()
        checkpointed = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
        for module in checkpointed:
            module.gradient_checkpointing = False
        try:
            super()._setup_prompt_encoder(adapter_name)
        finally:
            for module in checkpointed:
                module.gradient_checkpointing = True
        self.word_embeddings = self.base_model.get_input_embeddings()

    def _check_base(self, config: PeftConfig) -> None:
        """Try whether an untested base model takes the prompt of this configuration."""
        base, method = self.base_model, find_method(config.peft_type)
        if has_tested_cache(base):
            return
        if not method.trains_keys_and_values:
            check_takes_embeddings(base)
            return
        shape = config.num_layers, config.num_attention_heads, config.token_dim // config.num_attention_heads
        kept = cache_shape(base)
        if shape != kept:
            raise AdapterError(
                f"a prefix for {shape} (layers, heads, head size), but {type(base).__name__} keeps {kept}. Load it on "
                "the model that it was trained on, or take method prompt_tuning or lora."
            )

    @property
    def disabled(self) -> bool:
        """True within `disable_adapter`, where the model is its base model."""
        return self._adapters_disabled

    @property
    def execution_path(self) -> ExecutionPath:
        """The way in which the active adapter's batches are run."""
        return execution_path(self.get_base_model(), self.active_peft_config, training=self.training)

    def compile_layers(self, **kwargs: Any) -> None:
        """Compile each decoder layer in place with `torch.compile`, for batches of any shape.

        Attention over packed rows is not compiled, because its layout is new with every batch. Neither is generation,
        whose shapes would be compiled one by one.

        Args:
            **kwargs: as for `torch.compile`.
        """
        if not self._compiled:
            self._compiled = True
            AttentionInterface.register(ATTENTION, torch.compiler.disable(shared_prefix_attention))
            for module in self.get_base_model().modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.compile(**({"dynamic": True} | kwargs))

    def eagerly(self) -> AbstractContextManager:
        """Return a context in which compiled layers run uncompiled, for shapes that would each be compiled anew."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    @contextmanager
    def keep_prompt_cache(self, common_prefix: Sequence[int]) -> Iterator[None]:
        """Keep one cache of the prompt and of these ids within the context, for batches whose rows open with them."""
        device = self.get_base_model().device
        self._common_prefix = torch.tensor(list(common_prefix), dtype=torch.long, device=device)
        try:
            yield
        finally:
            self._common_prefix = None
            self._kept_caches = {}

    def _log_once(self, message: str, *values: Any) -> None:
        if message not in self._logged:
            self._logged.add(message)
            logger.warning(message, *values)

    def _log_limits(self, length: int) -> None:
        """Log once that sequences of this length, their prompt included, pass a window or a rotary length."""
        config = self.get_base_model().config.get_text_config()
        limits = (
            window_limit(config, self.active_peft_config.num_virtual_tokens, length),
            rotary_limit(config, length),
        )
        for limit in limits:
            if limit is not None:
                message, values = limit
                self._log_once(message, *values)

    def _index_prompts(
        self, adapter_names: Sequence[str] | None, task_ids: torch.Tensor | None, num_rows: int
    ) -> tuple[list[PromptName], list[int]]:
        names = [self.active_adapter] * num_rows if adapter_names is None else adapter_names
        return index_prompts(self.peft_config, names, task_ids, num_rows)

    def _check_prefix_is_read(self) -> None:
        """Raise an AdapterError if PEFT's forward would lose the prefix, since checkpointed layers take no cache."""
        if self.training and self._prompt_is_cache and self.get_base_model().is_activation_checkpointing:
            reason = self.execution_path.reason or "PEFT's forward runs for these arguments"
            raise AdapterError(checkpointed_prefix(reason))

    @property
    def _prompt_is_cache(self) -> bool:
        return find_method(self.active_peft_config.peft_type).trains_keys_and_values

    @contextmanager
    def _adapter_active(self, adapter_name: str) -> Iterator[None]:
        active = self.active_adapter
        self.active_adapter = adapter_name
        try:
            yield
        finally:
            self.active_adapter = active

    def _prompt(self, name: PromptName) -> Any:
        """Return input embeddings `[P, H]`, or for prefix tuning a cache of one row; its network runs once."""
        task_ids = None
        if name.task is not None:
            task_ids = torch.tensor([name.task], device=self.word_embeddings.weight.device)
        with self._adapter_active(name.adapter):
            prompt = self.get_prompt(batch_size=1, task_ids=task_ids)
        return prompt if self._prompt_is_cache else prompt[0]

    def _prompt_caches(self, names: Sequence[PromptName], common_prefix: torch.Tensor) -> list[DynamicCache]:
        """Return for each prompt a cache of one row: its P positions, then the S of the common prefix `[S]`."""
        base = self.get_base_model()
        caches = []
        for name in names:
            prompt = self._prompt(name)
            if self._prompt_is_cache:
                cache = prompt
                if len(common_prefix):
                    mask = common_prefix.new_ones(1, cache.get_seq_length() + len(common_prefix))
                    self._run_after_cache(cache, mask, common_prefix[None], 1)
            else:
                cache = DynamicCache(config=base.config)
                embeds = self.word_embeddings(common_prefix)
                embeds = torch.cat([prompt.to(embeds.dtype), embeds])[None]
                base(inputs_embeds=embeds, cache=cache, use_cache=True, logits_to_keep=1)
            caches.append(cache)
        return caches

    def _run_after_cache(
        self,
        cache: DynamicCache,
        mask: torch.Tensor,
        input_ids: torch.Tensor,
        logits_to_keep: torch.Tensor | int,
        **kwargs: Any,
    ) -> Any:
        """Run the base model over rows `[B, T]` behind a cache of C positions; the mask `[B, C + T]` covers both."""
        base = self.get_base_model()
        width = input_ids.shape[1]
        positions = {}
        if "position_ids" in inspect.signature(base.forward).parameters:
            starts = mask[:, :-width].sum(1, keepdim=True)
            positions["position_ids"] = starts + torch.arange(width, device=mask.device)
        behind = {"attention_mask": mask, "cache": cache, "use_cache": True}
        return base(input_ids=input_ids, logits_to_keep=logits_to_keep, **behind, **positions | kwargs)

    def _generation_caches(
        self, names: list[PromptName], input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[list[DynamicCache], torch.Tensor]:
        """Return the kept cache and its ids if they open every row, else caches for this batch and no ids."""
        kept = self._common_prefix
        if kept is not None and len(names) == 1 and start_with(input_ids, attention_mask, kept):
            if names[0] not in self._kept_caches:
                self._kept_caches[names[0]] = self._prompt_caches(names, kept)
            return self._kept_caches[names[0]], kept
        none = input_ids.new_empty(0)
        return self._prompt_caches(names, none), none

    def prepare_inputs_for_generation(
        self, *args: Any, task_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepare a step of PEFT's `generate`, for transformers 5.24 and later.

        PEFT 0.21.2 looks for `past_key_values`, where transformers hands over `cache`. It misses the cache and puts
        the prompt before every new token (tests/upstream/test_peft_causal.py).
        """
        prepare = self.base_model_prepare_inputs_for_generation
        self.base_model_prepare_inputs_for_generation = functools.partial(prepare_under_old_name, prepare)
        try:
            inputs = super().prepare_inputs_for_generation(*args, task_ids=task_ids, **kwargs)
        finally:
            self.base_model_prepare_inputs_for_generation = prepare
        if "past_key_values" in inputs:
            inputs["cache"] = inputs.pop("past_key_values")
        return inputs
