"""Texts that several rows of a batch share, such as a passage before its questions, found by token ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn.utils.rnn import pad_sequence

from prompt_tuning.engine.row_layout import RowLayout, States
from prompt_tuning.engine.target_batch import Batch

WORTH_SHARING = 16  # A shared text is one more call of attention in each layer, and has to save so many tokens.


class RowTree:
    """The texts that several rows of a batch share, each read once, behind a prompt or behind another such text.

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
        lists = [row.tolist() for row in rows]
        order = sorted(range(len(rows)), key=lambda number: (prompt_index[number], lists[number]))
        alike = _alike([rows[number] for number in order])
        for place, (one, other) in enumerate(pairwise(order)):
            if prompt_index[one] != prompt_index[other]:
                alike[place] = -1
        self.texts: list[torch.Tensor] = []
        self.num_saved = 0
        text_parents: list[int] = []
        row_parents = list(prompt_index)
        starts = [0] * len(rows)
        runs = [(0, len(order))]  # Rows that follow each other in the order, and open alike as far as `starts` says.
        while runs:
            first, end = runs.pop()
            if end - first < 2:
                continue
            members = order[first:end]
            start = starts[members[0]]
            shared = min(alike[first : end - 1])
            saved = (shared - start) * (len(members) - 1)
            if saved >= WORTH_SHARING:
                self.num_saved += saved
                text_parents.append(row_parents[members[0]])
                self.texts.append(rows[members[0]][start:shared])
                for number in members:
                    row_parents[number] = num_prompts + len(self.texts) - 1
                    starts[number] = shared
            # A short match with a third row ends here, and does not shrink what the two others share.
            ends = [place + 1 for place in range(first, end - 1) if alike[place] == shared]
            runs += pairwise([first, *ends, end])
        self._parents = text_parents, row_parents
        in_texts = can_share & (can_share.cumsum(1) <= torch.tensor(starts)[:, None])
        is_rest = batch.needed & ~in_texts
        rests = batch.input_ids[is_rest]
        self._rest_lengths = is_rest.sum(1).tolist()
        self.ids = torch.cat([*self.texts, rests])
        self.predicts = batch.predicts[is_rest].nonzero()[:, 0] - len(rests)

    def layout(self, prompts: tuple[int, ...], prefixes: Sequence[States]) -> RowLayout:
        """Return the places of prompts of these lengths, shared texts and the rows that have tokens left."""
        text_parents, row_parents = self._parents
        lengths = self._rest_lengths
        rows = [number for number, length in enumerate(lengths) if length]
        return RowLayout(
            prompts=prompts,
            rows=(*map(len, self.texts), *(lengths[number] for number in rows)),
            parents=(*text_parents, *(row_parents[number] for number in rows)),
            prefixes=prefixes,
        )


def _alike(rows: Sequence[torch.Tensor]) -> list[int]:
    """Return with how many equal ids each row and the next one open."""
    if len(rows) < 2:
        return []
    ids = pad_sequence(rows, batch_first=True, padding_value=-1)
    same = (ids[1:] == ids[:-1]) & (ids[1:] >= 0)
    return same.cumprod(1).sum(1).tolist()
