"""Trained tokens: each has an embedding and, if asked for, a vector for each layer, added to the layer's input.

A trained token inside the text has an id: V + i for token i, where V is the number of rows of the base model's
embeddings. So rows share common prefixes and caches by their ids. The virtual tokens of a soft prompt have no ids, and
may have vectors too. Vectors are in units of their layer's median input (`layer_scales`), and start from 0.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.engine.dispatch import CACHE_ARCHITECTURES, ENCODER_DECODERS, PACKED_ARCHITECTURES
from prompt_tuning.engine.padded_segments import to_device
from prompt_tuning.engine.trained_config import TrainedTokensConfig
from prompt_tuning.errors import AdapterError, ModelError

PLACES = "trained_places"  # The argument in which the base model hands places on to its layers.


class TrainedTokens(nn.Module):
    """The trained tokens of one adapter, in float32.

    Attributes:
        text_embeddings: `[S, H]` of the tokens inside the text.
        layer_vectors: `[L, P + S, H]` of the P virtual tokens and then those of the text; None without them. Behind a
            prefix of keys and values P is 0 here.
        layer_scales: `[L]`, the unit of each layer's vectors.
        decoder_vectors: `[M, 1, H]` of a decoder's first token; None without layer vectors, and in a causal model.
        decoder_scales: `[M]`, the unit of each layer's vector of a decoder.
    """

    def __init__(self, config: TrainedTokensConfig, base: PreTrainedModel) -> None:
        """Start from the embeddings of `text_token_ids` and from vectors of 0.

        Raises:
            AdapterError: an id has no embedding.
        """
        super().__init__()
        embeddings = base.get_input_embeddings()
        size = base.config.get_text_config().vocab_size
        if len(embeddings.weight) != size:
            raise ModelError(
                f"{type(base).__name__} has {len(embeddings.weight):,} embeddings and a vocab_size of {size:,}, from "
                "which trained ids are counted. Load it as it was saved, without another number of embeddings."
            )
        check_start_ids(config, size)
        ids = torch.tensor(config.text_token_ids, dtype=torch.long, device=embeddings.weight.device)
        with torch.no_grad():
            self.text_embeddings = nn.Parameter(embeddings(ids).float().clone())
        is_prefix = find_method(config.peft_type).trains_keys_and_values
        self.num_virtual = 0 if is_prefix else config.num_virtual_tokens
        self.layer_vectors: nn.Parameter | None = None
        self.decoder_vectors: nn.Parameter | None = None
        if config.layer_vectors:
            stacks = layer_stacks(base)
            size = base.config.get_text_config().hidden_size
            shape = len(stacks[0]), self.num_virtual + len(ids), size
            self.layer_vectors = nn.Parameter(torch.zeros(shape, device=ids.device))
            # accelerate splits every tensor of a state dict under FSDP, and knows no buffers there.
            self.register_buffer("layer_scales", torch.ones(shape[0], device=ids.device), persistent=False)
            for decoder in stacks[1:]:
                self.decoder_vectors = nn.Parameter(torch.zeros(len(decoder), 1, size, device=ids.device))
                self.register_buffer("decoder_scales", torch.ones(len(decoder), device=ids.device), persistent=False)
        self.start_ids = list(config.text_token_ids)

    def set_scales(self, scales: torch.Tensor) -> None:
        """Set the units of all layers; those of an encoder `[L]` are followed by those of its decoder `[M]`."""
        units = list(self.buffers())
        for unit, values in zip(units, scales.split(list(map(len, units))), strict=True):
            unit.copy_(values)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what is saved of the trained tokens, by its names in the adapter's file."""
        named = [*self.named_parameters(), *self.named_buffers()]
        return {name: tensor.detach() for name, tensor in named}


def check_start_ids(config: TrainedTokensConfig, num_embeddings: int) -> None:
    """Raise an AdapterError if a token of the text starts from an id that has no embedding."""
    for id in config.text_token_ids:
        if not 0 <= id < num_embeddings:
            raise AdapterError(
                f"text_token_ids: the model has {num_embeddings:,} embeddings, and an id is {id:,}. Load the adapter "
                "on the model that it was trained on."
            )


def trained_tokens_of(encoder: nn.Module) -> TrainedTokens | None:
    """Return the trained tokens that belong to the prompt of an adapter, if it has any."""
    return dict(encoder.named_children()).get("trained_tokens")


