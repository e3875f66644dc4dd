"""Context distillation: a short soft prompt learns to do what a long hard prompt does.

The teacher is the frozen model itself, given `teacher_template`'s rendering of a row: a system message, a style guide,
demonstrations. The student is the same model given the recipe's template behind the trained prompt. Both read the
row's target, and the student's distribution over the vocabulary at each of its tokens follows the teacher's (Askell et
al. 2021, section 2.2; Snell et al. 2022, Learning by Distilling Context).
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.utils.logging import tqdm

from prompt_tuning.encoding.batching import batches_within, common_prefix
from prompt_tuning.engine.dispatch import has_recurrent_layers
from prompt_tuning.errors import ModelError

# Their logits are more than their output layer's product, so hidden states would not tell a teacher's.
SCALED_LOGITS = ("cohere", "gemma2", "granite", "recurrent_gemma")


@torch.no_grad()
def teacher_states(
    base: PreTrainedModel, rows: Dataset, max_tokens: int, disable_tqdm: bool = False
) -> dict[int, torch.Tensor]:
    """For each row's number the states `[targets, H]` before the output layer, where they predict its target.

    A vocabulary of logits would take some hundred times the memory. Tokens that open every row are read once.

    Args:
        rows: as `encode` makes them with the teacher's template.
        max_tokens: of a batch.
    """
    opening = [] if has_recurrent_layers(base.config) else common_prefix(rows)
    known = DynamicCache(config=base.config)
    if opening:
        base(input_ids=torch.tensor([opening], device=base.device), cache=known, logits_to_keep=1)
    ids, labels, numbers = (list(rows[name]) for name in ("input_ids", "labels", "row"))
    order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
    seen: list[torch.Tensor] = []
    hook = base.get_output_embeddings().register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    states: dict[int, torch.Tensor] = {}
    bar = tqdm(total=len(ids), desc="teacher", unit="row", disable=disable_tqdm)
    try:
        for batch in batches_within([len(ids[number]) for number in order], len(ids), max_tokens):
            chosen = [order[place] for place in batch]
            padded = _padded([ids[number][len(opening) :] for number in chosen], 0).to(base.device)
            targets = _padded([labels[number][len(opening) :] for number in chosen], -100).to(base.device) != -100
            mask = _padded([[1] * len(ids[number]) for number in chosen], 0).to(base.device)
            cache = copy.deepcopy(known)
            if opening:
                cache.batch_repeat_interleave(len(chosen))
            predicts = F.pad(targets[:, 1:], (0, 1))
            output = base(input_ids=padded, attention_mask=mask, cache=cache, logits_to_keep=predicts)
            if not states:
                _check_head(base, seen[-1], output.logits)
            parts = seen.pop().cpu().split(predicts.sum(1).tolist())
            states |= {numbers[number]: part.clone() for number, part in zip(chosen, parts, strict=True)}
            bar.update(len(chosen))
    finally:
        bar.close()
        hook.remove()
    return states


def _check_head(base: PreTrainedModel, states: torch.Tensor, logits: torch.Tensor) -> None:
    made = base.get_output_embeddings().forward(states)
    if not torch.allclose(made.flatten(0, -2), logits.flatten(0, -2).to(made.dtype), atol=1e-3, rtol=1e-2):
        raise ModelError(
            f"{base.config.model_type} changes its output layer's logits, so that it cannot be its own teacher here; "
            "set loss: cross_entropy"
        )


@torch.no_grad()
def teacher_logits(head: torch.nn.Module, states: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """`[targets, V]`, what the output layer makes of a teacher's states of some rows; of none the other logits."""
    return head(torch.cat(states).to(like.device)) if states else like


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    loss: Literal["kl", "mse"],
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Divergence of a student's logits `[targets, V]` from a teacher's, a mean over targets.

    kl: of the teacher's distribution to the student's. mse: of the logits, a mean over the vocabulary.

    Args:
        num_items_in_batch: what the sum over targets is divided by; by default their number.
    """
    student, teacher = student.float(), teacher.float()
    if loss == "kl":
        total = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
    else:
        total = (student - teacher).square().mean(-1).sum()
    return total / (len(student) if num_items_in_batch is None else num_items_in_batch)


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
