"""Choose where a prompt starts, which matters more than its length (Lester et al. 2021, section 3.2)."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from prompt_tuning.arguments.methods import METHODS, find_method
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.encoding.control_tokens import control_tokens
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.engine.adapter_weights import check_weights
from prompt_tuning.engine.trained_config import TrainedTokensConfig
from prompt_tuning.engine.trained_tokens import layer_stacks
from prompt_tuning.errors import AdapterError, EmptyRowError, OverlongError, RecipeError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.adapter_config import read_adapter_config
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted

logger = logging.getLogger(__name__)

DEFAULT_VIRTUAL_TOKENS = 20


def initial_text(
    args: PromptArguments, encoder: Encoder, train_rows: Dataset | IterableDataset | None, seed: int
) -> str | None:
    """Return the marked text that the prompt starts from, or None if `init` does not name a text.

    Demonstrations are training rows that the seed draws, written by the template with their targets. An empty row,
    or one over its budget, is replaced by another, and the log says so.

    Args:
        args: the method and its `init`.
        encoder: writes the rows by the template.
        train_rows: the training rows; None if no row is needed.
        seed: draws the demonstrations.

    Raises:
        OverlongError: init is demonstrations, and every training row is over its budget.
        EmptyRowError: init is demonstrations, and the template leaves every training row empty.
        RecipeError: init is demonstrations, and too few training rows are within their budget. Or init is template,
            and the template begins with a column.
    """
    if METHODS[args.method].starts_from_text or args.init == "text":
        return args.init_text
    if args.init == "class_labels":
        return " ".join(args.init_labels or ())
    if args.init == "demonstrations" and train_rows is not None:
        limit = args.init_demonstration_tokens
        if limit:
            encoder = replace(
                encoder, max_source_tokens=limit, truncate=(), source_setting="init_demonstration_tokens"
            )
        return "\n\n".join(_draw_demonstrations(encoder, train_rows, args.init_demonstrations, seed)) + "\n\n"
    if args.init == "template" and train_rows is not None:
        text = encoder.texts.common_prefix()
        if not text.strip():
            raise RecipeError(
                f"init template: template {encoder.template.name} begins with a column, so rows share no text to "
                "start from. Set num_demonstrations, or init: text or demonstrations."
            )
        return text
    return None


def _draw_demonstrations(encoder: Encoder, rows: Dataset, count: int, seed: int) -> list[str]:
    """Return `count` drawn rows that are within their budget, written as demonstrations."""
    draw = random.Random(seed)
    first = draw.sample(range(len(rows)), min(count, len(rows)))
    substitutes = draw.sample(range(len(rows)), len(rows))
    texts: list[str] = []
    unfit: list[OverlongError | EmptyRowError] = []
    for number in dict.fromkeys([*first, *substitutes]):
        try:
            texts.append(encoder.demonstration(rows[number]))
        except (OverlongError, EmptyRowError) as error:
            unfit.append(error)
        if len(texts) == count:
            break
    if not texts:
        raise unfit[-1]
    if len(texts) < count:
        raise RecipeError(
            f"init_demonstrations is {count}, and "
            f"{counted(len(texts), 'training row', f'fit {encoder.source_setting}')}. Lower it."
        )
    if unfit:
        rows_replaced = counted(len(unfit), "drawn row")
        logger.warning("init demonstrations: %s over budget or empty replaced by others", rows_replaced)
    return texts


def initial_ids(text: str | None, tokenizer: PreTrainedTokenizerBase, init: str) -> list[int] | None:
    """Return the token ids of the marked text that the prompt starts from, or None if there is no text.

    Raises:
        RecipeError: the text has no tokens.
    """
    if text is None:
        return None
    ids = control_tokens(tokenizer).encode(text, add_special_tokens=False)
    if not ids:
        raise RecipeError(f"init {init}: its text has no tokens. Write the words that the prompt starts from.")
    return ids


def prompt_length(args: PromptArguments, ids: Sequence[int] | None) -> int:
    """Return the number of virtual tokens.

    By default it is the length of the text or adapter that the prompt starts from, else 20. It is 0 if only text of
    the template is trained.

    Args:
        args: num_virtual_tokens and `init`.
        ids: the tokens of the text that the prompt starts from, if any.

    Raises:
        RecipeError: the text is longer than num_virtual_tokens, so its end would be lost.
        AdapterError: init_adapter holds no soft prompt.
    """
    length = args.num_virtual_tokens
    if length == 0:
        return 0
    if ids is not None and length and length < len(ids):
        raise RecipeError(
            f"init {args.init} has {counted(len(ids), 'token')} and num_virtual_tokens is {length}. "
            "Leave num_virtual_tokens out to follow the text, or shorten it."
        )
    if ids is not None:
        return length or len(ids)
    if args.init == "adapter":
        saved = saved_prompt(str(args.init_adapter))
        return length or len(saved)
    return length or DEFAULT_VIRTUAL_TOKENS


def frequent_ids(labels: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """Return the `count` most frequent ordinary tokens of the targets; of equal ones those that occur first."""
    special = {-100, *tokenizer.all_special_ids}
    frequencies: Counter[int] = Counter()
    for row in labels:
        frequencies.update(token for token in row if token not in special)
    return [token for token, _ in frequencies.most_common(count)]


@torch.no_grad()
def initial_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PromptArguments,
    length: int,
    *,
    seed: int,
    ids: Sequence[int] | None = None,
) -> torch.Tensor:
    """Return the start of a soft prompt, `[P, H]` in float32.

    A start that is shorter than P is repeated.

    Args:
        model: the base model, whose embeddings are read.
        tokenizer: says which tokens are special.
        args: its `init` decides. random is normal noise with the mean and deviation of the model's embeddings. vocab
            is the embeddings of ordinary tokens, drawn without replacement. adapter is a saved prompt (SPoT, Vu et al.
            2022). Every other init is the embeddings of `ids`.
        length: P.
        seed: draws noise and tokens.
        ids: the tokens that the prompt starts from, if `init` names a text.

    Raises:
        AdapterError: init_adapter holds no soft prompt, or one of another width.
    """
    generator = torch.Generator().manual_seed(seed)
    if args.init == "adapter":
        return _prompt_of_adapter(model, str(args.init_adapter), length)
    if args.init == "random":
        return _prompt_of_noise(model, tokenizer, length, generator)
    if args.init == "vocab":
        ordinary = torch.tensor(_ordinary_ids(model, tokenizer))
        ids = ordinary[torch.randperm(len(ordinary), generator=generator)[:length]].tolist()
    embeddings = model.get_input_embeddings()
    return embeddings(_repeat_ids(ids or (), length).to(embeddings.weight.device)).float().cpu()


def _prompt_of_adapter(model: PreTrainedModel, folder: str, length: int) -> torch.Tensor:
    saved = saved_prompt(folder)
    width = model.get_input_embeddings().embedding_dim
    if saved.shape[1] != width:
        raise AdapterError(
            f"init_adapter {folder} has prompts of width {saved.shape[1]}, the model's embeddings have {width}. Start "
            "from an adapter of the same model."
        )
    return saved[torch.arange(length) % len(saved)].float()


def _prompt_of_noise(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int, generator: torch.Generator
) -> torch.Tensor:
    """Return normal noise `[P, H]` with the mean and deviation of the model's embeddings."""
    embeddings = model.get_input_embeddings()
    count = min(len(tokenizer), embeddings.num_embeddings)
    # Some models (Gemma, mBART) scale the embeddings that they look up, so the weight itself has another deviation.
    scaled = embeddings(torch.arange(count, device=embeddings.weight.device)).float()
    noise = torch.randn(length, scaled.shape[1], generator=generator)
    return noise * scaled.std(0).cpu() + scaled.mean(0).cpu()


