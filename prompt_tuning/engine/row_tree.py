"""Find texts that several rows of a batch share, such as a passage before its questions, only by token ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from prompt_tuning.encoding.batching import common_prefix_length
from prompt_tuning.engine.row_layout import KeyTree, RowLayout
from prompt_tuning.engine.target_batch import Batch

WORTH_SHARING = 16  # A shared text is one more call of attention in each layer, and has to save so many tokens.


class SharedTexts(NamedTuple):
    """The texts that several rows share, each behind a prompt or behind another such text.

    Attributes:
        spans: for each text the number of a row that has it, and the places where it starts and ends there.
        parents: for each text what stands right before it: the number of a prompt, or K + that of an earlier text.
        row_parents: the same for the rest of each row.
        starts: for each row the place where its rest starts.
        num_saved: how many tokens fewer there are than without shared texts.
    """

    spans: list[tuple[int, int, int]]
    parents: list[int]
    row_parents: list[int]
    starts: list[int]
    num_saved: int


def find_shared_texts(rows: Sequence[list[int]], prompt_index: Sequence[int], num_prompts: int) -> SharedTexts:
    """Return the texts that are worth reading once.

    Args:
        rows: token ids.
        prompt_index: for each row the index of its prompt; rows behind different prompts share nothing.
        num_prompts: K, how many prompts there are.
    """
    order = sorted(range(len(rows)), key=lambda number: (prompt_index[number], rows[number]))
    num_equal = []  # The number of equal ids with which each row and the next one in the order begin.
    for one, other in pairwise(order):
        same_prompt = prompt_index[one] == prompt_index[other]
        num_equal.append(common_prefix_length(rows[one], rows[other]) if same_prompt else -1)
    spans = []
    parents = []
    row_parents = list(prompt_index)
    starts = [0] * len(rows)
    num_saved = 0
    runs = [(0, len(order))]  # The rows of a run follow each other in the order, and are equal up to their `starts`.
    while runs:
        first, end = runs.pop()
        if end - first < 2:
            continue
        members = order[first:end]
        start = starts[members[0]]
        shared = min(num_equal[first : end - 1])
        saved = (shared - start) * (len(members) - 1)
        if saved >= WORTH_SHARING:
            num_saved += saved
            parents.append(row_parents[members[0]])
            spans.append((members[0], start, shared))
            for number in members:
                row_parents[number] = num_prompts + len(spans) - 1
                starts[number] = shared
        # A short match with a third row ends here, and does not shrink what the two others share.
        ends = [place + 1 for place in range(first, end - 1) if num_equal[place] == shared]
        runs += pairwise([first, *ends, end])
    return SharedTexts(spans, parents, row_parents, starts, num_saved)


def length_order(rows: Sequence[list[int]], *, share: bool) -> list[int]:
    """Return row numbers from long to short: a batch then holds little padding, and the largest batch comes first.

    Args:
        rows: token ids.
        share: keep rows about one passage together, at the place of their longest, to be read once for a batch.
    """
    if not share:
        return sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    shared = find_shared_texts(rows, [0] * len(rows), 1)
    paths: list[list[int]] = [[]]
    for number, (_, start, end) in enumerate(shared.spans, 1):
        before = paths[shared.parents[number - 1]]
        # Many rows may begin with the same few words, which do not keep these rows from others of their length.
        paths.append([*before, number] if end - start >= WORTH_SHARING else before)
    longest = [0] * len(paths)
    for row, parent in zip(rows, shared.row_parents, strict=True):
        for text in paths[parent]:
            longest[text] = max(longest[text], len(row))

    def key(number: int) -> list[tuple[int, int]]:
        path = paths[shared.row_parents[number]]
        return [*((-longest[text], text) for text in path), (-len(rows[number]), 0)]

    return sorted(range(len(rows)), key=key)


class RowTree:
    """The texts that several rows of a batch share, each read once, and the rests of the rows.

    A row's shared texts end before its first prediction, since each row needs logits of its own there.

    Attributes:
        texts: the ids `[S]` of each shared text, which stand in the packed sequence before the rows.
        ids: `[N]`, all ids of shared texts and then of the rests of the rows.
        predicts: places among these ids whose logits predict a target, counted from the end, so negative.
        num_saved: how many tokens fewer there are than without shared texts.
    """

    def __init__(self, batch: Batch, prompt_index: Sequence[int], num_prompts: int) -> None:
        """Find the shared texts of a batch whose rows stand behind these prompts."""
        can_share = batch.needed & (batch.predicts.cumsum(1) == 0)
        rows = [ids[chosen] for ids, chosen in zip(batch.input_ids, can_share, strict=True)]
        shared = find_shared_texts([row.tolist() for row in rows], prompt_index, num_prompts)
        self.texts = [rows[number][start:end] for number, start, end in shared.spans]
        self.num_saved = shared.num_saved
        self._parents = shared.parents, shared.row_parents
        in_texts = can_share & (can_share.cumsum(1) <= torch.tensor(shared.starts)[:, None])
        is_rest = batch.needed & ~in_texts
        rests = batch.input_ids[is_rest]
        self._rest_lengths = is_rest.sum(1).tolist()
        self.ids = torch.cat([*self.texts, rests])
        self.predicts = batch.predicts[is_rest].nonzero()[:, 0] - len(rests)

    def layout(self, prompts: tuple[int, ...], before: KeyTree | None = None) -> RowLayout:
        """Return the places of prompts of these lengths, shared texts and the rows that have tokens left.

        Args:
            prompts: lengths of the prompts in the packed sequence.
            before: what stands before the rows instead, if it is computed already.
        """
        text_parents, row_parents = self._parents
        lengths = self._rest_lengths
        rows = [number for number, length in enumerate(lengths) if length]
        return RowLayout(
            prompts=prompts,
            rows=(*map(len, self.texts), *(lengths[number] for number in rows)),
            parents=(*text_parents, *(row_parents[number] for number in rows)),
            before=before,
        )
