"""Describe a trained prompt from outside: nearest tokens, norms, the distance from its start, and a picture.

None of these explains what the prompt does, and nearest tokens do so least of all. For any text there are prompts next
to it that solve another task (Khashabi et al. 2022). Trained prompts lie apart from the embeddings of text (Bailey et
al. 2023).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from prompt_tuning.arguments.methods import METHODS, find_method
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.engine.trained_config import TrainedTokensConfig
from prompt_tuning.engine.trained_tokens import check_start_ids
from prompt_tuning.errors import AdapterError, DataError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.models.base_model import check_adapter, find_base_model
from prompt_tuning.models.encoder_decoder_prefix import EncoderDecoderPrefixConfig
from prompt_tuning.models.loading import build_empty_model, load_base_model, load_config, load_tokenizer
from prompt_tuning.models.weight_files import weight_map
from prompt_tuning.studies.figures import new_figure, write_png
from prompt_tuning.studies.inspect_layers import (
    describe_trained_tokens,
    layer_vectors_table,
    mean_and_range,
    rounded,
)
from prompt_tuning.support.files import atomic_folder, read_json, write_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.tables import text_table
from prompt_tuning.support.text import REPLACEMENT, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Tensors = dict[str, torch.Tensor]  # Those of an adapter's file, by their names.

FILES = ("inspection.json", "inspection.png")
CAUTION = """\
These readings do not explain what the prompt does. Prompts that solve a task can lie next to any text, also that of a
contradictory task (Khashabi et al. 2022, Prompt Waywardness, NAACL, aclanthology.org/2022.naacl-main.266). Trained
prompts lie apart from the embeddings of natural language, so comparing them may mislead (Bailey et al. 2023, Soft
prompting might be a bug, not a feature, ICML workshop on Challenges in Deployable Generative AI)."""


def inspect(
    adapter: str,
    model_name_or_path: str | None = None,
    nearest: int = 5,
    output: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Read a trained prompt, write inspection.json and inspection.png, and return what the former holds.

    Of the base model only the input embeddings are read. A prefix, which is keys and values, needs not even these.

    Args:
        adapter: a folder or a hub id.
        model_name_or_path: the base model, if it has moved.
        nearest: how many vocabulary tokens to name for each virtual token.
        output: the folder to write to; by default the adapter's.
        trust_remote_code: run the Python code that is with the base model.

    Raises:
        PromptTuningError: there is no adapter with virtual tokens, no such base model, somebody else's file would be
            replaced, or matplotlib is not installed.
    """
    folder = adapter_folder(adapter)
    if folder != Path(adapter) and output is None:
        raise AdapterError(f"{adapter} is in the hub's cache. Name a folder to write to, such as --output inspected.")
    target = Path(output) if output else folder
    _check_target(target)
    config, tensors = _read_adapter(folder)
    base = _base_model(config, folder, model_name_or_path)
    args = ModelArguments(base, config.revision or "main", trust_remote_code=trust_remote_code)
    report = _describe(config, tensors, folder, args, nearest, renamed=bool(model_name_or_path))
    report = {"adapter": adapter, **report, "caution": CAUTION}
    with atomic_folder(target) as partial:
        write_json(partial / FILES[0], report)
        _draw(report, partial / FILES[1])
    return report


def _check_target(folder: Path) -> None:
    """Raise an AdapterError if a folder holds a file that would be replaced, and no earlier `inspect` wrote it."""
    held = [folder / name for name in FILES if os.path.lexists(folder / name)]
    try:
        report = read_json(folder / FILES[0], dict[str, Any]) if (folder / FILES[0]).is_file() else {}
        is_ours = not held or "caution" in report
    except (OSError, DataError):
        is_ours = False
    if not is_ours:
        raise AdapterError(
            f"{held[0]}: it would be replaced, and is not of an earlier `prompt-tuning inspect`. Name another folder "
            "with --output, or move the file."
        )


def _base_model(config: PeftConfig, folder: Path, model_name_or_path: str | None) -> str:
    """Return the name of the base model; that of a prefix, which is not read, as the adapter has it."""
    if model_name_or_path:
        return model_name_or_path
    is_prefix = find_method(config.peft_type).trains_keys_and_values
    return config.base_model_name_or_path if is_prefix else find_base_model(config, folder)


