"""Keys and values of prompts and of rows behind them, each computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from prompt_tuning.encoding.batching import common_prefix_length
from prompt_tuning.engine.row_layout import RowLayout, States

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
    if not common_prefix:
        return _empty_cache(base)
    cache = DynamicCache()
    ids = torch.tensor([list(common_prefix)], device=base.device)
    base(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
    return cache


def _empty_cache(base: PreTrainedModel) -> Cache:
    """Return a cache of one row without a token, `[1, key heads, 0, D]`, for a tested causal model."""
    config = base.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kind = base.device.type
    # Joined with keys of another type, these must not widen it.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.dtype
    cache = DynamicCache()
    for layer in range(config.num_hidden_layers):
        keys, values = torch.empty(2, 1, heads, 0, size, dtype=dtype, device=base.device)
        cache.update(keys, values, layer)
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


def caches_of_rows(caches: Sequence[Cache], prompt_index: Sequence[int]) -> tuple[Cache, torch.Tensor]:
    """Return one cache of B rows, padded on the left, and its mask `[B, longest]`; otherwise like `join_caches`.

    Args:
        caches: of K prompts, one row each. The first may be changed.
        prompt_index: for each of the B rows the index of its prompt.
    """
    cache, mask = join_caches(caches)
    rows = torch.tensor(prompt_index, device=mask.device)
    cache.batch_select_indices(rows)
    # A cache without positions keeps its one row.
    return cache if mask.shape[1] else DynamicCache(), mask[rows]


def _join_padded(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return `[K, key heads, longest, D]` from K tensors of one row, padded on the left."""
    longest = max(row.shape[2] for row in states)  # A sliding layer keeps no more than its window.
    return torch.cat([F.pad(row, (0, 0, longest - row.shape[2], 0)) for row in states])


