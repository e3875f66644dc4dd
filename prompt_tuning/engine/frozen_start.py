"""Rows up to their first trained token. No gradient passes there, so that keys and values are computed without one."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from prompt_tuning.engine.kv_cache import common_prefix_cache, read_rows
from prompt_tuning.engine.row_layout import KeyTree
from prompt_tuning.engine.target_batch import Batch


def read_start(base: PreTrainedModel, batch: Batch) -> tuple[KeyTree, list[int], Batch] | None:
    """Read each row up to its first trained token or loss; a passage that opens several rows is read once.

    Args:
        base: the model without its adapter.
        batch: rows without a prompt before them.

    Returns:
        The keys and values of all starts, for each row the segment that its start ends with, and the rest of the
        batch; None if every start is empty.
    """
    is_trained = batch.input_ids >= len(base.get_input_embeddings().weight)
    is_start = batch.needed & ((is_trained | batch.predicts).cumsum(1) == 0)
    if not is_start.any():
        return None
    starts = [tuple(ids[chosen].tolist()) for ids, chosen in zip(batch.input_ids, is_start, strict=True)]
    numbers = {start: number for number, start in enumerate(dict.fromkeys(starts))}
    with torch.no_grad():
        read = read_rows(base, [common_prefix_cache(base, [])], [0] * len(numbers), list(map(list, numbers)))
    rest = Batch(batch.input_ids, batch.needed & ~is_start, batch.predicts, shared=0)
    return read.tree, [read.segments[numbers[start]] for start in starts], rest