@torch.no_grad()
def initial_prefix(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PromptArguments,
    length: int,
    *,
    seed: int,
    ids: Sequence[int] | None = None,
) -> torch.Tensor:
    """Return the start of a causal model's prefix as PEFT holds it, `[P, layers * 2 * heads * D]` in float32.

    It is the keys and values that the model computes for `ids` (Li & Liang 2021, section 7.4). A text shorter than P
    is repeated before the model reads it.

    Args:
        model: the base model.
        tokenizer: says which tokens are special.
        args: if its `init` is random, the start is noise with the mean and deviation of the keys and values, layer by
            layer.
        length: P.
        seed: draws noise and tokens.
        ids: the tokens that the prefix starts from, by default drawn ordinary tokens.

    Raises:
        RecipeError: P is longer than the model's sliding window.
    """
    if ids is None:
        ordinary = _ordinary_ids(model, tokenizer)
        ids = random.Random(seed).sample(ordinary, min(length, len(ordinary)))
    cache = DynamicCache(config=model.config)
    model(input_ids=_repeat_ids(ids, length)[None].to(model.device), cache=cache, use_cache=True)
    # [1, heads, P, D] for the keys and then the values of each layer
    states: list[torch.Tensor] = []
    for layer in cache.layers:
        states += [layer.keys.float().cpu(), layer.values.float().cpu()]
    if any(state.shape[2] != length for state in states):
        raise RecipeError(
            f"a prefix of {counted(length, 'token')} is longer than the model's sliding window. Shorten the text it "
            "starts from."
        )
    if args.init == "random":
        generator = torch.Generator().manual_seed(seed)
        states = [torch.randn(state.shape, generator=generator) * state.std() + state.mean() for state in states]
    # [layers * 2, heads, P, D] -> [P, layers * 2, heads, D] -> [P, layers * 2 * heads * D]
    return torch.cat(states).permute(2, 0, 1, 3).flatten(1)


