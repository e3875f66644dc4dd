"""The exact engine: what all rows share is computed once, and padding changes nothing.

In a causal model the hidden states of the soft prompt depend on the prompt alone. PEFT prepends it to each row and
computes it B times, with logits for every position. Here a training step runs one sequence [prompt, row 1, row 2,
...] of shape `[1, P + N, H]`, N the number of real tokens: no row is padded in any linear layer, rows meet only
inside attention, where each sees the prompt and itself, and logits are made for target positions alone. Generation
computes the prompt's keys and values once and hands them to `generate` as a cache, with a mask that gives every row
its true positions.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModelForCausalLM
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

logger = logging.getLogger(__name__)

ATTENTION = "shared_prefix"


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of a packed sequence stand.

    Args:
        prompt_length: P.
        real: `[B, T]`, True where a right-padded batch has a token.
        index: `[B, T]`, position of each token among the N real ones; 0 for padding.
    """

    prompt_length: int
    real: torch.Tensor
    index: torch.Tensor

    @classmethod
    def from_mask(cls, attention_mask: torch.Tensor, prompt_length: int) -> RowLayout:
        real = attention_mask.bool()
        index = torch.zeros_like(attention_mask, dtype=torch.long)
        index[real] = torch.arange(int(real.sum()), device=real.device)
        return cls(prompt_length, real, index)

    def visible(self, window: int | None) -> torch.Tensor:
        """`[T, P + T]`: a token sees the prompt, and its row up to itself, as far as a sliding window reaches."""
        steps = torch.arange(self.real.shape[1], device=self.real.device)
        query = steps[:, None] + self.prompt_length
        key = torch.arange(self.prompt_length + len(steps), device=self.real.device)[None]
        seen = key <= query
        return seen & (query - key < window) if window else seen


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    row_layout: RowLayout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a packed sequence: query `[1, heads, P + N, D]`, key and value the same with their own heads.

    Without a layout, transformers' own sdpa attention.
    """
    if row_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.shape[1] != key.shape[1]
    start, rows = row_layout.prompt_length, row_layout.real.shape[0]
    dropout = kwargs.get("dropout", 0.0)
    prompt_query, prompt_key, prompt_value = (states[:, :, :start] for states in (query, key, value))
    prompt_mask = row_layout_prompt_mask(start, sliding_window, query.device)
    prompt = F.scaled_dot_product_attention(
        prompt_query,
        prompt_key,
        prompt_value,
        attn_mask=prompt_mask,
        is_causal=prompt_mask is None,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=grouped,
    )
    # [1, heads, N, D] -> [B, heads, T, D]
    query, key, value = (states[0, :, start:][:, row_layout.index].transpose(0, 1) for states in (query, key, value))
    attended = F.scaled_dot_product_attention(
        query,
        torch.cat([prompt_key.expand(rows, -1, -1, -1), key], 2),
        torch.cat([prompt_value.expand(rows, -1, -1, -1), value], 2),
        attn_mask=row_layout.visible(sliding_window),
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=grouped,
    )
    return torch.cat([prompt.transpose(1, 2), attended.transpose(1, 2)[row_layout.real][None]], 1), None


def row_layout_prompt_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """`[P, P]` for a window shorter than the prompt, else None: plain causal attention."""
    if not window or window >= length:
        return None
    steps = torch.arange(length, device=device)
    distance = steps[:, None] - steps[None]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class SharedPrefixModel(PeftModelForCausalLM):
    """`PeftModelForCausalLM` whose soft prompt is computed once for a batch.

    The same parameters, the same files and the same mathematics as its base class, which it falls back to for what it
    does not cover, saying so once in the log. Built like it: `SharedPrefixModel(base_model, peft_config)`.
    """

    def __init__(self, model: torch.nn.Module, peft_config: Any, adapter_name: str = "default", **kwargs: Any) -> None:
        super().__init__(model, peft_config, adapter_name, **kwargs)
        if self.not_packed is None:
            model.set_attn_implementation(ATTENTION)
        else:
            logger.warning("The soft prompt is computed for each row, by PEFT's own forward: %s.", self.not_packed)

    @cached_property
    def not_packed(self) -> str | None:
        """Why this model cannot be run on a packed sequence, or None if it can."""
        base, config = self.get_base_model(), self.get_base_model().config.get_text_config()
        if not self.active_peft_config.is_prompt_learning or self.active_peft_config.peft_type not in SHARED_METHODS:
            return f"the method {self.active_peft_config.peft_type.value} has no shared input embeddings"
        if not base._supports_attention_backend or config._attn_implementation not in ("sdpa", ATTENTION):
            return f"{type(base).__name__} runs {config._attn_implementation} attention, not a replaceable sdpa"
        if config.model_type not in PACKED_ARCHITECTURES:
            return f"{config.model_type} has not been shown to be exact on packed rows"
        if "logits_to_keep" not in inspect.signature(base.forward).parameters:
            return f"{type(base).__name__} cannot leave logits out (no logits_to_keep)"
        return None

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Loss over the target positions of a batch, padded on either side.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`.
            labels: `[B, T]`, -100 where no loss is wanted; position t is predicted by t - 1.
            num_items_in_batch: what the summed loss is divided by; by default the number of targets here.
            label_smoothing: as in `torch.nn.functional.cross_entropy`.

        Returns:
            With labels: `loss`, and `logits` of the target positions alone, `[targets, V]` in the order of the batch.
            Without labels: whatever PEFT's forward returns.
        """
        if labels is None or input_ids is None or not self.active_peft_config.is_prompt_learning:
            if labels is not None:
                kwargs |= {"labels": labels, "num_items_in_batch": num_items_in_batch}
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # A row starts right after the prompt wherever its padding stands.
        order = attention_mask.argsort(dim=1, descending=True, stable=True)
        input_ids, attention_mask, labels = (each.gather(1, order) for each in (input_ids, attention_mask, labels))
        wanted = (labels != -100) & attention_mask.bool()
        wanted[:, 0] = False  # as transformers counts: a row's first token is never a target
        if self.not_packed is None and not kwargs:
            logits = self._packed_logits(input_ids, attention_mask, wanted)
        else:
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            logits = output.logits[:, -input_ids.shape[1] :][:, :-1][wanted[:, 1:]]
        loss = target_loss(logits, labels[wanted], num_items_in_batch, label_smoothing)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def _packed_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """Logits `[targets, V]` that predict the tokens at `wanted`."""
        prompt = self.get_prompt(batch_size=1)
        length = prompt.shape[1]
        layout = RowLayout.from_mask(attention_mask, length)
        embeds = self.word_embeddings(input_ids[layout.real])[None]
        steps = torch.arange(length + input_ids.shape[1], device=input_ids.device)
        row_steps = (attention_mask.cumsum(1) - 1 + length)[layout.real]
        output = self.get_base_model()(
            inputs_embeds=torch.cat([prompt.to(embeds.dtype), embeds], 1),
            position_ids=torch.cat([steps[:length], row_steps])[None],
            # Four dimensions: the model then makes no mask of its own. The layout says what is visible.
            attention_mask=steps.new_zeros(1, 1, 1, 1),
            use_cache=False,
            logits_to_keep=length + layout.index[wanted] - 1,
            row_layout=layout,
        )
        return output.logits[0]

    def generate(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ):
        """`generate` of the base model behind the soft prompt; rows may be padded left.

        Args:
            input_ids: `[B, T]`, padded on the left.
            attention_mask: `[B, T]`.

        Returns:
            As the base model's `generate` would for these `input_ids` alone: `[B, T + new]`, without virtual tokens.
        """
        config = self.active_peft_config
        if input_ids is None or not config.is_prompt_learning or config.peft_type not in SHARED_METHODS:
            return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        base, length = self.get_base_model(), config.num_virtual_tokens
        if getattr(base.config.get_text_config(), "sliding_window", None):
            return self._generate_from_embeddings(input_ids, attention_mask, **kwargs)
        generation_config = kwargs.get("generation_config") or base.generation_config
        beams = kwargs.get("num_beams") or generation_config.num_beams or 1
        returned = kwargs.get("num_return_sequences") or generation_config.num_return_sequences or 1
        if kwargs.get("max_length"):
            kwargs["max_length"] += length
        rows = len(input_ids)
        output = base.generate(
            # The virtual tokens' ids are never embedded: their keys and values are in the cache.
            input_ids=torch.cat([input_ids[:, :1].expand(rows, length), input_ids], 1),
            attention_mask=torch.cat([attention_mask.new_ones(rows, length), attention_mask], 1),
            past_key_values=self._prompt_cache(rows * max(beams, returned)),
            **kwargs,
        )
        if isinstance(output, torch.Tensor):
            return output[:, length:]
        output.sequences = output.sequences[:, length:]
        return output

    def _generate_from_embeddings(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any):
        """For sliding windows, which count places, not true positions: here the padding stands before the prompt."""
        rows, width = input_ids.shape
        prompt = self.get_prompt(batch_size=1)
        length = prompt.shape[1]
        embeds = self.word_embeddings(input_ids)
        joined = torch.cat([prompt.to(embeds.dtype).expand(rows, -1, -1), embeds], 1)
        padding = (attention_mask == 0).sum(1, keepdim=True)
        place = torch.arange(length + width, device=input_ids.device)[None].expand(rows, -1)
        moved = torch.where(place < padding, place + length, place - padding)
        order = torch.where(place < padding + length, moved, place)
        output = self.get_base_model().generate(
            inputs_embeds=joined.gather(1, order[..., None].expand(-1, -1, joined.shape[2])),
            attention_mask=(place >= padding).long(),
            **kwargs,
        )
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        sequences = torch.cat([input_ids.repeat_interleave(len(sequences) // rows, 0), sequences], 1)
        if isinstance(output, torch.Tensor):
            return sequences
        output.sequences = sequences
        return output

    @torch.no_grad()
    def _prompt_cache(self, rows: int) -> DynamicCache:
        """Keys and values of the prompt, computed for one row and expanded over `rows`."""
        base = self.get_base_model()
        prompt = self.get_prompt(batch_size=1).to(base.dtype)
        cache = DynamicCache(config=base.config)
        base(inputs_embeds=prompt, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
        return cache


# Methods whose prompt is a sequence of input embeddings.
SHARED_METHODS = ("PROMPT_TUNING", "P_TUNING")
# tests/test_shared_prefix.py holds each of these to a row-by-row reference.
PACKED_ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "phi3")


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
