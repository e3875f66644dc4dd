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
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import move_padding, pad_left
from prompt_tuning.engine.attention import Batch, RowLayout
from prompt_tuning.engine.dispatch import CACHE_ARCHITECTURES, ExecutionPath, within_window
from prompt_tuning.engine.generation import (
    count_new_tokens,
    generate_from_embeddings,
    generate_with_cache,
    reads_ids,
    uses_own_cache,
    with_sources,
)
from prompt_tuning.engine.kv_cache import join_caches
from prompt_tuning.engine.peft_generation import generate_row_by_row, peft_warnings_ignored
from prompt_tuning.engine.prompt_model import PromptModel
from prompt_tuning.engine.prompt_names import PromptName
from prompt_tuning.errors import AdapterError


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
        labels: torch.Tensor | None = None,
        *,
        num_items_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
        adapter_names: Sequence[str] | None = None,
        task_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute the loss over the target positions of a batch, padded on either side.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`.
            labels: `[B, T]`, -100 for positions without a loss; position t is predicted by t - 1.
            num_items_in_batch: the divisor of the summed loss; by default the number of targets here.
            label_smoothing: as in `torch.nn.functional.cross_entropy`.
            adapter_names: for each row the adapter whose prompt stands before it; by default the active one.
            task_ids: `[B]`, the task of each row, for multitask prompts. The prompt of a task is computed once.
            **kwargs: as for PEFT's forward, which any of them makes the one that runs.

        Returns:
            With labels: `loss`, and `logits` only of the target positions, `[targets, V]` in the order of the batch.
            Without labels: what PEFT's forward returns.

        Raises:
            AdapterError: rows with different adapters cannot be run, or names or tasks are wrong.
        """
        if "input_type_mask" in kwargs:  # CPT has one, and PEFT's forward changes it in place.
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
        is_target = (labels != -100) & attention_mask.bool()
        is_target[:, 0] = False  # A row's first token is never a target, as transformers counts.
        self._log_limits(self.active_peft_config.num_virtual_tokens + input_ids.shape[1])
        path = ExecutionPath("plain", f"{', '.join(kwargs)} given") if kwargs else self.execution_path
        if path.name == "plain" or not is_target.any():
            if adapter_names is not None and path.name == "plain":
                raise AdapterError(f"adapter_names: rows with prompts of their own cannot be run: {path.reason}")
            logits = self._plain_logits(input_ids, attention_mask, is_target, task_ids=task_ids, **kwargs)
        else:
            compute = self._packed_logits if path.name == "packed" else self._cache_logits
            names, prompt_index = self._index_prompts(adapter_names, task_ids, len(input_ids))
            logits = compute(Batch.from_targets(input_ids, is_target), names, prompt_index)
        loss = target_loss(logits, labels[is_target], num_items_in_batch, label_smoothing)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

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

    def _plain_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, is_target: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits `[targets, V]` of a right-padded batch `[B, T]`, by PEFT's forward."""
        with peft_warnings_ignored():
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        return output.logits[:, -input_ids.shape[1] :][:, :-1][is_target[:, 1:]]

    def _packed_logits(self, batch: Batch, names: list[PromptName], prompt_index: list[int]) -> torch.Tensor:
        """Return the logits `[targets, V]` of a batch from one sequence `[1, P + N, H]` of prompts and rows."""
        prompts: list[torch.Tensor] = []
        prefixes: list[DynamicCache] = []
        if self._prompt_is_cache:
            prefixes = [self._prompt(name) for name in names]
            lengths = [prefix.get_seq_length() for prefix in prefixes]
        else:
            common_prefix = self.word_embeddings(batch.common_prefix)
            prompts = [torch.cat([self._prompt(name), common_prefix]) for name in names]
            lengths = [len(prompt) for prompt in prompts]
            batch = batch.rest()
        row_lengths = batch.needed.sum(1).tolist()
        rows = [number for number, length in enumerate(row_lengths) if length]
        layout = RowLayout(
            prompts=tuple(lengths),
            rows=tuple(row_lengths[number] for number in rows),
            prompt_index=tuple(prompt_index[number] for number in rows),
            prefixes=tuple(prefixes),
        )
        embeds = self.word_embeddings(batch.input_ids[batch.needed])
        embeds = torch.cat([*(prompt.to(embeds.dtype) for prompt in prompts), embeds])[None]
        predicts = batch.predicts[batch.needed]
        output = self.get_base_model()(
            inputs_embeds=embeds,
            position_ids=layout.positions(embeds.device),
            # With four dimensions the model makes no mask of its own: the layout says what is visible.
            attention_mask=predicts.new_zeros(1, 1, 1, 1),
            use_cache=False,
            logits_to_keep=F.pad(predicts, (embeds.shape[1] - len(predicts), 0))[None],
            row_layout=layout,
        )
        return output.logits.flatten(0, -2)

    def _cache_logits(self, batch: Batch, names: list[PromptName], prompt_index: list[int]) -> torch.Tensor:
        """Return the logits `[targets, V]` of a batch from padded rows behind a cache of their prompts."""
        if self._prompt_is_cache:
            common_prefix = batch.common_prefix[:0]
        else:
            common_prefix = batch.common_prefix
            batch = batch.rest()
        cache, mask = join_caches(self._prompt_caches(names, common_prefix))
        rows = torch.tensor(prompt_index, device=mask.device)
        cache.batch_select_indices(rows)
        mask = torch.cat([mask[rows], batch.needed.to(mask.dtype)], 1)
        return self._run_after_cache(cache, mask, batch.input_ids, batch.predicts).logits

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
        task_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call `generate` of the base model behind the prompt; rows may be padded on either side.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`.
            adapter_names: for each row the adapter whose prompt stands before it; by default the active one.
            task_ids: `[B]`, the task of each row, for multitask prompts.
            **kwargs: as for the base model's `generate`.

        Returns:
            What the base model's `generate` would for these `input_ids`: `[B, T + new]`, without virtual tokens.

        Raises:
            AdapterError: an argument brings its own cache, or names or tasks are wrong.
        """
        with self.eagerly():
            if self.disabled:
                return self.get_base_model().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            if input_ids is None or not find_method(self.active_peft_config.peft_type).has_prompt:
                kwargs |= self._names_for_peft(adapter_names)
                return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            own_cache = uses_own_cache(self.get_base_model(), kwargs)
            if own_cache:
                raise AdapterError(f"generate: {own_cache} knows nothing of the prompt; leave it out")
            names, prompt_index = self._index_prompts(adapter_names, task_ids, len(input_ids))
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
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
        takes_cache = base.config.get_text_config().model_type in CACHE_ARCHITECTURES
        if takes_cache and (even or within):
            caches, common_prefix = self._generation_caches(names, input_ids, attention_mask)
            return generate_with_cache(
                base,
                caches,
                prompt_index,
                input_ids,
                attention_mask,
                common_prefix=common_prefix,
                packed=within and self.execution_path.name == "packed",
                **kwargs,
            )
        # `generate` does not have the ids of rows that it takes as embeddings, and could not penalise them.
        if takes_cache and len(names) == 1 and not self._prompt_is_cache and not reads_ids(base, kwargs):
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
        takes_cache = base.config.get_text_config().model_type in CACHE_ARCHITECTURES
        generate = self.generate if takes_cache else super().generate

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


def target_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the cross entropy of logits `[targets, V]`, divided by num_items_in_batch or else their number."""
    total = F.cross_entropy(
        logits.float(), targets, reduction="sum", ignore_index=-100, label_smoothing=label_smoothing
    )
    return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)
