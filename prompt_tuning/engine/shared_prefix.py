"""The engine as a PEFT model: what all rows share is computed once, and padding changes nothing.

In a causal model the hidden states of the soft prompt depend only on the prompt. PEFT prepends it to each row,
computes it B times, and makes logits for every position. Here a training step runs one sequence [prompt, row 1, row 2,
...] of shape `[1, P + N, H]`, where N is the number of tokens that a target follows. No row is padded in any linear
layer, and rows meet only inside attention (attention.py). Tokens that open every row of the batch join the prompt, and
logits are made only for target positions. Generation computes the prompt's keys and values once. It hands them to
`generate` as a cache, with a mask that gives every row its true positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import move_padding, pad_left
from prompt_tuning.engine.activations import recomputed_activations
from prompt_tuning.engine.calls import (
    arguments_with_labels,
    check_generate_arguments,
    check_positions,
    forward_rows,
    full_mask,
    further_arguments,
    generate_arguments,
)
from prompt_tuning.engine.dispatch import ExecutionPath, has_tested_cache, within_window
from prompt_tuning.engine.generation import (
    count_new_tokens,
    generate_from_embeddings,
    generate_with_cache,
    takes_embeddings,
    with_sources,
)
from prompt_tuning.engine.peft_generation import generate_row_by_row, peft_warnings_ignored
from prompt_tuning.engine.places import put_back, rows_first, select, starts_with_padding
from prompt_tuning.engine.prompt_model import PromptModel
from prompt_tuning.engine.prompt_names import PromptName
from prompt_tuning.engine.target_batch import Batch, target_loss
from prompt_tuning.errors import AdapterError

NO_CACHE = "Call generate, or run the rows again with their new tokens."


class SharedPrefixModel(PromptModel):
    """`PeftModelForCausalLM` whose soft prompt is computed once for a batch.

    The parameters, the files and the mathematics are those of the base class. It falls back to the base class for what
    it does not cover, and says so once in the log. Build it like the base class:
    `SharedPrefixModel(base_model, peft_config)`.
    """

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        num_items_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
        adapter_names: Sequence[str] | None = None,
        task_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Compute the loss over the target positions of a batch, padded on either side.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`; by default every token counts.
            *args: the other arguments in the order of the base model's forward, which differs from PEFT's.
            num_items_in_batch: the divisor of the summed loss; by default the number of targets here.
            label_smoothing: as in `torch.nn.functional.cross_entropy`.
            adapter_names: for each row the adapter whose prompt stands before it; by default the active one.
            task_ids: `[B]`, or `[1]` for all rows: the task, for multitask prompts. Its prompt is computed once.
            **kwargs: as for the base model's forward. `labels` `[B, T]` are -100 for positions without a loss, and
                position t is predicted by t - 1; a row's first token never counts. Any other argument makes PEFT's
                forward run. A `cache` that this forward returned holds the prompt, and the rows continue behind it.

        Returns:
            With labels: `loss`, and `logits` only of the target positions, `[targets, V]` in the order of the batch.
            Without labels: what PEFT's forward returns for rows alone, `[B, P + T, ...]` with the caller's padding.

        Raises:
            AdapterError: rows with different adapters cannot be run, an argument does not hold behind a prompt, or the
                mask, a name or a task is wrong.
        """
        kwargs = further_arguments(self.get_base_model().forward, args, kwargs)
        labels = kwargs.pop("labels", None)
        if not self.active_peft_config.is_prompt_learning:
            kwargs |= self._names_for_peft(adapter_names)
            if labels is not None:
                kwargs |= {"labels": labels, "num_items_in_batch": num_items_in_batch}
            with peft_warnings_ignored():
                return super().forward(input_ids=input_ids, attention_mask=attention_mask, task_ids=task_ids, **kwargs)
        as_dictionary = kwargs.pop("return_dict", True)
        rows = forward_rows(input_ids, kwargs.pop("inputs_embeds", None))
        with self.trained_tokens(adapter_names):
            if labels is None:
                kwargs |= self._names_for_peft(adapter_names)
                output = self._forward_to_all(rows, attention_mask, task_ids=task_ids, **kwargs)
            else:
                arguments: dict[str, Any] = {"adapter_names": adapter_names, "task_ids": task_ids}
                arguments |= {"num_items_in_batch": num_items_in_batch, "label_smoothing": label_smoothing}
                # A compiled layer decides by itself what it keeps.
                with nullcontext() if self._compiled else recomputed_activations():
                    output = self._forward_to_targets(rows, attention_mask, labels.long(), **arguments, **kwargs)
        return output if as_dictionary else output.to_tuple()

    def _forward_to_targets(
        self,
        rows: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor,
        *,
        num_items_in_batch: torch.Tensor | int | None,
        label_smoothing: float,
        adapter_names: Sequence[str] | None,
        task_ids: torch.Tensor | None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the loss, and the logits `[targets, V]` of a batch `[B, T]` or `[B, T, H]`."""
        mask = full_mask(rows, attention_mask)
        check_positions(kwargs.pop("position_ids", None), mask)
        device = rows.device
        # What decides how a batch is run is read on the CPU: these copies are the only wait for the device.
        mask, labels = mask.cpu(), labels.cpu()
        kwargs = arguments_with_labels(kwargs, labels, mask)
        padded_left = starts_with_padding(mask)
        # A row starts right after the prompt wherever its padding stands.
        order = rows_first(mask)
        mask, labels = select(mask, order), select(labels, order)
        if "fused_lm_head" in kwargs:  # TRL's forward of the base model takes labels, and returns fields of its own.
            rows, mask, labels = select(rows, order.to(device)), mask.to(device), labels.to(device)
            return self._peft_forward(rows, mask, labels=labels, task_ids=task_ids, **kwargs)
        is_target = (labels != -100) & mask.bool()
        is_target[:, 0] = False  # A row's first token is never a target, as transformers counts.
        self._log_limits(self.active_peft_config.num_virtual_tokens + rows.shape[1])
        path = self.execution_path
        if kwargs or rows.dim() > 2:
            path = ExecutionPath("plain", f"{', '.join(kwargs) or 'inputs_embeds'} given")
        output = CausalLMOutputWithPast()
        if path.name == "plain" or rows.shape[1] == 1:
            if adapter_names is not None and path.name == "plain":
                raise AdapterError(f"adapter_names: rows with prompts of their own cannot be run: {path.reason}")
            order = order.to(device)
            whole = self._peft_forward(select(rows, order), mask.to(device), task_ids=task_ids, **kwargs)
            logits = whole.logits[:, -rows.shape[1] :][:, :-1][is_target[:, 1:].to(device)]
            if kwargs:
                output = put_back(whole, order) if padded_left else whole
        else:
            compute = self._packed_logits if path.name == "packed" else self._cache_logits
            names, prompt_index = self._index_prompts(adapter_names, task_ids, len(rows))
            ids = self._table_ids(rows.cpu(), names, prompt_index)
            batch = Batch.from_targets(select(ids, order), is_target)
            logits = compute(batch, names, prompt_index)[: is_target.sum()]
        loss = target_loss(logits, labels[is_target].to(logits.device), num_items_in_batch, label_smoothing)
        returned = {name: value for name, value in output.items() if name != "cache"}
        return type(output)(**returned | {"loss": loss, "logits": logits})

    def _forward_to_all(
        self,
        rows: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        cache: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        logits_to_keep: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return PEFT's output for rows `[B, T]` or `[B, T, H]`, each as if it were alone."""
        base = self.get_base_model()
        prompt = self.active_peft_config.num_virtual_tokens
        length = 0 if cache is None else cache.get_seq_length()
        mask = full_mask(rows, attention_mask, max(length - prompt, 0))
        check_positions(position_ids, mask)
        reach = prompt + mask.shape[1]
        is_tested = has_tested_cache(base)
        keeps_places = is_tested and (within_window(base, reach) or bool(mask.all()))
        if length:
            kwargs.pop("task_ids", None)  # The prompt is in the cache already.
            if not keeps_places or rows.dim() > 2:
                raise AdapterError(f"forward: these rows cannot continue behind a cache. {NO_CACHE}")
            mask = F.pad(mask, (length + rows.shape[1] - mask.shape[1], 0), value=1)
            return self._run_after_cache(cache, mask, rows, 0 if logits_to_keep is None else logits_to_keep, **kwargs)
        if cache is not None and self._prompt_is_cache:
            raise AdapterError("forward: an empty cache cannot take a trained prefix. Set use_cache=True instead.")
        self._log_limits(reach)
        if not starts_with_padding(mask):
            return self._peft_forward(rows, mask, cache=cache, logits_to_keep=logits_to_keep, **kwargs)
        keeps_cache = cache is not None or kwargs.get("use_cache", False)
        if keeps_cache and not keeps_places:
            raise AdapterError(f"forward: no cache can be kept of rows with padding before their tokens. {NO_CACHE}")
        order = rows_first(mask)
        output = self._peft_forward(select(rows, order), select(mask, order), cache=cache, **kwargs)
        output = put_back(output, order, with_cache=keeps_cache)
        if logits_to_keep is None:
            return output
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return type(output)(**dict(output) | {"logits": output.logits[:, kept]})

    def _peft_forward(self, rows: torch.Tensor, mask: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        """Call PEFT's forward for rows `[B, T]` or `[B, T, H]` that have no padding before their tokens."""
        self._check_prefix_is_read()
        name = "input_ids" if rows.dim() == 2 else "inputs_embeds"
        arguments = {argument: value for argument, value in kwargs.items() if value is not None}
        if self._table is not None and rows.dim() == 2 and not self._prompt_is_cache:
            # PEFT itself embeds ids behind a soft prompt.
            prompt = self._table.prompt_columns(self.active_adapter, self.active_peft_config.num_virtual_tokens)
            columns = torch.cat([prompt.expand(len(rows), -1), self._table.columns(rows)], 1)
            arguments |= self._table.layer_arguments(columns)
            rows, name = self.embed(rows), "inputs_embeds"
        with peft_warnings_ignored():
            return super().forward(**{name: rows}, attention_mask=mask, return_dict=True, **arguments)

    def _names_for_peft(self, adapter_names: Sequence[str] | None) -> dict[str, Any]:
        """Return PEFT's argument for the adapters of rows, which it does not have for prompts."""
        if adapter_names is None:
            return {}
        if not self.active_peft_config.is_prompt_learning:
            return {"adapter_names": list(adapter_names)}
        if set(adapter_names) != {self.active_adapter}:
            raise AdapterError(
                "adapter_names: without input_ids and labels each row is run behind the active adapter's prompt, "
                f"{self.active_adapter}; give labels, or call generate"
            )
        return {}

    @torch.no_grad()
    def generate(
        self,
        *args: Any,
        adapter_names: Sequence[str] | None = None,
        task_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call `generate` of the base model behind the prompt; rows may be padded on either side.

        Args:
            *args: as for the base model's `generate`, in its order.
            adapter_names: for each row the adapter whose prompt stands before it; by default the active one.
            task_ids: `[B]`, or `[1]` for all rows: the task, for multitask prompts.
            **kwargs: as for the base model's `generate`: `inputs` or `input_ids` `[B, T]`, `attention_mask` `[B, T]`,
                which is by default 0 for padding tokens, and settings.

        Returns:
            What the base model's `generate` would for these ids: `[B, T + new]`, without virtual tokens. A dictionary
            has no cache.

        Raises:
            AdapterError: an argument or a setting does not hold behind a prompt, a row has no token, or the mask, a
                name or a task is wrong.
        """
        base = self.get_base_model()
        with self.eagerly():
            if self.disabled:
                return base.generate(*args, **kwargs)
            if not find_method(self.active_peft_config.peft_type).has_prompt:
                return super().generate(*args, **kwargs, **self._names_for_peft(adapter_names))
            kwargs = generate_arguments(base, args, kwargs)
            check_generate_arguments(base, kwargs)
            input_ids = kwargs.pop("input_ids")
            attention_mask = kwargs.pop("attention_mask")
            names, prompt_index = self._index_prompts(adapter_names, task_ids, len(input_ids))
            if not bool((attention_mask[:, 1:] < attention_mask[:, :-1]).any()):
                return self._generate_left_padded(input_ids, attention_mask, names, prompt_index, **kwargs)
            # Padding stands after tokens, and is moved before them.
            mask, ids = move_padding("left", attention_mask, input_ids)
            output = self._generate_left_padded(ids, mask, names, prompt_index, **kwargs)
            return with_sources(output, input_ids, input_ids.shape[1])

    def _generate_left_padded(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        names: list[PromptName],
        prompt_index: list[int],
        **kwargs: Any,
    ) -> Any:
        """Generate from left-padded rows `[B, T]` by the fastest way that is exact."""
        base = self.get_base_model()
        longest = max(self.peft_config[name.adapter].num_virtual_tokens for name in names)
        kwargs = count_new_tokens(base, input_ids.shape[1], kwargs)
        reach = longest + input_ids.shape[1] + kwargs["max_new_tokens"]
        self._log_limits(reach)
        even = len(names) == 1 and bool(attention_mask.all())
        within = within_window(base, reach)
        takes_cache = has_tested_cache(base)
        with self.trained_tokens([name.adapter for name in names]):
            if takes_cache and (even or within):
                ids = self._table_ids(input_ids, names, prompt_index)
                caches, common_prefix = self._generation_caches(names, ids, attention_mask)
                output = generate_with_cache(
                    base,
                    caches,
                    prompt_index,
                    ids,
                    attention_mask,
                    common_prefix=common_prefix,
                    packed=within and self.execution_path.name == "packed",
                    table=self._table,
                    **kwargs,
                )
                return output if ids is input_ids else with_sources(output, input_ids, input_ids.shape[1])
            with_ids = self._table is not None
        # `generate` does not have the ids of rows that it takes as embeddings, and could not penalise them.
        as_embeddings = takes_cache and len(names) == 1 and not self._prompt_is_cache and not with_ids
        if as_embeddings and takes_embeddings(base, kwargs):
            return generate_from_embeddings(base, self._prompt(names[0]), input_ids, attention_mask, **kwargs)
        return self._generate_row_by_row(input_ids, attention_mask, names, prompt_index, **kwargs)

    def _generate_row_by_row(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        names: list[PromptName],
        prompt_index: list[int],
        **kwargs: Any,
    ) -> Any:
        base = self.get_base_model()
        if len(input_ids) > 1:
            reason = self.execution_path.reason or "they pass the sliding window"
            self._log_once("Rows are generated one at a time: %s.", reason)
        generate = self.generate if has_tested_cache(base) else super().generate

        def generate_row(number: int, **settings: Any) -> Any:
            name = names[prompt_index[number]]
            if name.task is not None:
                settings["task_ids"] = settings["input_ids"].new_tensor([name.task])
            with self._adapter_active(name.adapter):
                return generate(**settings)

        return generate_row_by_row(generate_row, base, input_ids, attention_mask, **kwargs)

    def packed_caches(self, rows: Sequence[Sequence[int]], reach: int) -> tuple[list[DynamicCache], int] | None:
        """Return the active prompt's cache and how many ids of every row it holds; None if rows cannot be packed.

        Args:
            rows: token ids.
            reach: the most positions that a row and what follows it take.
        """
        within = within_window(self.get_base_model(), self.active_peft_config.num_virtual_tokens + reach)
        if self.disabled or self.execution_path.name != "packed" or not within:
            return None
        device = self.word_embeddings.weight.device
        batch = {name: tensor.to(device) for name, tensor in pad_left(rows, 0).items()}
        names, _ = self._index_prompts(None, None, len(rows))
        caches, common_prefix = self._generation_caches(names, **batch)
        return caches, len(common_prefix)


def compute_prompt_once(model: torch.nn.Module, common_prefix: Sequence[int] = ()) -> AbstractContextManager[None]:
    """Return a context in which `generate` keeps one cache of the prompt and of the ids that open every row.

    The prompt must not be trained meanwhile. A model other than a SharedPrefixModel is left as it is.
    """
    return model.keep_prompt_cache(common_prefix) if isinstance(model, SharedPrefixModel) else nullcontext()


def reuse_prompts(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Return a context in which `generate` takes the prompts' caches of the last such context, if nothing changed.

    A model other than a SharedPrefixModel is left as it is.
    """
    return model.reuse_prompt_caches() if isinstance(model, SharedPrefixModel) else nullcontext()
