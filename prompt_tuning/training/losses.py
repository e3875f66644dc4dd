"""Losses other than the model's: a user's, and context distillation, by which a soft prompt learns from a hard one.

The teacher is the frozen model itself, which reads a row as `teacher_template` renders it: with a system message, a
style guide, demonstrations. The student is the same model, which reads the recipe's template after the trained prompt.
Both read the row's target. At each token of the target the student learns the teacher's distribution over the
vocabulary (Askell et al. 2021, section 2.2; Snell et al. 2022, Learning by Distilling Context).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.utils.logging import tqdm

from prompt_tuning.encoding.batching import batches_within, common_prefix, move_padding
from prompt_tuning.engine.dispatch import has_recurrent_layers
from prompt_tuning.errors import ModelError

# These models rescale the logits of their output layer, so that hidden states do not determine a teacher's logits.
SCALED_LOGITS = ("cohere", "gemma2", "granite", "recurrent_gemma")


@torch.no_grad()
def teacher_states(
    base: PreTrainedModel, rows: Dataset, max_tokens: int, *, disable_tqdm: bool = False
) -> dict[int, torch.Tensor]:
    """Return, by each row's number, the states `[targets, H]` before the output layer that predict its target.

    Logits over the vocabulary would take some hundred times the memory. The rows' common prefix is read once.

    Args:
        base: the frozen model.
        rows: as `encode` makes them with the teacher's template.
        max_tokens: of a batch.
        disable_tqdm: show no progress bar.

    Raises:
        ModelError: the model rescales the logits of its output layer.
    """
    prefix = [] if has_recurrent_layers(base.config) else common_prefix(rows)
    prefix_cache = DynamicCache(config=base.config)
    if prefix:
        base(input_ids=torch.tensor([prefix], device=base.device), cache=prefix_cache, logits_to_keep=1)
    ids = list(rows["input_ids"])
    labels = list(rows["labels"])
    row_numbers = list(rows["row"])
    longest_first = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    head_inputs: list[torch.Tensor] = []
    hook = base.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: head_inputs.append(inputs[0]))
    states: dict[int, torch.Tensor] = {}
    bar = tqdm(total=len(ids), desc="teacher", unit="row", disable=disable_tqdm)
    try:
        for batch in batches_within([len(ids[place]) for place in longest_first], len(ids), max_tokens):
            places = [longest_first[number] for number in batch]
            input_ids = _padded([ids[place][len(prefix) :] for place in places], 0).to(base.device)
            targets = _padded([labels[place][len(prefix) :] for place in places], -100).to(base.device)
            mask = _padded([[1] * len(ids[place]) for place in places], 0).to(base.device)
            cache = copy.deepcopy(prefix_cache)
            if prefix:
                cache.batch_repeat_interleave(len(places))
            predicts = F.pad(targets[:, 1:] != -100, (0, 1))
            output = base(input_ids=input_ids, attention_mask=mask, cache=cache, logits_to_keep=predicts)
            if not states:
                _check_head(base, head_inputs[-1], output.logits)
            parts = head_inputs.pop().cpu().split(predicts.sum(1).tolist())
            for place, part in zip(places, parts, strict=True):
                states[row_numbers[place]] = part.clone()
            bar.update(len(places))
    finally:
        bar.close()
        hook.remove()
    return states


def _check_head(base: PreTrainedModel, states: torch.Tensor, logits: torch.Tensor) -> None:
    """Raise a ModelError unless the logits are the product of the states and the output layer."""
    product = base.get_output_embeddings().forward(states).flatten(0, -2)
    if not torch.allclose(product, logits.flatten(0, -2).to(product.dtype), atol=1e-3, rtol=1e-2):
        raise ModelError(
            f"distillation needs a causal model with unscaled logits; {base.config.model_type} rescales them. "
            "Leave loss and teacher_template out."
        )


@torch.no_grad()
def teacher_logits(head: torch.nn.Module, states: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return the logits `[targets, V]` that the output layer makes of a teacher's states of some rows.

    Without a row, return the student's logits `like`, `[0, V]`.
    """
    return head(torch.cat(states).to(like.device)) if states else like


def aligned_outputs(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], *, causal: bool
) -> tuple[Any, torch.Tensor]:
    """Return a prompted model's outputs with logits `[B, T, V]`, and the labels `[B, T]` of the same positions.

    Args:
        model: behind its prompt.
        inputs: a batch, padded on either side.
        causal: the model has no decoder of its own, so that the logits of its virtual tokens come first.
    """
    if not causal:
        outputs = model(**inputs)
        return outputs, inputs["labels"]
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    mask, ids, labels = move_padding("right", mask, ids, inputs["labels"])
    others = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask", "labels")}
    outputs = model(input_ids=ids, attention_mask=mask, **others)
    outputs.logits = outputs.logits[:, -ids.shape[1] :]
    return outputs, labels


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    loss: Literal["kl", "mse"],
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Return the divergence of a student's logits from a teacher's, a mean over targets.

    Args:
        student: `[targets, V]`.
        teacher: `[targets, V]`.
        loss: kl, from the teacher's distribution to the student's; or mse of the logits, a mean over the vocabulary.
        num_items_in_batch: divides the sum over targets; by default their number does.
    """
    student = student.float()
    teacher = teacher.float()
    if loss == "kl":
        total = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
    else:
        total = (student - teacher).square().mean(-1).sum()
    return total / (len(student) if num_items_in_batch is None else num_items_in_batch)


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