@torch.no_grad()
def layer_scales(
    base: PreTrainedModel, rows: Sequence[Sequence[int]], targets: Sequence[Sequence[int]] = ()
) -> torch.Tensor:
    """Return for each layer `[L]` the median size of its input, in which the vectors of trained tokens are measured.

    The layers of an encoder are followed by those of its decoder. The size is the root mean square of a token's input.
    A row's first token does not count, since models give it inputs that are a hundred times larger.

    Args:
        base: the base model.
        rows: ordinary token ids of some rows; each has two or more.
        targets: for an encoder-decoder the token ids of their targets, each with its end.
    """
    layers = list(chain.from_iterable(layer_stacks(base)))
    sizes: list[list[torch.Tensor]] = [[] for _ in layers]
    hooks = []
    for layer, of_layer in zip(layers, sizes, strict=True):

        def keep(_: torch.nn.Module, args: tuple, of_layer: list[torch.Tensor] = of_layer) -> None:
            of_layer.append(args[0][0, 1:].float().square().mean(-1).sqrt())

        hooks.append(layer.register_forward_pre_hook(keep))
    try:
        for number, row in enumerate(rows):
            further: dict[str, Any] = {"logits_to_keep": 1}
            if base.config.is_encoder_decoder:
                further = {"labels": torch.tensor([list(targets[number])], device=base.device)}
            base(input_ids=torch.tensor([list(row)], device=base.device), use_cache=False, **further)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([torch.cat(of_layer).median() for of_layer in sizes]).cpu()


def _repeat_ids(ids: Sequence[int], length: int) -> torch.Tensor:
    """Return the first `length` ids of their endless repetition, `[P]`."""
    return torch.tensor(ids)[torch.arange(length) % len(ids)]


def _ordinary_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that have an embedding and are not special."""
    embedded = range(min(len(tokenizer), model.get_input_embeddings().num_embeddings))
    return sorted(set(embedded) - set(tokenizer.all_special_ids))


def saved_prompt(folder: str | Path) -> torch.Tensor:
    """Return the soft prompt of an adapter, `[P, H]`.

    Args:
        folder: a folder or a hub id.

    Raises:
        AdapterError: the folder holds no soft prompt, a damaged one, or one with trained text or layer vectors.
    """
    run = RunFolder(adapter_folder(folder))
    config = read_adapter_config(run) if run.adapter_config.is_file() else None
    if config is None or not find_method(config.peft_type).trains_embeddings or not run.adapter_weights.is_file():
        raise AdapterError(f"init_adapter {folder}: no soft prompt there. Name the folder of one that train wrote.")
    if isinstance(config, TrainedTokensConfig):
        raise AdapterError(
            f"init_adapter {folder}: its soft prompt was trained together with trained text or layer vectors, which "
            "init leaves out. Set adapter instead, to train all of it further."
        )
    return check_weights(config, run.path)["prompt_embeddings"]