def layer_vectors_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the layer vectors of a model that are trained."""
    parts = []
    for module in model.modules():
        if isinstance(module, TrainedTokens):
            parts += [module.layer_vectors, module.decoder_vectors]
    return [part for part in parts if part is not None and part.requires_grad]


def check_trained_tokens(config: PretrainedConfig, *, layer_vectors: bool) -> None:
    """Raise a ModelError unless the tests hold trained tokens of this model to a plain forward."""
    architecture = config.model_type if config.is_encoder_decoder else config.get_text_config().model_type
    tested: tuple[str, ...] = PACKED_ARCHITECTURES if layer_vectors else CACHE_ARCHITECTURES
    if config.is_encoder_decoder:
        tested = ENCODER_DECODERS
    if architecture not in tested:
        setting, without = ("layer_vectors", "false") if layer_vectors else ("trained_text", "none")
        raise ModelError(
            f"{setting}: {architecture} has not been shown to be exact with it. Set {setting}: {without}, or take one "
            f"of {', '.join(tested)}."
        )


def layer_stacks(base: PreTrainedModel) -> list[nn.ModuleList]:
    """Return the layers of a causal model, or those of an encoder and those of its decoder."""
    if base.config.is_encoder_decoder:
        return [_layers(base.get_encoder()), _layers(base.get_decoder())]
    return [_layers(base, base.config.get_text_config().num_hidden_layers)]


def _layers(model: nn.Module, count: int | None = None) -> nn.ModuleList:
    """Return the layers of a model: the one list of them, of as many as its configuration says if that is known."""
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and (len(module) == count if count else len(module) > 0)
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    ]
    if len(lists) != 1:
        raise ModelError(
            f"layer_vectors: {type(model).__name__} has {len(lists)} lists of {count or 'its'} layers, expected one. "
            "Leave layer_vectors out."
        )
    return lists[0]


def hook_layers(base: PreTrainedModel) -> list[RemovableHandle]:
    """Let each layer add the vectors of the places that it is handed; return the hooks.

    The places are an argument, so that each forward has its own, also where a layer runs again in the backward pass.
    """
    handles = []
    for stack in layer_stacks(base):
        for number, layer in enumerate(stack):
            handles.append(layer.register_forward_pre_hook(functools.partial(_add_vectors, number), with_kwargs=True))
    if base.config.is_encoder_decoder:
        of_first = functools.partial(_place_of_first_token, base)
        handles.append(base.get_decoder().register_forward_pre_hook(of_first, with_kwargs=True))
    return handles


def _add_vectors(number: int, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
    places = kwargs.get(PLACES)
    if places is None:
        return None
    rest = {name: value for name, value in kwargs.items() if name != PLACES}
    return (places.add(args[0], number), *args[1:]), rest


def _place_of_first_token(
    base: PreTrainedModel, _: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Hand a decoder the place of its first token, unless its cache holds that; a model hands it its encoder's."""
    rest = {name: value for name, value in kwargs.items() if name != PLACES}
    table, cache = active_table(base), kwargs.get("cache")
    if table is None or not table.decoder_vectors or (cache is not None and cache.get_seq_length()):
        return args, rest
    ids = kwargs.get("input_ids")
    rows, length = (kwargs["inputs_embeds"] if ids is None else ids).shape[:2]
    places = torch.arange(rows, device=table.text.device)
    return args, rest | {PLACES: TrainedPlaces(table.decoder_vectors, places * length, torch.zeros_like(places))}


