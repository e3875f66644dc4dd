"""Keys and values of prompts and of rows behind them, each computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from prompt_tuning.encoding.batching import common_prefix_length
from prompt_tuning.engine.attention import RowLayout

WORTH_SHARING = 16  # tokens that rows must open with alike to be run once
READ_AT_ONCE = 2048  # tokens on a CPU, where the temporaries of more are mapped into memory anew each time


class RoomyLayer(DynamicLayer):
    """A DynamicLayer with room for tokens to come, where transformers' copies all keys and values with each token."""

    room = 64

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.__dict__ |= layer.__dict__
        self._buffers: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        known = self.keys.shape[2]
        end = known + key_states.shape[2]
        keys = self._buffers[0] if self._buffers else key_states[:, :, :0]
        # Other rows may have been selected since, which makes other tensors, or the room used up.
        if self.keys.data_ptr() != keys.data_ptr() or end > keys.shape[2]:
            room = end - known + self.room
            self._buffers = tuple(F.pad(states, (0, 0, 0, room)) for states in (self.keys, self.values))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, known:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


def common_prefix_cache(base: PreTrainedModel, opening: Sequence[int]) -> Cache:
    """Keys and values of the ids that open every row, one row; of no ids an empty one."""
    cache = DynamicCache()
    ids = torch.tensor([list(opening) or [0]], device=base.device)
    base(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
    if not opening:
        cache.crop(-1)
    return cache


def join_caches(caches: Sequence[Cache]) -> tuple[Cache, torch.Tensor]:
    """One cache of K rows out of K caches of one row, padded on the left, and its mask `[K, longest]`.

    The first of the caches becomes it.
    """
    lengths = [cache.get_seq_length() for cache in caches]
    longest, joined = max(lengths), caches[0]
    mask = [[0] * (longest - length) + [1] * length for length in lengths]
    if len(caches) > 1:
        for number, layer in enumerate(joined.layers):
            each = [cache.layers[number] for cache in caches]
            room = max(one.keys.shape[2] for one in each)  # a sliding layer keeps no more than its window
            layer.keys, layer.values = (
                torch.cat([F.pad(states, (0, 0, room - states.shape[2], 0)) for states in of_all])
                for of_all in ([one.keys for one in each], [one.values for one in each])
            )
            if hasattr(layer, "cumulative_length"):  # by which a sliding layer makes its mask
                layer.cumulative_length = longest
    return joined, torch.tensor(mask, device=joined.layers[0].keys.device)


def shared_prefixes(rows: Sequence[Sequence[int]], owners: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Rows that open alike, as questions about one passage do.

    Args:
        rows: token ids.
        owners: for each row the number of its prompt; rows behind different prompts share nothing.

    Returns:
        Groups of two or more rows, each as how many tokens they share and their numbers.
    """
    order = sorted(range(len(rows)), key=lambda number: (owners[number], rows[number]))
    alike = [
        common_prefix_length(rows[one], rows[other]) if owners[one] == owners[other] else 0
        for one, other in pairwise(order)
    ]
    groups: list[tuple[int, list[int]]] = []
    going_on = False
    for place, shared in enumerate(alike):
        # Where two rows share 200 tokens and a third shares 30 with them, the two share 200 and the third none.
        if shared < max(WORTH_SHARING, max(alike[max(place - 1, 0) : place + 2]) / 2):
            going_on = False
        elif going_on:
            groups[-1] = min(groups[-1][0], shared), [*groups[-1][1], order[place + 1]]
        else:
            groups.append((shared, [order[place], order[place + 1]]))
            going_on = True
    return groups


def length_order(rows: Sequence[Sequence[int]], share: bool) -> list[int]:
    """Row numbers from long to short, so that a batch holds little padding and the largest batch comes first.

    Args:
        share: rows about one passage then stay together, at the place of their longest, to be read once for a batch.
    """
    longest, group = [len(row) for row in rows], list(range(len(rows)))
    for _, members in shared_prefixes(rows, [0] * len(rows)) if share else ():
        length = max(len(rows[number]) for number in members)
        for number in members:
            longest[number], group[number] = length, members[0]
    return sorted(range(len(rows)), key=lambda n: (-longest[n], group[n], -len(rows[n])))


def read_packed(
    base: PreTrainedModel, caches: Sequence[Cache], owners: Sequence[int], rows: Sequence[Sequence[int]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each layer the keys and values of rows behind their prompts, both `[1, key heads, N, D]`, without padding.

    Args:
        caches: prompts' keys and values, one row each; they are not changed.
        owners: for each row the number of its prompt.
        rows: token ids.
    """
    parts = []
    at_once = READ_AT_ONCE if base.device.type == "cpu" else sum(map(len, rows))
    lengths = tuple(cache.get_seq_length() for cache in caches)
    for chunk in chunks([number for number, row in enumerate(rows) if row], [len(row) for row in rows], at_once):
        own = [(owners[number], rows[number]) for number in chunk]
        layout = RowLayout(
            lengths, tuple(len(row) for _, row in own), tuple(owner for owner, _ in own), tuple(caches), {}
        )
        run_packed(base, [row for _, row in own], layout, logits_to_keep=1)
        parts.append([layout.kept[number] for number in range(len(caches[0].layers))])
    if not parts:
        return [(layer.keys[:, :, :0], layer.values[:, :, :0]) for layer in caches[0].layers]
    return [tuple(torch.cat(states, 2) for states in zip(*layer, strict=True)) for layer in zip(*parts, strict=True)]


def run_packed(
    base: PreTrainedModel, rows: Sequence[Sequence[int]], layout: RowLayout, **kwargs: Any
) -> CausalLMOutputWithPast:
    """The model's output over rows of token ids as one packed sequence, behind the layout's prefixes."""
    return base(
        input_ids=torch.tensor([[token for row in rows for token in row]], device=base.device),
        position_ids=layout.positions(base.device),
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.long, device=base.device),  # so that the model makes none
        use_cache=False,
        row_layout=layout,
        **kwargs,
    )


def chunks(numbers: Sequence[int], lengths: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """Consecutive rows of so many tokens together, a longer one by itself."""
    chunk, size = [], 0
    for number in numbers:
        if chunk and size + lengths[number] > at_once:
            yield chunk
            chunk, size = [], 0
        chunk.append(number)
        size += lengths[number]
    if chunk:
        yield chunk


def _caches_behind(
    caches: Sequence[Cache], owners: Sequence[int], lengths: Sequence[int], read: Sequence[tuple[torch.Tensor, ...]]
) -> list[Cache]:
    """For each row a cache of its prompt and its tokens, whose keys and values were `read`."""
    behind = [DynamicCache() for _ in lengths]
    for number, layer in enumerate(read):
        parts = zip(*(states.split(list(lengths), 2) for states in layer), strict=True)
        for cache, owner, (keys, values) in zip(behind, owners, parts, strict=True):
            prompt = caches[owner].layers[number]
            cache.update(torch.cat([prompt.keys, keys], 2), torch.cat([prompt.values, values], 2), number)
    return behind


def _behind_passages(
    base: PreTrainedModel, caches: Sequence[Cache], owners: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[list[Cache], list[int], list[list[int]]]:
    """The same rows after what several of them open with is read once, into caches of its own."""
    caches, owners, rows = list(caches), list(owners), [list(row) for row in rows]
    if groups := shared_prefixes(rows, owners):
        of_groups = [owners[members[0]] for _, members in groups]
        read = read_packed(base, caches, of_groups, [rows[members[0]][:shared] for shared, members in groups])
        passages = _caches_behind(caches, of_groups, [shared for shared, _ in groups], read)
        for number, (shared, members) in enumerate(groups):
            for row in members:
                owners[row], rows[row] = len(caches) + number, rows[row][shared:]
        caches += passages
    return caches, owners, rows


def caches_of_rows(
    base: PreTrainedModel, caches: Sequence[Cache], owners: Sequence[int], rows: Sequence[Sequence[int]]
) -> list[Cache]:
    """For each row a cache of its own, its prompt and its tokens without padding; otherwise as `cache_of_rows`."""
    caches, owners, rows = _behind_passages(base, caches, owners, rows)
    return _caches_behind(caches, owners, [len(row) for row in rows], read_packed(base, caches, owners, rows))


def cache_of_rows(
    base: PreTrainedModel, caches: Sequence[Cache], owners: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[Cache, torch.Tensor]:
    """Keys and values of prompts and rows, run packed, and what several rows open with run once.

    Args:
        caches: prompts' keys and values, one row each; they are not changed.
        owners: for each of the B rows the number of its prompt.
        rows: token ids.

    Returns:
        A cache of B rows, each its prompt and its tokens, padded on the left, and its mask `[B, longest]`.
    """
    caches, owners, rows = _behind_passages(base, caches, owners, rows)
    read = read_packed(base, caches, owners, rows)
    starts = [0, *accumulate([cache.get_seq_length() for cache in caches] + [len(row) for row in rows])]
    places = [
        [*range(starts[owner], starts[owner + 1]), *range(starts[len(caches) + row], starts[len(caches) + row + 1])]
        for row, owner in enumerate(owners)
    ]
    longest = max(map(len, places))
    padded = torch.tensor([[0] * (longest - len(each)) + each for each in places], device=base.device)
    joined = DynamicCache()
    for number, layer in enumerate(read):
        known = [(cache.layers[number].keys, cache.layers[number].values) for cache in caches]
        # [1, heads, all, D] -> [B, heads, longest, D]
        gathered = (torch.cat(states, 2)[0, :, padded].transpose(0, 1) for states in zip(*known, layer, strict=True))
        joined.update(*gathered, number)
    mask = [[0] * (longest - len(each)) + [1] * len(each) for each in places]
    return joined, torch.tensor(mask, device=base.device)
