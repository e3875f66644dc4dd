"""Keys and values of prompts and of rows behind them, each computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from prompt_tuning.encoding.batching import common_prefix_length
from prompt_tuning.engine.attention import RowLayout

WORTH_SHARING = 16  # Rows must open with so many equal tokens for these to be read once.
READ_AT_ONCE = 2048  # A CPU maps the temporaries of more tokens into memory anew each time.


class RoomyLayer(DynamicLayer):
    """A DynamicLayer with room for tokens to come; transformers' own copies all keys and values with each token."""

    room = 64

    def __init__(self, layer: DynamicLayer) -> None:
        """Take over the keys and values of a layer."""
        super().__init__()
        self.__dict__ |= layer.__dict__
        self._buffers: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values `[B, key heads, T, D]`; return all of them `[B, key heads, C + T, D]`."""
        length = self.keys.shape[2]
        end = length + key_states.shape[2]
        keys = self._buffers[0] if self._buffers else key_states[:, :, :0]
        # Other rows may have been selected since, which makes other tensors, or the room may be used up.
        if self.keys.data_ptr() != keys.data_ptr() or end > keys.shape[2]:
            padding = (0, 0, 0, end - length + self.room)
            self._buffers = F.pad(self.keys, padding), F.pad(self.values, padding)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:end] = new
        self.keys: torch.Tensor = self._buffers[0][:, :, :end]
        self.values: torch.Tensor = self._buffers[1][:, :, :end]
        return self.keys, self.values


def common_prefix_cache(base: PreTrainedModel, common_prefix: Sequence[int]) -> Cache:
    """Return keys and values of the ids that open every row, as one row; an empty cache if there are none."""
    cache = DynamicCache()
    ids = torch.tensor([list(common_prefix) or [0]], device=base.device)
    base(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
    if not common_prefix:
        cache.crop(-1)
    return cache


def join_caches(caches: Sequence[Cache]) -> tuple[Cache, torch.Tensor]:
    """Return one cache of K rows made of K caches of one row, padded on the left, and its mask `[K, longest]`.

    The first of the caches becomes the joined one.
    """
    lengths = [cache.get_seq_length() for cache in caches]
    longest = max(lengths)
    joined = caches[0]
    if len(caches) > 1:
        for number, layer in enumerate(joined.layers):
            layers = [cache.layers[number] for cache in caches]
            keys = _join_padded([row.keys for row in layers])
            values = _join_padded([row.values for row in layers])
            layer.keys = keys
            layer.values = values
            if hasattr(layer, "cumulative_length"):  # A sliding layer makes its mask by it.
                layer.cumulative_length = longest
    return joined, _left_padded_mask(lengths, joined.layers[0].keys.device)


def _join_padded(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return `[K, key heads, longest, D]` from K tensors of one row, padded on the left."""
    longest = max(row.shape[2] for row in states)  # A sliding layer keeps no more than its window.
    return torch.cat([F.pad(row, (0, 0, longest - row.shape[2], 0)) for row in states])