class TrainedPlaces:
    """The places of trained tokens in a layer's input, and their vectors.

    It is no dataclass: FSDP would hand a copy of it to each layer.
    """

    def __init__(self, vectors: Sequence[torch.Tensor], places: torch.Tensor, columns: torch.Tensor) -> None:
        """Note for each layer the vectors `[C, H]`, and for M tokens their places `[M]` and their columns `[M]`."""
        self.vectors = vectors
        self.places = places
        self.columns = columns

    def add(self, states: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the input `[B, T, H]` of a layer with the vectors added."""
        added = self.vectors[layer].index_select(0, self.columns).to(states.dtype)
        return states.flatten(0, 1).index_add(0, self.places, added).view_as(states)


class TrainedTable:
    """The trained tokens of all adapters in a batch, as one table.

    The ids of the first adapter's text start at V, those of the others follow.

    Attributes:
        text: `[S, H]`, the embeddings of all adapters' text.
        vectors: for each layer `[C, H]`; none if no adapter has vectors.
        decoder_vectors: for each layer of a decoder `[1, H]`, of the first adapter that has any.
    """

    def __init__(self, base: PreTrainedModel, tokens: Mapping[str, TrainedTokens | None]) -> None:
        """Note the trained tokens of each adapter by its name; None for an adapter without any."""
        self.base = base
        self.word_embeddings = base.get_input_embeddings()
        self._source: torch.Tensor | None = None  # It is set while `generate` runs.
        present = [part for part in tokens.values() if part is not None]
        texts = [part.text_embeddings for part in present]
        self.text = texts[0] if len(texts) == 1 else torch.cat(texts)
        scaled = []
        starts: list[int] = []
        self._offsets: dict[str, int] = {}
        self._virtual: dict[str, torch.Tensor] = {}
        columns = [torch.empty(0, dtype=torch.long)]
        num_columns = 0
        for name, part in tokens.items():
            self._offsets[name] = len(starts)
            if part is None:
                continue
            starts += part.start_ids
            size = part.num_virtual + len(part.start_ids)
            if part.layer_vectors is None:
                columns.append(torch.full((len(part.start_ids),), -1))
                continue
            scaled.append(part.layer_vectors * part.layer_scales[:, None, None])
            of_part = torch.arange(num_columns, num_columns + size)
            self._virtual[name] = of_part[: part.num_virtual]
            columns.append(of_part[part.num_virtual :])
            num_columns += size
        self._text_columns = torch.cat(columns)
        self._start_ids = torch.tensor(starts, dtype=torch.long)
        self.vectors = torch.cat(scaled, 1).unbind() if scaled else ()
        self.decoder_vectors: Sequence[torch.Tensor] = ()
        for part in present:
            if part.decoder_vectors is not None:
                self.decoder_vectors = (part.decoder_vectors * part.decoder_scales[:, None, None]).unbind()

    def _text_index(self, ids: torch.Tensor) -> torch.Tensor:
        """Return for each id the number of its token of the text, negative for an ordinary id."""
        return ids - len(self.word_embeddings.weight)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `[..., H]` of ids `[...]`, trained ones and others."""
        index = self._text_index(ids)
        is_text = index >= 0
        embeds = self.word_embeddings(ids.masked_fill(is_text, 0))
        if not len(self.text):
            return embeds
        text = F.embedding(index.clamp(min=0), self.text).to(embeds.dtype)
        return torch.where(is_text[..., None], text, embeds)

    def ordinary(self, ids: torch.Tensor) -> torch.Tensor:
        """Return ids of any shape, each trained one replaced by that of the token from which it started."""
        index = self._text_index(ids)
        if not len(self.text):
            return ids
        return torch.where(index >= 0, self._start_ids.to(ids.device)[index.clamp(min=0)], ids)

    def shifted(self, ids: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """Return ids `[B, T]` of rows, each with the trained ids of its own adapter, as ids of this table."""
        offsets = torch.tensor([self._offsets[name] for name in names], device=ids.device)
        return torch.where(self._text_index(ids) >= 0, ids + offsets[:, None], ids)

    def columns(self, ids: torch.Tensor) -> torch.Tensor:
        """Return on the CPU, in the shape of `ids`, the column of each id's vectors, -1 without one."""
        index = self._text_index(ids.cpu())
        if not len(self.text):
            return torch.full_like(index, -1)
        return torch.where(index >= 0, self._text_columns[index.clamp(min=0)], -1)

    def prompt_columns(self, name: str, length: int) -> torch.Tensor:
        """Return the columns `[P]` of an adapter's virtual tokens, -1 for those without vectors."""
        return self._virtual.get(name, torch.full((length,), -1))

    def layer_arguments(self, columns: torch.Tensor) -> dict[str, TrainedPlaces]:
        """Return the argument of a forward whose tokens have these columns `[...]`; none without vectors."""
        if not self.vectors:
            return {}
        flat = columns.flatten()
        places = (flat >= 0).nonzero()[:, 0]
        return {PLACES: TrainedPlaces(self.vectors, *to_device(self.text.device, places, flat[places]))}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let forwards of the base model within the context, in this thread, read trained ids."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    @contextmanager
    def reading(self, ids: torch.Tensor) -> Iterator[None]:
        """Let forwards behind a cache within the context read these ids `[B, C]` instead of those in their places.

        `generate` is given ordinary ids, which logits processors look up among the logits.
        """
        self._source = ids
        try:
            yield
        finally:
            self._source = None

    def source_of(self, ids: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """Return the ids that a forward reads which `generate` gave these ids `[B, T]` and this cache."""
        if self._source is None or cache is None:
            return ids
        start = cache.get_seq_length()
        columns = self._source[:, start : start + ids.shape[1]]
        return columns.repeat_interleave(len(ids) // len(columns), 0) if columns.shape[1] else ids


_ACTIVE: ContextVar[TrainedTable | None] = ContextVar("active", default=None)  # Threads may share a model.


def active_table(base: nn.Module) -> TrainedTable | None:
    """Return the table by which forwards of this base model read ids here, if there is one."""
    table = _ACTIVE.get()
    return table if table is not None and table.base is base else None


def read_trained_ids(base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Give a forward of the base model embeddings and places instead of ids; it is a forward pre-hook."""
    table = active_table(base)
    ids = kwargs.get("input_ids")
    if table is None or ids is None:
        return None
    ids = table.source_of(ids, kwargs.get("cache"))
    rest = {name: value for name, value in kwargs.items() if name != "input_ids"}
    return args, rest | {"inputs_embeds": table.embed(ids)} | table.layer_arguments(table.columns(ids))