def _describe(
    config: PeftConfig,
    tensors: Tensors,
    folder: Path,
    args: ModelArguments,
    nearest: int,
    *,
    renamed: bool,
) -> dict[str, Any]:
    """Return the report without the adapter's name and the caution."""
    method = config.peft_type.value
    is_prefix = find_method(method).trains_keys_and_values
    initial = RunFolder(folder).initial_prompt
    weight = tensors["prompt_embeddings"]
    report = {"method": method, "model": args.model_name_or_path, "virtual_tokens": len(weight)}
    report["initial_prompt"] = str(initial) if initial.is_file() else None
    if isinstance(config, TrainedTokensConfig):
        report |= describe_trained_tokens(config, tensors)
    if is_prefix:
        report |= _describe_prefix(weight, config)
    else:
        model_config = load_config(args)
        check_adapter(config, folder, model_config, revision=args.model_revision, renamed=renamed)
        vocabulary = _input_embeddings(args, model_config)
        tokenizer = load_tokenizer(args)
        text = tensors.get("text_embeddings", weight[:0])
        report |= _describe_embeddings(torch.cat([weight, text]), vocabulary, tokenizer, nearest)
        if len(text):
            check_start_ids(config, len(vocabulary))
            starts = config.text_token_ids
            moved = rounded((text - vocabulary[starts]).norm(dim=1))
            for token, id, distance in zip(report["tokens"][len(weight) :], starts, moved, strict=True):
                token |= {"start": token_text(tokenizer, id, special=False), "moved": distance}
    if initial.is_file():
        for token, distance in zip(report["tokens"], _distances(weight, initial), strict=False):
            token["moved"] = distance
    return report


def _read_adapter(folder: Path) -> tuple[PeftConfig, Tensors]:
    """Return the configuration and the tensors, with `prompt_embeddings` `[P, H]`, or `[P, W]` of a prefix."""
    config = load_adapter_config(folder)
    if not find_method(config.peft_type).has_prompt:
        expected = ", ".join(row.name.upper() for row in METHODS.values() if row.has_prompt)
        raise AdapterError(f"{folder}: a {config.peft_type.value} adapter; expected {expected}. Name another one.")
    tensors = {name: tensor.float() for name, tensor in load_file(RunFolder(folder).adapter_weights).items()}
    # PEFT saves an encoder-decoder prompt with twice its rows, and uses the first half.
    return config, tensors | {"prompt_embeddings": tensors["prompt_embeddings"][: config.num_virtual_tokens]}


def read_start(file: Path) -> torch.Tensor:
    """Return the embeddings that a soft prompt started from, `[P, H]`; raise an AdapterError for another file."""
    try:
        return load_file(file)["initial_prompt"].float()
    except (SafetensorError, KeyError) as error:
        raise AdapterError(f"{file}: not the embeddings that a prompt started from ({error}). Remove it.") from error


def _distances(weight: torch.Tensor, initial: Path) -> list[float]:
    """Return the distance of each virtual token from its start, `[P]`."""
    start = read_start(initial)
    if start.shape != weight.shape:
        shapes = f"{list(start.shape)}, the trained prompt {list(weight.shape)}"
        raise AdapterError(f"{initial} is {shapes}; it belongs to another run. Remove it.")
    return rounded((weight - start).norm(dim=1))


def _input_embeddings(args: ModelArguments, config: PretrainedConfig) -> torch.Tensor:
    """Return the embeddings of all tokens, `[V, H]`. Only one tensor is read if the model's files allow it."""
    model = build_empty_model(args, config)
    embeddings = model.get_input_embeddings()
    if type(embeddings) is nn.Embedding:  # Other classes scale what they look up.
        names = []
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter is embeddings.weight:
                names += [name, name.removeprefix(f"{model.base_model_prefix}.")]
        tensor = _read_tensor(args, names)
        if tensor is not None:
            return tensor.float()
    embeddings = load_base_model(args, config).get_input_embeddings()
    with torch.no_grad():
        return embeddings(torch.arange(embeddings.num_embeddings)).float()


def _read_tensor(args: ModelArguments, names: list[str]) -> torch.Tensor | None:
    """Return the first of the named tensors in the model's safetensors, which are one file or several."""
    options = {"revision": args.model_revision, "_raise_exceptions_for_missing_entries": False}
    index = cached_file(args.model_name_or_path, RunFolder.MODEL_INDEX, **options)
    files = weight_map(Path(index)) if index else {}
    for name in names:
        path = cached_file(args.model_name_or_path, files.get(name, RunFolder.MODEL_WEIGHTS), **options)
        if not path:
            continue
        with safe_open(path, "pt") as weights:
            if name in set(weights.keys()):
                return weights.get_tensor(name)
    return None


