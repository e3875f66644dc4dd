"""Keys and values of prompts and of rows behind them, each computed once."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from prompt_tuning.engine.row_layout import KeyTree, RowLayout, States
from prompt_tuning.engine.row_tree import find_shared_texts

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
    return joined, left_padded_mask(lengths, joined.layers[0].keys.device)


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


def left_padded_mask(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return `[rows, longest]`, 1 at the last so many places of each row."""
    longest = max(lengths)
    rows = [[0] * (longest - length) + [1] * length for length in lengths]
    return torch.tensor(rows, dtype=torch.long, device=device)


class ReadRows(NamedTuple):
    """The keys and values of rows behind their prompts.

    Attributes:
        tree: the prompts, the texts that several rows share, and the rest of each row.
        segments: for each row the segment that it ends with.
    """

    tree: KeyTree
    segments: list[int]

    def paths(self) -> list[tuple[int, ...]]:
        """Return for each row all segments that it consists of, in their order."""
        return [(*self.tree.ancestors[last], last) for last in self.segments]


def read_rows(
    base: PreTrainedModel, caches: Sequence[Cache], prompt_index: Sequence[int], rows: Sequence[list[int]]
) -> ReadRows:
    """Read rows behind their prompts, packed, and a text that opens several of them once.

    Args:
        base: the model without its prompt.
        caches: keys and values of prompts, one row each; they are not changed.
        prompt_index: for each row the index of its prompt.
        rows: token ids.
    """
    tree = KeyTree.from_caches(caches)
    shared = find_shared_texts(rows, prompt_index, len(caches))
    segments = [rows[number][start:end] for number, start, end in shared.spans]
    parents = list(shared.parents)
    row_segments = list(shared.row_parents)
    for number, start in enumerate(shared.starts):
        if start < len(rows[number]):
            segments.append(rows[number][start:])
            parents.append(row_segments[number])
            row_segments[number] = len(caches) + len(segments) - 1
    at_once = READ_AT_ONCE if base.device.type == "cpu" else sum(map(len, segments))
    for chunk in chunks(range(len(segments)), list(map(len, segments)), at_once):
        states: dict[int, States] = {}
        layout = RowLayout(
            rows=tuple(len(segments[number]) for number in chunk),
            parents=tuple(parents[number] for number in chunk),
            before=tree,
            states=states,
        )
        run_packed(base, [segments[number] for number in chunk], layout, logits_to_keep=1)
        tree = KeyTree(tuple(layout.lengths), tuple(layout.ancestors), [states[layer] for layer in sorted(states)])
    return ReadRows(tree, row_segments)


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


def cache_of_rows(read: ReadRows, shared: Container[int] = ()) -> tuple[Cache, torch.Tensor]:
    """Return a cache of B rows, each with a copy of its keys, padded on the left, and its mask `[B, longest]`.

    Args:
        read: the rows.
        shared: segments that are left out.
    """
    tree = read.tree
    spans = [range(end - length, end) for length, end in zip(tree.lengths, accumulate(tree.lengths), strict=True)]
    places = []
    for path in read.paths():
        places.append(list(chain.from_iterable(spans[segment] for segment in path if segment not in shared)))
    longest = max(map(len, places))
    device = tree.states[0][0].device
    padded = [[0] * (longest - len(row)) + row for row in places]
    chosen = torch.tensor(padded, dtype=torch.long, device=device).flatten()
    joined = DynamicCache()
    for number, states in enumerate(tree.states):
        # [1, heads, all, D] -> [B, heads, longest, D]
        selected = [tensor[0].index_select(1, chosen) for tensor in states]
        keys, values = (tensor.unflatten(1, (len(places), longest)).transpose(0, 1) for tensor in selected)
        joined.update(keys, values, number)
    return joined, left_padded_mask(list(map(len, places)), device)