def _left_padded_mask(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    longest = max(lengths)
    return torch.tensor([[0] * (longest - length) + [1] * length for length in lengths], device=device)


def shared_prefixes(rows: Sequence[Sequence[int]], prompt_index: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return groups of rows that open alike, such as questions about one passage.

    Args:
        rows: token ids.
        prompt_index: for each row the index of its prompt; rows behind different prompts share nothing.

    Returns:
        Groups of two or more rows, each as how many tokens they share and their numbers.
    """
    order = sorted(range(len(rows)), key=lambda number: (prompt_index[number], rows[number]))
    alike = []
    for one, other in pairwise(order):
        same_prompt = prompt_index[one] == prompt_index[other]
        alike.append(common_prefix_length(rows[one], rows[other]) if same_prompt else 0)
    groups: list[tuple[int, list[int]]] = []
    continues = False
    for place, shared in enumerate(alike):
        # A short match with a third row must not shrink a long shared prefix.
        if shared < max(WORTH_SHARING, max(alike[max(place - 1, 0) : place + 2]) / 2):
            continues = False
        elif continues:
            length, members = groups[-1]
            groups[-1] = min(length, shared), [*members, order[place + 1]]
        else:
            groups.append((shared, [order[place], order[place + 1]]))
            continues = True
    return groups


def length_order(rows: Sequence[Sequence[int]], *, share: bool) -> list[int]:
    """Return row numbers from long to short: a batch then holds little padding, and the largest batch comes first.

    Args:
        rows: token ids.
        share: keep rows about one passage together, at the place of their longest, to be read once for a batch.
    """
    longest = [len(row) for row in rows]
    group = list(range(len(rows)))
    for _, members in shared_prefixes(rows, [0] * len(rows)) if share else ():
        length = max(len(rows[number]) for number in members)
        for number in members:
            longest[number] = length
            group[number] = members[0]
    return sorted(range(len(rows)), key=lambda n: (-longest[n], group[n], -len(rows[n])))


def read_packed(
    base: PreTrainedModel, caches: Sequence[Cache], prompt_index: Sequence[int], rows: Sequence[Sequence[int]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each layer the keys and values of rows behind their prompts, without padding.

    Args:
        base: the model without its prompt.
        caches: keys and values of prompts, one row each; they are not changed.
        prompt_index: for each row the index of its prompt.
        rows: token ids.

    Returns:
        Keys and values, both `[1, key heads, N, D]`.
    """
    at_once = READ_AT_ONCE if base.device.type == "cpu" else sum(map(len, rows))
    prompt_lengths = tuple(cache.get_seq_length() for cache in caches)
    num_layers = len(caches[0].layers)
    keys: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
    values: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
    not_empty = [number for number, row in enumerate(rows) if row]
    for chunk in chunks(not_empty, [len(row) for row in rows], at_once):
        states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        layout = RowLayout(
            prompts=prompt_lengths,
            rows=tuple(len(rows[number]) for number in chunk),
            prompt_index=tuple(prompt_index[number] for number in chunk),
            prefixes=tuple(caches),
            states=states,
        )
        run_packed(base, [rows[number] for number in chunk], layout, logits_to_keep=1)
        for layer in range(num_layers):
            keys[layer].append(states[layer][0])
            values[layer].append(states[layer][1])
    if not not_empty:
        return [(layer.keys[:, :, :0], layer.values[:, :, :0]) for layer in caches[0].layers]
    return [(torch.cat(keys[layer], 2), torch.cat(values[layer], 2)) for layer in range(num_layers)]


def run_packed(
    base: PreTrainedModel, rows: Sequence[Sequence[int]], layout: RowLayout, **kwargs: Any
) -> CausalLMOutputWithPast:
    """Return the model's output over rows of token ids as one packed sequence, behind the layout's prefixes."""
    return base(
        input_ids=torch.tensor([list(chain.from_iterable(rows))], device=base.device),
        position_ids=layout.positions(base.device),
        # With four dimensions the model makes no mask of its own.
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.long, device=base.device),
        use_cache=False,
        row_layout=layout,
        **kwargs,
    )


def chunks(numbers: Sequence[int], lengths: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """Yield consecutive rows of at most `at_once` tokens together; a longer row is alone."""
    chunk: list[int] = []
    size = 0
    for number in numbers:
        if chunk and size + lengths[number] > at_once:
            yield chunk
            chunk = []
            size = 0
        chunk.append(number)
        size += lengths[number]
    if chunk:
        yield chunk


def _caches_behind(
    caches: Sequence[Cache],
    prompt_index: Sequence[int],
    lengths: Sequence[int],
    states: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> list[Cache]:
    """Return for each row a cache of its prompt and its tokens, whose keys and values `read_packed` returned."""
    joined = [DynamicCache() for _ in lengths]
    for number, (keys, values) in enumerate(states):
        row_keys = keys.split(list(lengths), 2)
        row_values = values.split(list(lengths), 2)
        for row, cache in enumerate(joined):
            prompt = caches[prompt_index[row]].layers[number]
            cache.update(
                torch.cat([prompt.keys, row_keys[row]], 2), torch.cat([prompt.values, row_values[row]], 2), number
            )
    return joined


def _read_passages(
    base: PreTrainedModel, caches: Sequence[Cache], prompt_index: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[list[Cache], list[int], list[Sequence[int]]]:
    """Read once each text that opens several rows, and return it as a further prompt of these rows.

    Returns:
        All caches, for each row the index of its cache, and the rest of each row.
    """
    all_caches = list(caches)
    cache_index = list(prompt_index)
    rest = list(rows)
    groups = shared_prefixes(rows, prompt_index)
    if groups:
        prompts = [prompt_index[members[0]] for _, members in groups]
        passages = [rows[members[0]][:shared] for shared, members in groups]
        states = read_packed(base, caches, prompts, passages)
        all_caches += _caches_behind(caches, prompts, [len(passage) for passage in passages], states)
        for number, (shared, members) in enumerate(groups):
            for row in members:
                cache_index[row] = len(caches) + number
                rest[row] = rows[row][shared:]
    return all_caches, cache_index, rest


def caches_of_rows(
    base: PreTrainedModel, caches: Sequence[Cache], prompt_index: Sequence[int], rows: Sequence[Sequence[int]]
) -> list[Cache]:
    """Return for each row a cache of its prompt and its tokens, without padding; otherwise like `cache_of_rows`."""
    caches, cache_index, rest = _read_passages(base, caches, prompt_index, rows)
    states = read_packed(base, caches, cache_index, rest)
    return _caches_behind(caches, cache_index, [len(row) for row in rest], states)


def cache_of_rows(
    base: PreTrainedModel, caches: Sequence[Cache], prompt_index: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[Cache, torch.Tensor]:
    """Read prompts and rows packed, and a text that opens several rows once.

    Args:
        base: the model without its prompt.
        caches: keys and values of prompts, one row each; they are not changed.
        prompt_index: for each of the B rows the index of its prompt.
        rows: token ids.

    Returns:
        A cache of B rows, each with its prompt and its tokens, padded on the left, and its mask `[B, longest]`.
    """
    caches, cache_index, rest = _read_passages(base, caches, prompt_index, rows)
    states = read_packed(base, caches, cache_index, rest)
    starts = [0, *accumulate([cache.get_seq_length() for cache in caches] + [len(row) for row in rest])]
    places = []
    for row, index in enumerate(cache_index):
        first = len(caches) + row
        places.append([*range(starts[index], starts[index + 1]), *range(starts[first], starts[first + 1])])
    longest = max(map(len, places))
    padded = torch.tensor([[0] * (longest - len(row)) + row for row in places], device=base.device)
    joined = DynamicCache()
    for number, (keys, values) in enumerate(states):
        layers = [cache.layers[number] for cache in caches]
        # [1, heads, all, D] -> [B, heads, longest, D]
        all_keys = torch.cat([*(layer.keys for layer in layers), keys], 2)[0, :, padded].transpose(0, 1)
        all_values = torch.cat([*(layer.values for layer in layers), values], 2)[0, :, padded].transpose(0, 1)
        joined.update(all_keys, all_values, number)
    return joined, _left_padded_mask([len(row) for row in places], base.device)