def _describe_embeddings(
    weight: torch.Tensor, vocabulary: torch.Tensor, tokenizer: PreTrainedTokenizerBase, nearest: int
) -> dict[str, Any]:
    """Compare the prompt `[P, H]` with the vocabulary `[V, H]`."""
    vocabulary = vocabulary[: len(tokenizer)]  # Models have more rows than tokens, to round the number up.
    norms = vocabulary.norm(dim=1)
    cosines, ids = (F.normalize(weight) @ F.normalize(vocabulary).T).topk(min(nearest, len(vocabulary)))
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens = []
    for number, (vector, vector_ids, vector_cosines) in enumerate(zip(weight, ids.tolist(), cosines, strict=True)):
        near = []
        for id, cosine in zip(vector_ids, vector_cosines, strict=True):
            text = token_text(tokenizer, id, special=id in special)
            near.append({"id": id, "token": text, "cosine": rounded(cosine)})
        percentile = round(100 * (norms < vector.norm()).float().mean().item(), 1)
        tokens.append(
            {"token": number, "norm": rounded(vector.norm()), "norm_percentile": percentile, "nearest": near}
        )
    low, high = rounded(norms.quantile(torch.tensor([0.05, 0.95])))
    size = {"size": len(vocabulary), "norm_mean": rounded(norms.mean()), "norm_5th": low, "norm_95th": high}
    return {"vocabulary": size, "tokens": tokens, "similarity": rounded(F.normalize(weight) @ F.normalize(weight).T)}


def token_text(tokenizer: PreTrainedTokenizerBase, id: int, *, special: bool) -> str:
    """Return a token for people to read: a special token by its name, other tokens as quoted text.

    A part of a character is no text, and is shown as the tokenizer's piece.
    """
    piece = tokenizer.convert_ids_to_tokens(id)
    if special:
        return piece
    text = tokenizer.decode([id], clean_up_tokenization_spaces=False)
    if REPLACEMENT in text or not text:
        return f"piece {piece!r}"
    # A SentencePiece tokenizer decodes a lone token without the space it stands for.
    return repr(f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text)