def _left_padded_mask(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    longest = max(lengths)
    rows = [[0] * (longest - length) + [1] * length for length in lengths]
    return torch.tensor(rows, dtype=torch.long, device=device)


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


class PackedPrefixes(NamedTuple):
    """Keys and values of several prefixes, one after the other without padding.

    Attributes:
        lengths: of each prefix.
        states: for each layer keys and values, both `[1, key heads, sum of the lengths, D]`.
    """

    lengths: tuple[int, ...]
    states: list[States]

    @classmethod
    def from_caches(cls, caches: Sequence[Cache]) -> PackedPrefixes:
        """Return the keys and values of caches of one row each."""
        states = []
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            states.append((_joined([layer.keys for layer in layers]), _joined([layer.values for layer in layers])))
        return cls(tuple(cache.get_seq_length() for cache in caches), states)

    def part(self, first: int, end: int) -> PackedPrefixes:
        """Return the prefixes with the numbers `first` to `end - 1`."""
        places = slice(sum(self.lengths[:first]), sum(self.lengths[:end]))
        states = [(keys[:, :, places], values[:, :, places]) for keys, values in self.states]
        return PackedPrefixes(self.lengths[first:end], states)


def _joined(states: Sequence[torch.Tensor]) -> torch.Tensor:
    return states[0] if len(states) == 1 else torch.cat(list(states), 2)


def read_packed(
    base: PreTrainedModel, prefixes: PackedPrefixes, prefix_index: Sequence[int], rows: Sequence[Sequence[int]]
) -> list[States]:
    """Return for each layer the keys and values of rows behind their prefixes, without padding.

    Args:
        base: the model without its prompt.
        prefixes: what stands before the rows.
        prefix_index: for each row the index of its prefix.
        rows: token ids.

    Returns:
        Keys and values, both `[1, key heads, N, D]`.
    """
    at_once = READ_AT_ONCE if base.device.type == "cpu" else sum(map(len, rows))
    num_layers = len(prefixes.states)
    keys: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
    values: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
    not_empty = [number for number, row in enumerate(rows) if row]
    for chunk in chunks(not_empty, [len(row) for row in rows], at_once):
        states: dict[int, States] = {}
        layout = RowLayout(
            prompts=prefixes.lengths,
            rows=tuple(len(rows[number]) for number in chunk),
            parents=tuple(prefix_index[number] for number in chunk),
            prefixes=prefixes.states,
            states=states,
        )
        run_packed(base, [rows[number] for number in chunk], layout, logits_to_keep=1)
        for layer in range(num_layers):
            keys[layer].append(states[layer][0])
            values[layer].append(states[layer][1])
    if not not_empty:
        return [(keys[:, :, :0], values[:, :, :0]) for keys, values in prefixes.states]
    return [(_joined(keys[layer]), _joined(values[layer])) for layer in range(num_layers)]


def run_packed(
    base: PreTrainedModel, rows: Sequence[Sequence[int]], layout: RowLayout, **kwargs: Any
) -> CausalLMOutputWithPast:
    """Return the model's output over rows of token ids as one packed sequence, behind the layout's prefixes."""
    return base(
        input_ids=torch.tensor([list(chain.from_iterable(rows))], device=base.device),
        position_ids=layout.positions()[None].to(base.device),
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


def _places_behind(lengths: Sequence[int], index: Sequence[int], row_lengths: Sequence[int]) -> list[list[int]]:
    """Return for each row the places of its prefix and its tokens, where all prefixes stand before all rows."""
    starts = [0, *accumulate([*lengths, *row_lengths])]
    places = []
    for row, prefix in enumerate(index, len(lengths)):
        places.append([*range(starts[prefix], starts[prefix + 1]), *range(starts[row], starts[row + 1])])
    return places


def _prefixes_behind(
    prefixes: PackedPrefixes, index: Sequence[int], row_lengths: Sequence[int], states: Sequence[States]
) -> PackedPrefixes:
    """Return for each row a prefix of its own: its prefix and its tokens, whose states `read_packed` returned."""
    places = _places_behind(prefixes.lengths, index, row_lengths)
    chosen = torch.tensor(list(chain.from_iterable(places)), dtype=torch.long, device=states[0][0].device)
    behind = []
    for before, rows in zip(prefixes.states, states, strict=True):
        keys, values = (torch.cat(pair, 2).index_select(2, chosen) for pair in zip(before, rows, strict=True))
        behind.append((keys, values))
    return PackedPrefixes(tuple(map(len, places)), behind)


def _read_passages(
    base: PreTrainedModel, prefixes: PackedPrefixes, prompt_index: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[PackedPrefixes, list[int], list[Sequence[int]]]:
    """Read once each text that opens several rows, and return it as a further prefix of these rows.

    Returns:
        All prefixes, for each row the index of its prefix, and the rest of each row.
    """
    prefix_index = list(prompt_index)
    rest = list(rows)
    groups = shared_prefixes(rows, prompt_index)
    if not groups:
        return prefixes, prefix_index, rest
    prompts = [prompt_index[members[0]] for _, members in groups]
    passages = [rows[members[0]][:shared] for shared, members in groups]
    read = read_packed(base, prefixes, prompts, passages)
    behind = _prefixes_behind(prefixes, prompts, [len(passage) for passage in passages], read)
    states = []
    for (keys, values), (further_keys, further_values) in zip(prefixes.states, behind.states, strict=True):
        states.append((torch.cat([keys, further_keys], 2), torch.cat([values, further_values], 2)))
    for number, (shared, members) in enumerate(groups, len(prefixes.lengths)):
        for row in members:
            prefix_index[row] = number
            rest[row] = rows[row][shared:]
    return PackedPrefixes(prefixes.lengths + behind.lengths, states), prefix_index, rest


def prefixes_of_rows(
    base: PreTrainedModel, caches: Sequence[Cache], prompt_index: Sequence[int], rows: Sequence[Sequence[int]]
) -> PackedPrefixes:
    """Return for each row its prompt and its tokens, without padding; otherwise like `cache_of_rows`."""
    prefixes, index, rest = _read_passages(base, PackedPrefixes.from_caches(caches), prompt_index, rows)
    states = read_packed(base, prefixes, index, rest)
    return _prefixes_behind(prefixes, index, [len(row) for row in rest], states)


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
    prefixes, index, rest = _read_passages(base, PackedPrefixes.from_caches(caches), prompt_index, rows)
    states = read_packed(base, prefixes, index, rest)
    places = _places_behind(prefixes.lengths, index, [len(row) for row in rest])
    longest = max(map(len, places))
    device = states[0][0].device
    padded = [[0] * (longest - len(row)) + row for row in places]
    chosen = torch.tensor(padded, dtype=torch.long, device=device).flatten()
    joined = DynamicCache()
    for number, (before, behind) in enumerate(zip(prefixes.states, states, strict=True)):
        # [1, heads, all, D] -> [B, heads, longest, D]
        selected = [torch.cat(pair, 2)[0].index_select(1, chosen) for pair in zip(before, behind, strict=True)]
        keys, values = (tensor.unflatten(1, (len(rows), longest)).transpose(0, 1) for tensor in selected)
        joined.update(keys, values, number)
    return joined, _left_padded_mask([len(row) for row in places], device)
