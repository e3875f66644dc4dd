"""Keep rows that share text, such as questions about one passage, in one batch, which reads that text once."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset

from prompt_tuning.encoding.batching import KEY_BYTES, common_prefix, source_keys
from prompt_tuning.engine.row_tree import WORTH_SHARING

MOST_COMPARED = 1024  # Rows are compared in this many tokens after those with which all rows begin.
LEAST_SHARE = 1 / 4  # Rows of a family share at least this part of the shorter one.


def text_families(encoded: Dataset) -> list[int]:
    """Return for each row the number of its family: rows of one family share much text, and have the same task.

    Rows are sorted by their ids, so that the time grows with n log n. The start of all rows does not count.
    """
    keys = source_keys(encoded, len(common_prefix(encoded)), MOST_COMPARED)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    families = [0] * len(keys)
    number = 0
    for one, other in pairwise(order):
        shorter = min(len(keys[one]), len(keys[other])) // KEY_BYTES - 1
        if _num_alike(keys[one], keys[other]) < max(WORTH_SHARING, LEAST_SHARE * shorter):
            number += 1
        families[other] = number
    return families


def _num_alike(one: bytes, other: bytes) -> int:
    """Return the number of equal ids with which two keys of `source_keys` begin; -1 for different tasks."""
    length = min(len(one), len(other)) // KEY_BYTES
    numbers = (np.frombuffer(key, f">i{KEY_BYTES}", length) for key in (one, other))
    differ = np.append(np.not_equal(*numbers), True)
    return int(differ.argmax()) - 1


class Group(NamedTuple):
    """Rows that share text, and the length of the longest."""

    length: int
    rows: list[int]


class SharedText(NamedTuple):
    """Which rows share text, and how many of them come into one batch.

    Attributes:
        families: for each row the number of its family, as `text_families` returns it.
        most: the most rows of a family that are kept together.
        batch_rows: rows that a process runs at once.
    """

    families: list[int]
    most: int
    batch_rows: int

    def order(self, lengths: list[int], step_rows: int, generator: torch.Generator) -> list[int]:
        """Return the numbers of all rows; each `batch_rows` consecutive ones are a batch.

        The rows of a step depend on neither the number of processes nor the accumulated batches. As in transformers'
        LengthGroupedSampler, the groups of a step are of like length, and the longest row is in the first step.

        Args:
            lengths: of the rows.
            step_rows: rows of a step, of all processes and accumulated batches together.
            generator: draws the order.
        """
        families: dict[int, list[int]] = defaultdict(list)
        for row in torch.randperm(len(lengths), generator=generator).tolist():
            families[self.families[row]].append(row)
        groups = []
        for rows in families.values():
            groups += [rows[start : start + self.most] for start in range(0, len(rows), self.most)]
        drawn = [groups[number] for number in torch.randperm(len(groups), generator=generator).tolist()]
        num_steps = max(1, min(len(lengths) // (step_rows * 4), 50))  # LengthGroupedSampler sorts so many at a time.
        steps = []
        for part in _parts(drawn, num_steps * step_rows):
            of_part = [Group(max(lengths[row] for row in rows), rows) for rows in part]
            steps += _filled(sorted(of_part, key=lambda group: -group.length), step_rows)
        longest = max(range(len(steps)), key=lambda number: max(group.length for group in steps[number]))
        if longest < len(steps) - 1:  # The last step may hold fewer rows, and has to stay the last.
            steps[0], steps[longest] = steps[longest], steps[0]
        return [row for step in steps for batch in _filled(step, self.batch_rows) for _, rows in batch for row in rows]


def _parts(groups: Iterable[list[int]], num_rows: int) -> list[list[list[int]]]:
    """Return groups in parts of `num_rows` rows. A part may split its last group; the last part may be shorter."""
    parts: list[list[list[int]]] = [[]]
    room = num_rows
    for group in groups:
        while group:
            if not room:
                parts.append([])
                room = num_rows
            parts[-1].append(group[:room])
            group, room = group[room:], max(room - len(group), 0)
    return parts


def _filled(groups: Iterable[Group], num_rows: int) -> list[list[Group]]:
    """Return groups as batches of `num_rows` rows, the earlier groups first; the last batch may be smaller.

    A group is split only if no group that is left fits.
    """
    waiting: dict[int, deque[tuple[int, Group]]] = defaultdict(deque)  # By size, each with its place.
    for place, group in enumerate(groups):
        waiting[len(group.rows)].append((place, group))
    batches = []
    num_left = sum(size * len(queue) for size, queue in waiting.items())
    while num_left:
        batch: list[Group] = []
        room = min(num_rows, num_left)
        num_left -= room
        while room:
            sizes = [size for size, queue in waiting.items() if queue]
            fitting = [size for size in sizes if size <= room]
            size = min(fitting, key=lambda size: waiting[size][0][0]) if fitting else min(sizes)
            place, group = waiting[size].popleft()
            batch.append(Group(group.length, group.rows[:room]))
            if size > room:
                waiting[size - room].appendleft((place, Group(group.length, group.rows[room:])))
            room -= min(size, room)
        batches.append(batch)
    return batches
