"""The exact engine: what all rows share is computed once, and padding changes nothing.

In a causal model the hidden states of the soft prompt depend on the prompt alone. PEFT prepends it to each row and
computes it B times, with logits for every position. Here a training step runs one sequence [prompt, row 1, row 2,
...] of shape `[1, P + N, H]`, N the number of tokens that matter: no row is padded in any linear layer, rows meet
only inside attention (packed_attention.py), tokens that open every row of the batch join the prompt, and logits are
made for target positions alone. Generation computes the prompt's keys and values once and hands them to `generate`
as a cache, with a mask that gives every row its true positions.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModelForCausalLM
from transformers import AttentionInterface, DynamicCache, StoppingCriteriaList
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import move_padding, pad_left, start_with
from prompt_tuning.engine.attention import ATTENTION, Batch, RowLayout, shared_prefix_attention
from prompt_tuning.engine.dispatch import (
    CACHE_ARCHITECTURES,
    ExecutionPath,
    execution_path,
    sliding_window,
    within_window,
)
from prompt_tuning.engine.generation import (
    count_new_tokens,
    generate_from_embeddings,
    generate_with_cache,
    setting,
    uses_own_cache,
    with_sources,
)
from prompt_tuning.engine.kv_cache import join_caches
from prompt_tuning.engine.prompt_network import load_network
from prompt_tuning.errors import AdapterError

logger = logging.getLogger(__name__)

LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotary embeddings by the longest sequence of a forward

PromptName = tuple[str, int | None]  # the adapter whose prompt stands before a row, and of a multitask one the task


class SharedPrefixModel(PeftModelForCausalLM):
    """`PeftModelForCausalLM` whose soft prompt is computed once for a batch.

    The same parameters, the same files and the same mathematics as its base class, which it falls back to for what it
    does not cover, saying so once in the log. Built like it: `SharedPrefixModel(base_model, peft_config)`.
    """

    def __init__(self, model: torch.nn.Module, peft_config: Any, adapter_name: str = "default", **kwargs: Any) -> None:
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self._opening: torch.Tensor | None = None  # set while a prompt's cache is kept
        self._kept: dict[PromptName, list[DynamicCache]] = {}
        self._told: set[str] = set()
        self._compiled = False
        if self.way.name == "packed":
            model.set_attn_implementation(ATTENTION)
        elif self.way.name == "cache":
            self._tell("The prompt is computed once for a batch, but rows are padded: %s.", self.way.reason)
        else:
            self._tell("The prompt is computed for each row, by PEFT's own forward: %s.", self.way.reason)

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        """As PEFT's, which makes no prefix where activations are checkpointed; packed rows take one there too."""
        packed = execution_path(self.base_model, self.peft_config[adapter_name], training=True).name == "packed"
        modules = self.base_model.modules() if packed else ()
        checkpointed = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
        for module in checkpointed:
            module.gradient_checkpointing = False
        try:
            super()._setup_prompt_encoder(adapter_name)
        finally:
            for module in checkpointed:
                module.gradient_checkpointing = True

    def load_adapter(self, model_id: str | Path, adapter_name: str, is_trainable: bool = False, **kwargs: Any) -> Any:
        """Load a saved adapter; unlike PEFT, load the network that writes the prompt from a checkpoint.

        Raises:
            AdapterError: training is to resume, and only what the network wrote was saved.
        """
        if adapter_name in self.peft_config and self.peft_config[adapter_name].is_prompt_learning:
            loaded = load_network(self, adapter_name, model_id, is_trainable=is_trainable)
            if loaded is not None:
                return loaded
        return super().load_adapter(model_id, adapter_name, is_trainable, **kwargs)

    @property
    def disabled(self) -> bool:
        """Whether the model is its base model, within `disable_adapter`."""
        return self._adapters_disabled

    def compile_layers(self, **kwargs: Any) -> None:
        """Compile each decoder layer in place with `torch.compile`, for batches of any shape.

        Attention over packed rows stays as it is: its layout is new with every batch. So does generation, whose
        shapes would be compiled one by one.

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
        """Within it compiled layers run as they are, for shapes that would each be compiled anew."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def _tell(self, message: str, *values: Any) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning(message, *values)

    @property
    def way(self) -> ExecutionPath:
        """How the active adapter's batches are run."""
        return execution_path(self.get_base_model(), self.active_peft_config, self.training)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
        adapter_names: Sequence[str] | None = None,
        task_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Loss over the target positions of a batch, padded on either side.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`.
            labels: `[B, T]`, -100 where no loss is wanted; position t is predicted by t - 1.
            num_items_in_batch: what the summed loss is divided by; by default the number of targets here.
            label_smoothing: as in `torch.nn.functional.cross_entropy`.
            adapter_names: for each row the adapter whose prompt stands before it; by default the active one.
            task_ids: `[B]`, each row's task, for multitask prompts. A task's prompt is computed once.

        Returns:
            With labels: `loss`, and `logits` of the target positions alone, `[targets, V]` in the order of the batch.
            Without labels: whatever PEFT's forward returns.
        """
        if "input_type_mask" in kwargs:  # of CPT, which PEFT's forward changes
            kwargs["input_type_mask"] = kwargs["input_type_mask"].clone()
        if labels is None or input_ids is None or not self.active_peft_config.is_prompt_learning:
            kwargs |= self._names_for_peft(adapter_names)
            if labels is not None:
                kwargs |= {"labels": labels, "num_items_in_batch": num_items_in_batch}
            with peft_warnings_ignored():
                return super().forward(input_ids=input_ids, attention_mask=attention_mask, task_ids=task_ids, **kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # A row starts right after the prompt wherever its padding stands.
        attention_mask, input_ids, labels = move_padding("right", attention_mask, input_ids, labels)
        wanted = (labels != -100) & attention_mask.bool()
        wanted[:, 0] = False  # as transformers counts: a row's first token is never a target
        self._tell_window(self.active_peft_config.num_virtual_tokens + input_ids.shape[1])
        way = ExecutionPath("plain", f"{', '.join(kwargs)} given") if kwargs else self.way
        if way.name == "plain" or not wanted.any():
            if adapter_names is not None and way.name == "plain":
                raise AdapterError(f"adapter_names: rows with prompts of their own cannot be run: {way.reason}")
            logits = self._plain_logits(input_ids, attention_mask, wanted, task_ids=task_ids, **kwargs)
        else:
            run = self._packed_logits if way.name == "packed" else self._cache_logits
            logits = run(Batch.of(input_ids, wanted), *self._owners(adapter_names, task_ids, len(input_ids)))
        loss = target_loss(logits, labels[wanted], num_items_in_batch, label_smoothing)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def _names_for_peft(self, adapter_names: Sequence[str] | None) -> dict[str, Any]:
        if adapter_names is None:
            return {}
        if not self.active_peft_config.is_prompt_learning:
            return {"adapter_names": list(adapter_names)}
        if {*adapter_names} != {self.active_adapter}:
            raise AdapterError(
                "adapter_names: without input_ids and labels each row is run behind the active adapter's prompt, "
                f"{self.active_adapter}; give labels, or call generate"
            )
        return {}

    def _plain_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, wanted: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Logits `[targets, V]`, by PEFT's forward."""
        with peft_warnings_ignored():
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        return output.logits[:, -input_ids.shape[1] :][:, :-1][wanted[:, 1:]]

    def _packed_logits(self, batch: Batch, names: list[PromptName], owners: list[int]) -> torch.Tensor:
        """Logits `[targets, V]` that predict the targets of a batch, from one sequence of prompts and rows."""
        if self._prompt_is_cache:
            prompts, prefixes = [], tuple(self._prompt(name) for name in names)
            lengths = [prefix.get_seq_length() for prefix in prefixes]
        else:
            opening = self.word_embeddings(batch.opening)
            prompts, prefixes = [torch.cat([self._prompt(name), opening]) for name in names], ()
            lengths = [len(prompt) for prompt in prompts]
            batch = batch.rest()
        needed = zip(batch.needed.sum(1).tolist(), owners, strict=True)
        rows, owners = zip(*((length, owner) for length, owner in needed if length), strict=True)
        layout = RowLayout(tuple(lengths), rows, owners, prefixes)
        embeds = self.word_embeddings(batch.input_ids[batch.needed])
        embeds = torch.cat([*(prompt.to(embeds.dtype) for prompt in prompts), embeds])[None]
        predicts = batch.predicts[batch.needed]
        output = self.get_base_model()(
            inputs_embeds=embeds,
            position_ids=layout.positions(embeds.device),
            # Four dimensions: the model then makes no mask of its own. The layout says what is visible.
            attention_mask=predicts.new_zeros(1, 1, 1, 1),
            use_cache=False,
            logits_to_keep=F.pad(predicts, (embeds.shape[1] - len(predicts), 0))[None],
            row_layout=layout,
        )
        return output.logits.flatten(0, -2)

    def _cache_logits(self, batch: Batch, names: list[PromptName], owners: list[int]) -> torch.Tensor:
        """Logits `[targets, V]`, from padded rows behind a cache of their prompts."""
        if not self._prompt_is_cache:
            opening, batch = batch.opening, batch.rest()
        else:
            opening = batch.opening[:0]
        cache, mask = join_caches(self._prompt_caches(names, opening))
        rows = torch.tensor(owners, device=mask.device)
        cache.batch_select_indices(rows)
        output = self._base_after(cache, mask[rows], batch.input_ids, batch.needed, batch.predicts)
        return output.logits

    def _base_after(
        self, cache: DynamicCache, mask: torch.Tensor, input_ids: torch.Tensor, real: torch.Tensor, keep: Any
    ) -> Any:
        base = self.get_base_model()
        given = {}
        if "position_ids" in inspect.signature(base.forward).parameters:
            given["position_ids"] = mask.sum(1, keepdim=True) + torch.arange(input_ids.shape[1], device=mask.device)
        return base(
            input_ids=input_ids,
            attention_mask=torch.cat([mask, real.to(mask.dtype)], 1),
            cache=cache,
            use_cache=True,
            logits_to_keep=keep,
            **given,
        )

    def _owners(
        self, adapter_names: Sequence[str] | None, task_ids: torch.Tensor | None, rows: int
    ) -> tuple[list[PromptName], list[int]]:
        """The prompts that a batch uses, and for each row the number of its own."""
        names = [self.active_adapter] * rows if adapter_names is None else adapter_names
        tasks = [None] * rows if task_ids is None else task_ids.tolist()
        for each, what in ((names, "adapter_names: {} names"), (tasks, "task_ids: {} ids")):
            if len(each) != rows:
                raise AdapterError(f"{what.format(len(each))} for {rows} rows; give one for each row")
        for name in dict.fromkeys(names):
            if name not in self.peft_config:
                raise AdapterError(f"adapter {name} is not loaded; there are {', '.join(self.peft_config)}")
        of_rows = [self._prompt_name(name, task) for name, task in zip(names, tasks, strict=True)]
        used = list(dict.fromkeys(of_rows))
        return used, [used.index(name) for name in of_rows]

    def _prompt_name(self, name: str, task: int | None) -> PromptName:
        config = self.peft_config[name]
        if not find_method(config.peft_type).trains_several_tasks:
            return name, None
        if task is None or not 0 <= task < config.num_tasks:
            found = "no task_ids" if task is None else f"task id {task}"
            raise AdapterError(f"{found} for adapter {name}; give each row one from 0 to {config.num_tasks - 1}")
        return name, task

    @property
    def _prompt_is_cache(self) -> bool:
        return find_method(self.active_peft_config.peft_type).trains_keys_and_values

    def _prompt(self, name: PromptName) -> torch.Tensor | DynamicCache:
        """`[P, H]` input embeddings, or for prefix tuning a cache of one row; its encoder or MLP runs once."""
        adapter_name, task = name
        active, self.active_adapter = self.active_adapter, adapter_name
        try:
            task_ids = None if task is None else torch.tensor([task], device=self.word_embeddings.weight.device)
            prompt = self.get_prompt(batch_size=1, task_ids=task_ids)
        finally:
            self.active_adapter = active
        return prompt if self._prompt_is_cache else prompt[0]

    def _prompt_caches(self, names: Sequence[PromptName], opening: torch.Tensor) -> list[DynamicCache]:
        """For each adapter the keys and values of its prompt and of the ids after it, one row of P + S positions."""
        base, caches = self.get_base_model(), []
        for name in names:
            prompt = self._prompt(name)
            if self._prompt_is_cache:
                caches.append(prompt)
                if len(opening):
                    ones = opening.new_ones(1, prompt.get_seq_length())
                    self._base_after(prompt, ones, opening[None], opening.new_ones(1, len(opening)), 1)
                continue
            embeds = self.word_embeddings(opening)
            embeds = torch.cat([prompt.to(embeds.dtype), embeds])[None]
            caches.append(DynamicCache(config=base.config))
            base(inputs_embeds=embeds, cache=caches[-1], use_cache=True, logits_to_keep=1)
        return caches

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
        task_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`generate` of the base model behind the prompt; rows may be padded on either side.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`.
            adapter_names: for each row the adapter whose prompt stands before it; by default the active one.
            task_ids: `[B]`, each row's task, for multitask prompts.

        Returns:
            As the base model's `generate` would for these `input_ids` alone: `[B, T + new]`, without virtual tokens.
        """
        with self.eagerly():
            return self._generate(input_ids, attention_mask, adapter_names, task_ids, **kwargs)

    def _generate(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        adapter_names: Sequence[str] | None,
        task_ids: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        if self.disabled:
            return self.get_base_model().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if input_ids is None or not find_method(self.active_peft_config.peft_type).has_prompt:
            kwargs |= self._names_for_peft(adapter_names)
            return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        base = self.get_base_model()
        if name := uses_own_cache(base, kwargs):
            raise AdapterError(f"generate: {name} knows nothing of the prompt; leave it out")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if bool((attention_mask[:, 1:] < attention_mask[:, :-1]).any()):  # padding after tokens: move it before them
            mask, ids = move_padding("left", attention_mask, input_ids)
            output = self._generate(ids, mask, adapter_names, task_ids, **kwargs)
            return with_sources(output, input_ids, input_ids.shape[1])
        config = base.config.get_text_config()
        names, owners = self._owners(adapter_names, task_ids, len(input_ids))
        longest = max(self.peft_config[name].num_virtual_tokens for name, _ in names)
        kwargs = count_new_tokens(base, input_ids.shape[1], kwargs)
        reach = longest + input_ids.shape[1] + kwargs["max_new_tokens"]
        self._tell_window(reach)
        even = len(names) == 1 and bool(attention_mask.all())
        within = within_window(base, reach)
        if config.model_type in CACHE_ARCHITECTURES and (even or within):
            caches, opening = self._generation_caches(names, input_ids, attention_mask)
            packed = within and self.way.name == "packed"
            return generate_with_cache(base, caches, owners, input_ids, attention_mask, opening, packed, **kwargs)
        # `generate` knows no ids of rows that it is given as embeddings, and could not penalise them.
        blind = setting(base, kwargs, "repetition_penalty", 1.0) == 1.0 and not setting(
            base, kwargs, "no_repeat_ngram_size"
        )
        if config.model_type in CACHE_ARCHITECTURES and len(names) == 1 and not self._prompt_is_cache and blind:
            return generate_from_embeddings(base, self._prompt(names[0]), input_ids, attention_mask, **kwargs)
        return self._generate_one_by_one(input_ids, attention_mask, [names[owner] for owner in owners], **kwargs)

    def prepare_inputs_for_generation(
        self, *args: Any, task_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepare a step of PEFT's `generate`, for transformers 5.24 and later.

        Unlike PEFT 0.21.2, which looks for `past_key_values` where transformers hands over `cache`, misses it and puts
        the prompt before every new token (tests/upstream/test_peft_causal.py).
        """
        prepare = self.base_model_prepare_inputs_for_generation
        self.base_model_prepare_inputs_for_generation = functools.partial(_prepare_under_old_name, prepare)
        try:
            inputs = super().prepare_inputs_for_generation(*args, task_ids=task_ids, **kwargs)
        finally:
            self.base_model_prepare_inputs_for_generation = prepare
        if "past_key_values" in inputs:
            inputs["cache"] = inputs.pop("past_key_values")
        return inputs

    def packed_caches(self, rows: Sequence[Sequence[int]], reach: int) -> tuple[list[DynamicCache], int] | None:
        """The active prompt's cache, and how many ids that open every row are in it; None if no rows can be packed.

        Args:
            rows: token ids.
            reach: the most positions that a row and what follows it take.
        """
        within = within_window(self.get_base_model(), self.active_peft_config.num_virtual_tokens + reach)
        if self.disabled or self.way.name != "packed" or not within:
            return None
        batch = {name: each.to(self.word_embeddings.weight.device) for name, each in pad_left(rows, 0).items()}
        names, _ = self._owners(None, None, len(rows))
        caches, opening = self._generation_caches(names, **batch)
        return caches, len(opening)

    def _generation_caches(
        self, names: list[PromptName], input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[list[DynamicCache], torch.Tensor]:
        """The kept cache, if its ids open every row, else those for this batch; and those ids."""
        opening = self._opening
        if opening is not None and len(names) == 1 and start_with(input_ids, attention_mask, opening):
            if names[0] not in self._kept:
                self._kept[names[0]] = self._prompt_caches(names, opening)
            return self._kept[names[0]], opening
        none = input_ids.new_empty(0)
        return self._prompt_caches(names, none), none

    def _generate_one_by_one(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, names: Sequence[PromptName], **kwargs: Any
    ) -> Any:
        """Each row alone and unpadded, which PEFT gets right; of several rows ids alone, whatever was asked for."""
        if len(input_ids) > 1:
            self._tell("Rows are generated one at a time: %s.", self.way.reason or "they pass the sliding window")
        pad = setting(self.get_base_model(), kwargs, "pad_token_id", 0)
        known = self.get_base_model().config.get_text_config().model_type in CACHE_ARCHITECTURES
        # PEFT looks for a cache of keys: without one it puts an embedded prompt before each new token, which is right
        # for a state that is not kept, and breaks on a prefix.
        kwargs["use_cache"] = not self.get_base_model()._is_stateful
        criteria = kwargs.pop("stopping_criteria", None) or ()
        allowed = kwargs.pop("prefix_allowed_tokens_fn", None)
        written, active, rows = [], self.active_adapter, zip(input_ids, attention_mask.bool(), names, strict=True)
        for number, (ids, mask, (name, task)) in enumerate(rows):
            row = ids[mask][None]
            of_row = {} if task is None else {"task_ids": row.new_tensor([task])}
            if criteria:  # each row's own, since they may keep where it starts
                of_row["stopping_criteria"] = StoppingCriteriaList(map(copy.copy, criteria))
            if allowed:
                of_row["prefix_allowed_tokens_fn"] = functools.partial(_of_row, allowed, number)
            self.active_adapter = name
            try:
                with peft_warnings_ignored():
                    output = (self if known else super()).generate(
                        input_ids=row, attention_mask=row.new_ones(row.shape), **of_row, **kwargs
                    )
            finally:
                self.active_adapter = active
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            written += [sequence[row.shape[1] :] for sequence in sequences]
        if len(input_ids) == 1:
            return with_sources(output, input_ids, row.shape[1])
        new = torch.nn.utils.rnn.pad_sequence(written, batch_first=True, padding_value=pad)
        return with_sources(new, input_ids, 0)

    def _tell_window(self, length: int) -> None:
        """Say once that sequences of this length, prompt included, reach beyond a sliding window or rotary length."""
        config = self.get_base_model().config.get_text_config()
        window = sliding_window(config)
        if window and length > window:
            types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
            virtual = self.active_peft_config.num_virtual_tokens
            self._tell(
                "%s of %s layers see only the last %s positions and sequences here have up to %s: from position %s on "
                "a token no longer sees the first virtual token in them, from %s on none.",
                types.count("sliding_attention"), len(types), window, length, window, window + virtual - 1,
            )  # fmt: skip
        rope = getattr(config, "rope_parameters", None) or {}
        known = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", length)
        if rope.get("rope_type") in LENGTH_DEPENDENT and length > known:
            self._tell(
                "%s rotary positions change for sequences beyond %s positions, and those here have up to %s: a row "
                "then depends on the longest one of its batch; set per_device_eval_batch_size and "
                "per_device_train_batch_size to 1, or keep them shorter.", rope["rope_type"], known, length,
            )  # fmt: skip


def _of_row(allowed: Callable[[int, torch.Tensor], list[int]], number: int, _: int, ids: torch.Tensor) -> list[int]:
    return allowed(number, ids)


def _prepare_under_old_name(prepare: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    inputs = prepare(*args, **kwargs)
    if "cache" in inputs:
        inputs["past_key_values"] = inputs.pop("cache")
    return inputs


@contextmanager
def peft_warnings_ignored() -> Iterator[None]:
    """Ignore what PEFT's own forward and `generate` warn of, and what is no trouble here, within the context."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
        # Rows are unpadded, so the positions that PEFT falls back to are the true ones.
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
        yield


@contextmanager
def compute_prompt_once(model: torch.nn.Module, opening: Sequence[int] = ()) -> Iterator[None]:
    """Within it, `generate` keeps one cache of the prompt and of these ids, for batches whose rows open with them.

    The prompt must not be trained meanwhile. Nothing happens to models other than a SharedPrefixModel.
    """
    if not isinstance(model, SharedPrefixModel):
        yield
        return
    model._opening = torch.tensor(list(opening), dtype=torch.long, device=model.get_base_model().device)
    try:
        yield
    finally:
        model._opening, model._kept = None, {}


def target_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross entropy of logits `[targets, V]`, summed and divided by num_items_in_batch, else by their number."""
    total = F.cross_entropy(
        logits.float(), targets, reduction="sum", ignore_index=-100, label_smoothing=label_smoothing
    )
    return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)
