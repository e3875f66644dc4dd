"""Put trained embeddings into the vocabulary of a causal model, as tokens that the model reads and never writes.

The head must not share the table of the embeddings: with a tied head the model writes tokens of the prompt. Head rows
of zero are not enough either, because a sample may take such a token. So each added token has the head row of the
token of the vocabulary that the model is farthest from writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prompt_tuning.engine.base_checks import are_equal
from prompt_tuning.errors import AdapterError, ModelError

POSITIONS = 128
"""The number of last positions of a row whose logits are read."""


@dataclass(frozen=True)
class HeadRow:
    """The head row that all added tokens share, and how unlikely it makes them.

    Args:
        token: the id of the token of the vocabulary that it is copied from.
        probability: the largest probability of one added token that was measured.
        positions: the number of positions that it was measured at.
    """

    token: int
    probability: float
    positions: int


def add_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[int]:
    """Add special tokens to a tokenizer and return their ids.

    Raises:
        AdapterError: the tokenizer has a token of one of the names.
    """
    vocabulary = tokenizer.get_vocab()
    taken = [name for name in names if name in vocabulary]
    if taken:
        raise AdapterError(
            f"{tokenizer.name_or_path}: its tokenizer has a token {taken[0]} already. Name the task otherwise, as "
            "NAME=RUN."
        )
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


@torch.no_grad()
def add_embeddings(model: PreTrainedModel, ids: Sequence[int], vectors: torch.Tensor) -> list[int]:
    """Untie the head, make room in both tables, and write the embeddings of the added tokens.

    Args:
        model: a causal model. It is changed.
        ids: of the N added tokens. Some may be rows of the table that the tokenizer has no token for.
        vectors: `[N, H]`, what the model is to read at these tokens.

    Returns:
        The ids that the model must never write: those of the added tokens, and of rows that only fill the table.

    Raises:
        ModelError: the model has no head, or reads something else than a multiple of its table's rows.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        raise ModelError(
            f"{type(model).__name__}: it names no output layer, so that nothing can be exported. "
            "Predict with prompt_tuning.Predictor."
        )
    scale = embedding_scale(model)
    if head.weight is embeddings.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    size = len(embeddings.weight)
    if max(ids) >= size:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    weight = model.get_input_embeddings().weight
    weight[size:] = 0
    weight[list(ids)] = (vectors / scale).to(weight)
    return sorted({*range(size, len(weight)), *ids})


@torch.no_grad()
def embedding_scale(model: PreTrainedModel) -> float:
    """Return what a model's embedding layer multiplies the rows of its table by: sqrt(H) in Gemma's family, else 1.

    Raises:
        ModelError: the layer does something else with the rows.
    """
    embeddings = model.get_input_embeddings()
    weight = embeddings.weight
    ids = torch.linspace(len(weight) // 4, len(weight) // 2, 8, device=weight.device).long()
    rows, read = weight[ids].float(), embeddings(ids).float()
    if read.shape == rows.shape:
        scale = ((read * rows).sum() / (rows * rows).sum()).item()
        tolerance = 1e-4 if weight.dtype == torch.float32 else 1e-2
        if torch.allclose(read, scale * rows, rtol=tolerance, atol=tolerance * scale * rows.abs().max().item()):
            return scale
    raise ModelError(
        f"{type(model).__name__}: its embedding layer does more than to scale the rows of its table, so that trained "
        "embeddings cannot be rows. Predict with prompt_tuning.Predictor."
    )


@torch.no_grad()
def silence(model: PreTrainedModel, silent: Sequence[int], num_tokens: int, rows: Iterable[Sequence[int]]) -> HeadRow:
    """Give tokens the head row of the token that the model is farthest from writing, and return what was measured.

    Args:
        model: a model from `add_embeddings`. Its head is changed.
        silent: the ids that the model must never write.
        num_tokens: the number of tokens of the base model's tokenizer, from which the row is taken.
        rows: token ids of rows, with their prompts. The distance of a token is the smallest over all their positions
            between its logit and the largest one.
    """
    least: torch.Tensor | None = None  # The distance of every token.
    most: torch.Tensor | None = None  # The largest log-probability of every token.
    positions = 0
    for row in rows:
        ids = torch.tensor([list(row)], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -POSITIONS:].float()
        logits[:, silent] = -torch.inf
        distance = (logits.amax(-1, keepdim=True) - logits).amin(0)
        likelihood = logits.log_softmax(-1).amax(0)
        least = distance if least is None else torch.minimum(least, distance)
        most = likelihood if most is None else torch.maximum(most, likelihood)
        positions += len(logits)
    if least is None or most is None:
        raise AdapterError("no rows to measure the head with. Give rows by --check FILE.")
    least[silent] = -torch.inf
    least[num_tokens:] = -torch.inf
    token = int(least.argmax())
    head = model.get_output_embeddings()
    head.weight[silent] = head.weight[token].clone()
    if head.bias is not None:
        head.bias[silent] = head.bias[token].clone()
    return HeadRow(token, most[token].exp().item(), positions)


@torch.no_grad()
def check_rows_are_read(model: PreTrainedModel, ids: Sequence[int], vectors: torch.Tensor, row: Sequence[int]) -> None:
    """Raise a ModelError unless the added tokens before a row act as their embeddings do.

    Args:
        model: a model from `add_embeddings`.
        ids: of the P added tokens.
        vectors: `[P, H]`, what was trained.
        row: token ids.
    """
    device = model.device
    by_ids = model(input_ids=torch.tensor([[*ids, *row]], device=device), use_cache=False).logits[0, -1]
    embedded = model.get_input_embeddings()(torch.tensor(list(row), device=device))
    embeds = torch.cat([vectors.to(embedded), embedded])[None]
    expected = model(inputs_embeds=embeds, use_cache=False).logits[0, -1]
    if not are_equal(by_ids, expected):
        raise ModelError(
            f"{type(model).__name__}: tokens do not act as their embeddings do, so that the export would write other "
            "texts. Predict with prompt_tuning.Predictor."
        )
