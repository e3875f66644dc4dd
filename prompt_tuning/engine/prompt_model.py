"""PEFT's model of a causal language model, and its prompts as input embeddings or as caches of keys and values."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModelForCausalLM
from transformers import AttentionInterface, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import start_with
from prompt_tuning.engine.attention import ATTENTION, shared_prefix_attention
from prompt_tuning.engine.base_checks import check_base
from prompt_tuning.engine.dispatch import (
    ExecutionPath,
    check_checkpointing,
    checkpointed_prefix,
    execution_path,
    is_split,
    packing_obstacle,
)
from prompt_tuning.engine.frozen_start import read_start
from prompt_tuning.engine.kept_prompts import KeptPrompts, cache_state
from prompt_tuning.engine.kv_cache import caches_of_rows, common_prefix_cache
from prompt_tuning.engine.limits import rotary_limit, window_limit
from prompt_tuning.engine.padded_segments import to_device
from prompt_tuning.engine.peft_generation import prepare_under_old_name
from prompt_tuning.engine.prompt_adapters import PromptAdapters
from prompt_tuning.engine.prompt_names import PromptName, index_prompts
from prompt_tuning.engine.row_layout import KeyTree
from prompt_tuning.engine.row_tree import RowTree
from prompt_tuning.engine.target_batch import Batch
from prompt_tuning.errors import AdapterError

logger = logging.getLogger(__name__)

SHARED_TEXTS = "Text that several rows of a batch open with is computed once: %s of the first %s tokens are saved."


class PromptModel(PromptAdapters, PeftModelForCausalLM):
    """`PeftModelForCausalLM` that hands out its prompts as embeddings or as caches, each computed once."""

    active_adapter: str
    base_model_prepare_inputs_for_generation: Callable[..., dict[str, Any]]

    def __init__(self, model: torch.nn.Module, peft_config: Any, adapter_name: str = "default", **kwargs: Any) -> None:
        """Put a prompt before the base model and choose its attention; the arguments are those of the base class."""
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self._kept = KeptPrompts()
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
        check_base(self.base_model, self.peft_config[adapter_name])
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
        self._add_trained_tokens(adapter_name)

    def _table_ids(self, ids: torch.Tensor, names: Sequence[PromptName], prompt_index: Sequence[int]) -> torch.Tensor:
        """Return ids `[B, T]` of rows as the table of several adapters has them."""
        if self._table is None or len(names) == 1:
            return ids
        return self._table.shifted(ids, [names[number].adapter for number in prompt_index])

    def _layer_arguments(
        self, names: Sequence[PromptName], shared: torch.Tensor, rows: torch.Tensor
    ) -> dict[str, Any]:
        """Return what the base model hands to its layers for one sequence of prompts, each with shared ids, and rows.

        Args:
            names: the prompts before the rows; none if they are caches.
            shared: ids `[S]` behind each prompt.
            rows: ids `[N]`.
        """
        if self._table is None:
            return {}
        columns = [self._table.columns(rows)]
        behind = self._table.columns(shared)
        for name in reversed(names):
            length = self.peft_config[name.adapter].num_virtual_tokens
            columns = [self._table.prompt_columns(name.adapter, length), behind, *columns]
        return self._table.layer_arguments(torch.cat(columns))

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

    def keep_prompt_cache(self, common_prefix: Sequence[int]) -> AbstractContextManager[None]:
        """Return a context that keeps a cache of each prompt and of these ids, for rows that open with them."""
        device = self.get_base_model().device
        return self._kept.keep(torch.tensor(list(common_prefix), dtype=torch.long, device=device))

    def reuse_prompt_caches(self) -> AbstractContextManager[None]:
        """Return a context that keeps the caches of prompts, also for the next such context.

        They are computed again after weights, the device or the numbers of autocast have changed.
        """
        base = self.get_base_model()
        if self._kept.common_prefix is not None or not self.active_peft_config.is_prompt_learning:
            return nullcontext()
        state = cache_state(base, self.prompt_encoder, base.device.type)
        return self._kept.reuse(state, torch.empty(0, dtype=torch.long, device=base.device))

    def _log_once(self, message: str, *values: Any, level: int = logging.WARNING) -> None:
        if message not in self._logged:
            self._logged.add(message)
            logger.log(level, message, *values)

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
            elif not len(prompt) + len(common_prefix):
                cache = common_prefix_cache(base, [])
            else:
                cache = DynamicCache(config=base.config)
                embeds = self.embed(common_prefix)
                embeds = torch.cat([prompt.to(embeds.dtype), embeds])[None]
                vectors = self._layer_arguments([name], common_prefix, common_prefix.new_empty(0))
                base(inputs_embeds=embeds, cache=cache, use_cache=True, logits_to_keep=1, **vectors)
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

    def _packed_logits(self, batch: Batch, names: list[PromptName], prompt_index: list[int]) -> torch.Tensor:
        """Return the logits `[targets, V]` of a batch from one sequence `[1, P + N, H]` of prompts and rows."""
        common_prefix = batch.common_prefix[:0]
        computed: list[Any] = []
        virtual = any(self.peft_config[name.adapter].num_virtual_tokens for name in names)
        start = None
        # A split model runs its layers in all processes together, and only some of them may have a start to read.
        if not virtual and torch.is_grad_enabled() and not is_split(self):
            start = read_start(self.get_base_model(), batch)
        before = None
        if start is not None:
            before, prompt_index, batch = start
            names = []
        elif self._prompt_is_cache:
            before = KeyTree.from_caches(list(map(self._prompt, names)))
            names = []
        else:
            computed = list(map(self._prompt, names))
            common_prefix, batch = batch.common_prefix, batch.rest()
        prompts = tuple(len(prompt) + len(common_prefix) for prompt in computed)
        tree = RowTree(batch, prompt_index, len(prompts if before is None else before.lengths))
        if tree.num_saved:
            self._log_once(SHARED_TEXTS, tree.num_saved, tree.num_saved + len(tree.ids), level=logging.INFO)
        layout = tree.layout(prompts, before)
        positions = layout.positions()
        ids, predicts = tree.ids, tree.predicts + len(positions)
        vectors = self._layer_arguments(names, common_prefix, ids)
        shared_ids, ids, positions, predicts = to_device(
            self.word_embeddings.weight.device, common_prefix, ids, positions, predicts
        )
        embeds = self.embed(ids)
        if computed:
            shared = self.embed(shared_ids)
            computed = [torch.cat([prompt, shared]) for prompt in computed]
            embeds = torch.cat([*(prompt.to(embeds.dtype) for prompt in computed), embeds])
        output = self.get_base_model()(
            inputs_embeds=embeds[None],
            position_ids=positions[None],
            # With four dimensions the model makes no mask of its own: the layout says what is visible.
            attention_mask=positions.new_zeros(1, 1, 1, 1, dtype=torch.bool),
            use_cache=False,
            logits_to_keep=predicts[None],
            row_layout=layout,
            **vectors,
        )
        return output.logits.flatten(0, -2)

    def _cache_logits(self, batch: Batch, names: list[PromptName], prompt_index: list[int]) -> torch.Tensor:
        """Return the logits `[targets, V]` of a batch from padded rows behind a cache of their prompts."""
        if self._prompt_is_cache:
            common_prefix = batch.common_prefix[:0]
        else:
            common_prefix = batch.common_prefix
            batch = batch.rest()
        device = self.word_embeddings.weight.device
        cache, mask = caches_of_rows(self._prompt_caches(names, common_prefix.to(device)), prompt_index)
        mask = torch.cat([mask, batch.needed.to(device, mask.dtype)], 1)
        return self._run_after_cache(cache, mask, batch.input_ids.to(device), batch.predicts.to(device)).logits

    def _generation_caches(
        self, names: list[PromptName], input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[list[DynamicCache], torch.Tensor]:
        """Return the kept caches and their ids if these open every row, else caches for this batch and no ids."""
        kept = self._kept.common_prefix
        if kept is not None and start_with(input_ids, attention_mask, kept):
            return self._kept.caches(names, lambda name: self._prompt_caches([name], kept)[0]), kept
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
