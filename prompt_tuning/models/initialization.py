"""What a prompt starts from: it decides more than the prompt's length (Lester et al. 2021, section 3.2)."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from prompt_tuning.arguments.arguments import PromptArguments
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import AdapterError, OverlongError, RecipeError
from prompt_tuning.hub.download import adapter_folder

logger = logging.getLogger(__name__)

DEFAULT_VIRTUAL_TOKENS = 20


def initial_text(
    args: PromptArguments, encoder: Encoder, train_rows: Dataset | IterableDataset | None, seed: int
) -> str | None:
    """The text whose tokens the prompt starts from; None where it starts from something else.

    Demonstrations are training rows drawn with the seed, each as the template writes it with its target; in the place
    of one that is over its budget comes another, and the log says so.

    Raises:
        OverlongError: init demonstrations, and every training row is over its budget.
        RecipeError: init demonstrations, and fewer are within it; init template, and a row's own text comes first.
    """
    if METHODS[args.method].starts_from_text or args.init == "text":
        return args.init_text
    if args.init == "class_labels":
        return " ".join(args.init_labels or ())
    if args.init == "demonstrations" and train_rows is not None:
        return "\n\n".join(_drawn(encoder, train_rows, args.init_demonstrations, seed)) + "\n\n"
    if args.init == "template" and train_rows is not None:
        text = encoder.common_prefix()
        if not text.strip():
            raise RecipeError(
                f"init template: template {encoder.template.name} opens with a column, so nothing of its own stands "
                "there to start from; set num_demonstrations, or init: text or demonstrations"
            )
        return text
    return None


def _drawn(encoder: Encoder, rows: Dataset, count: int, seed: int) -> list[str]:
    """Drawn rows that are within their budget, written as demonstrations."""
    draw = random.Random(seed)
    first = draw.sample(range(len(rows)), min(count, len(rows)))
    texts: list[str] = []
    overlong: list[OverlongError] = []
    for number in dict.fromkeys([*first, *draw.sample(range(len(rows)), len(rows))]):
        try:
            texts.append(encoder.demonstration(rows[number]))
        except OverlongError as error:
            overlong.append(error)
        if len(texts) == count:
            break
    if not texts:
        raise overlong[-1]
    if len(texts) < count:
        raise RecipeError(
            f"init_demonstrations is {count}, more than the {len(texts)} training rows that fit max_source_tokens; "
            "lower it"
        )
    if overlong:
        logger.warning(
            "init demonstrations: %d rows that were drawn are over their budget, others came", len(overlong)
        )
    return texts


def initial_ids(text: str | None, tokenizer: PreTrainedTokenizerBase, init: str) -> list[int] | None:
    """Token ids of the text that the prompt starts from.

    Raises:
        RecipeError: the text has no tokens.
    """
    if text is None:
        return None
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise RecipeError(f"init {init}: its text has no tokens; write the words the prompt should start from")
    return ids


def prompt_length(args: PromptArguments, ids: Sequence[int] | None) -> int:
    """The number of virtual tokens: as given, or that of the text or adapter the prompt starts from, or 20.

    Raises:
        RecipeError: the text is longer than num_virtual_tokens, so some of it would be lost.
    """
    wanted = args.num_virtual_tokens
    if ids is not None and wanted and wanted < len(ids):
        raise RecipeError(
            f"init {args.init} has {len(ids)} tokens and num_virtual_tokens is {wanted}; "
            "leave num_virtual_tokens out to follow the text, or shorten it"
        )
    if ids is not None:
        return wanted or len(ids)
    if args.init == "adapter":
        return wanted or len(saved_prompt(args.init_adapter))
    return wanted or DEFAULT_VIRTUAL_TOKENS


def frequent_ids(labels: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """The most frequent ordinary tokens of the targets, the first of equals as they come."""
    special = {-100, *tokenizer.all_special_ids}
    tokens = Counter(token for row in labels for token in row if token not in special)
    return [token for token, _ in tokens.most_common(count)]


def initial_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PromptArguments,
    length: int,
    seed: int,
    ids: Sequence[int] | None = None,
) -> torch.Tensor:
    """Where a soft prompt starts, `[P, H]` in float32.

    Args:
        args: whose `init` decides. random: normal noise with the mean and deviation of the model's own embeddings.
            vocab: embeddings of tokens drawn without replacement, special tokens left out. adapter: a saved prompt
            (SPoT, Vu et al. 2022). Else the embeddings of `ids`. What is shorter than P is repeated.
    """
    embeddings = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)
    if args.init == "adapter":
        saved = saved_prompt(args.init_adapter)
        if saved.shape[1] != embeddings.embedding_dim:
            raise AdapterError(
                f"init_adapter {args.init_adapter} has prompts of width {saved.shape[1]}, the model's embeddings have "
                f"{embeddings.embedding_dim}; start from an adapter of the same model"
            )
        return saved[torch.arange(length) % len(saved)].float()
    with torch.no_grad():
        if args.init == "random":
            count = min(len(tokenizer), embeddings.num_embeddings)
            # Looked up, since some models scale what they look up (Gemma, mBART).
            weight = embeddings(torch.arange(count, device=embeddings.weight.device)).float()
            noise = torch.randn(length, weight.shape[1], generator=generator)
            return noise * weight.std(0).cpu() + weight.mean(0).cpu()
        if args.init == "vocab":
            ordinary = _ordinary_ids(model, tokenizer)
            ids = [ordinary[index] for index in torch.randperm(len(ordinary), generator=generator)[:length].tolist()]
        repeated = torch.tensor(ids)[torch.arange(length) % len(ids)]
        return embeddings(repeated.to(embeddings.weight.device)).float().cpu()


def initial_prefix(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PromptArguments,
    length: int,
    seed: int,
    ids: Sequence[int] | None = None,
) -> torch.Tensor:
    """Where a causal model's prefix starts, as PEFT holds it, `[P, layers * 2 * heads * D]` in float32.

    The keys and values that the model itself computes of `ids` (Li & Liang 2021, section 7.4), or without them of
    sampled tokens; for init random noise with the mean and deviation of those, layer by layer. A text shorter than P
    is repeated before the model reads it.
    """
    if ids is None:
        ordinary = _ordinary_ids(model, tokenizer)
        ids = random.Random(seed).sample(ordinary, min(length, len(ordinary)))
    repeated = torch.tensor(ids)[torch.arange(length) % len(ids)]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=repeated[None].to(model.device), cache=cache, use_cache=True)
    states = [each.float().cpu() for layer in cache.layers for each in (layer.keys, layer.values)]
    if any(each.shape[2] != length for each in states):
        raise RecipeError(
            f"a prefix of {length} tokens is longer than the model's sliding window; shorten the text it starts from"
        )
    if args.init == "random":
        generator = torch.Generator().manual_seed(seed)
        states = [torch.randn(each.shape, generator=generator) * each.std() + each.mean() for each in states]
    # [1, heads, P, D] each -> [P, layers * 2, heads, D] -> [P, layers * 2 * heads * D]
    return torch.stack([each[0].transpose(0, 1) for each in states], 1).flatten(1)


def _ordinary_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that are embedded and not special."""
    known = range(min(len(tokenizer), model.get_input_embeddings().num_embeddings))
    return sorted(set(known) - set(tokenizer.all_special_ids))


def saved_prompt(folder: str | Path) -> torch.Tensor:
    """The soft prompt of an adapter, by its folder or hub id, `[P, H]`.

    Raises:
        AdapterError: no adapter there, or one without a soft prompt.
    """
    file = adapter_folder(folder) / "adapter_model.safetensors"
    tensors = load_file(file) if file.is_file() else {}
    if "prompt_embeddings" not in tensors:
        raise AdapterError(f"init_adapter {folder}: no soft prompt there; name the folder of one that train wrote")
    return tensors["prompt_embeddings"]