def _describe_prefix(weight: torch.Tensor, config: PeftConfig) -> dict[str, Any]:
    """Return the norms of keys and values by layer, and the similarity of virtual tokens.

    The similarity is the mean cosine over the keys and the values of all layers.

    Args:
        weight: keys and values of all layers, `[P, W]`.
        config: of the prefix.
    """
    if isinstance(config, EncoderDecoderPrefixConfig):
        names = []
        widths = []
        places = config.places or {}
        for place in ("encoder", "decoder", "cross"):  # The weight has this order.
            num_layers, num_heads, head_size = places.get(place, (0, 0, 0))
            for layer in range(num_layers):
                names.append(f"{place} {layer}")
                widths += [num_heads * head_size] * 2
    else:
        names = list(map(str, range(config.num_layers)))
        widths = [weight.shape[1] // (2 * config.num_layers)] * (2 * config.num_layers)
    layers = []
    similarity = torch.zeros(len(weight), len(weight))
    slots = weight.split(widths, dim=1)  # Every layer has its keys and then its values.
    for name, keys, values in zip(names, slots[::2], slots[1::2], strict=True):
        layers.append(
            {"layer": name, "key_norms": rounded(keys.norm(dim=1)), "value_norms": rounded(values.norm(dim=1))}
        )
        for slot in (keys, values):
            similarity += F.normalize(slot) @ F.normalize(slot).T
    tokens = [{"token": number} for number in range(len(weight))]
    return {"layers": layers, "tokens": tokens, "similarity": rounded(similarity / len(slots))}


def inspection_text(report: dict[str, Any]) -> str:
    """Return a report as text, with a table of virtual tokens, or of layers for a prefix.

    Args:
        report: of `inspect`.
    """
    lines = [
        f"{report['adapter']}: {counted(report['virtual_tokens'], 'virtual token')} ({report['method']}) of "
        f"{report['model']}"
    ]
    if report.get("text_tokens"):
        lines.append(f"{counted(report['text_tokens'], 'trained token')} inside the template")
    is_prefix = "layers" in report
    if is_prefix:
        lines.append("a prefix is keys and values, not embeddings, so nearest tokens do not exist for it")
    else:
        size, mean, low, high = report["vocabulary"].values()
        lines.append(f"norms of the vocabulary's {size:,} tokens: mean {mean:.3f}, 90 % in {low:.3f} to {high:.3f}")
    if report["initial_prompt"]:
        moved = [token["moved"] for token in report["tokens"] if "start" not in token]
        mean, low, high = mean_and_range(moved)
        lines.append(f"moved from {report['initial_prompt']} by {mean:.3f} on average, {low:.3f} to {high:.3f}")
    elif report["virtual_tokens"]:
        lines.append(f"no {RunFolder.INITIAL_PROMPT} in {report['adapter']}, so how far the prompt moved is unknown")
    cosines = []
    for number, row in enumerate(report["similarity"]):
        cosines += row[:number]
    if cosines:
        mean, low, high = mean_and_range(cosines)
        over = ", mean over layers, keys and values" if is_prefix else ""
        lines.append(f"cosine between two virtual tokens{over}: {mean:.3f} on average, {low:.3f} to {high:.3f}")
    table = _layer_table(report["layers"]) if is_prefix else _token_table(report["tokens"])
    tables = [table, layer_vectors_table(report["layer_vectors"])] if "layer_vectors" in report else [table]
    return "\n\n".join(["\n".join(lines), *tables, report["caution"]])


def _layer_table(layers: list[dict[str, Any]]) -> str:
    rows = []
    for layer in layers:
        row = [layer["layer"]]
        for name in ("key_norms", "value_norms"):
            mean, low, high = mean_and_range(layer[name])
            row += [f"{mean:.3f}", f"{low:.3f} to {high:.3f}"]
        rows.append(row)
    head = ("layer", "norm of keys", "lowest to highest", "norm of values", "lowest to highest")
    return text_table(head, rows, align=("left", "right", "right", "right", "right"))


def _token_table(tokens: list[dict[str, Any]]) -> str:
    rows = []
    for token in tokens:
        near = ", ".join(f"{entry['token']} {entry['cosine']:.2f}" for entry in token["nearest"])
        moved = f"{token['moved']:.3f}" if "moved" in token else "-"
        number = f"{token['token']} {token['start']}" if "start" in token else str(token["token"])
        rows.append([number, f"{token['norm']:.3f}", f"{token['norm_percentile']:.1f}", moved, near])
    head = ("token", "norm", "percentile", "moved", "nearest tokens by cosine")
    return text_table(head, rows, align=("right", "right", "right", "right", "left"))


def _draw(report: dict[str, Any], path: Path) -> None:
    """Draw the norms, by layer or beside the vocabulary's, and the similarity of virtual tokens."""
    figure = new_figure("inspection.png", 13, 5.2)
    from matplotlib.ticker import MaxNLocator

    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    if "layers" in report:
        _draw_layers(report["layers"], left)
    else:
        _draw_tokens(report, left)
    left.legend()
    image = right.imshow(report["similarity"], vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    figure.colorbar(image, ax=right, label="cosine similarity")
    right.set(xlabel="virtual token", ylabel="virtual token", title="Similarity of virtual tokens")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    title = f"{report['adapter']} ({report['method']}, {counted(report['virtual_tokens'], 'virtual token')})"
    figure.suptitle(title, parse_math=False)
    write_png(figure, path)


def _draw_layers(layers: list[dict[str, Any]], axes: Axes) -> None:
    for name, color in (("key_norms", "tab:blue"), ("value_norms", "tab:orange")):
        mean, low, high = zip(*(mean_and_range(layer[name]) for layer in layers), strict=True)
        axes.plot(mean, ".-", color=color, label=name.replace("_norms", "s"))
        axes.fill_between(range(len(mean)), low, high, color=color, alpha=0.2)
    axes.set(xlabel="layer, in the table's order", ylabel="norm", title="Norms of keys and values, mean and range")


def _draw_tokens(report: dict[str, Any], axes: Axes) -> None:
    _, mean, low, high = report["vocabulary"].values()
    norms = [token["norm"] for token in report["tokens"]]
    axes.axhspan(low, high, color="tab:gray", alpha=0.25, label="90 % of the vocabulary")
    axes.axhline(mean, color="tab:gray", label="mean of the vocabulary")
    axes.plot(norms, ".", color="tab:blue", label="virtual tokens")
    axes.set(xlabel="virtual token", ylabel="norm", title="Norms of virtual tokens and of the vocabulary")
    axes.set_yscale("log" if max(norms) > 10 * low > 0 else "linear")
