"""What a trained prompt looks like from outside: nearest tokens, norms, how far it moved, a picture of it.

None of it explains what the prompt does. Nearest tokens least of all: for any text there are prompts that lie next to
it and solve another task (Khashabi et al. 2022), and trained prompts lie where no text does (Bailey et al. 2023).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from prompt_tuning.arguments.arguments import ModelArguments
from prompt_tuning.arguments.methods import METHODS, find_method
from prompt_tuning.errors import AdapterError, ModelError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.encoder_decoder_prefix import EncoderDecoderPrefixConfig
from prompt_tuning.models.loading import load_base_model, load_config, load_tokenizer
from prompt_tuning.models.prompts import check_adapter, load_adapter_config
from prompt_tuning.studies.figures import new_figure, write_png
from prompt_tuning.support.files import atomic_folder, read_json, write_json

INITIAL = "initial_prompt"  # the tensor, and with .safetensors the file, that a run started from
CAUTION = """\
These readings do not explain what the prompt does. Prompts that solve a task can lie next to any text, that of a
contradictory task too (Khashabi et al. 2022, Prompt Waywardness, NAACL, aclanthology.org/2022.naacl-main.266), and
trained prompts lie apart from the embeddings of natural language, so comparing them may mislead (Bailey et al. 2023,
Soft prompting might be a bug, not a feature, ICML workshop on Challenges in Deployable Generative AI)."""


def inspect(adapter: str, model_name_or_path: str | None = None, nearest: int = 5, output: str | None = None) -> dict:
    """Read a trained prompt, write inspection.json and inspection.png, and return what the former holds.

    Of the base model only the input embeddings are read; for a prefix, which is keys and values, not even those.

    Args:
        adapter: a folder or a hub id.
        model_name_or_path: where the base model lies, if it has moved.
        nearest: how many vocabulary tokens to name for each virtual token.
        output: the folder to write to; by default the adapter's.

    Raises:
        PromptTuningError: no adapter with virtual tokens there, no such base model, or matplotlib is not installed.
    """
    folder = adapter_folder(adapter)
    if folder != Path(adapter) and output is None:
        raise AdapterError(f"{adapter} lies in the hub's cache; name a folder to write to, as --output inspected")
    config, weight = _read_adapter(folder)
    method, name = config.peft_type.value, model_name_or_path or config.base_model_name_or_path
    report = {"adapter": adapter, "method": method, "model": name, "virtual_tokens": len(weight)}
    initial = folder / f"{INITIAL}.safetensors"
    report["initial_prompt"] = str(initial) if initial.is_file() else None
    if find_method(method).trains_keys_and_values:
        report |= _describe_prefix(weight, config)
    elif name:
        args = ModelArguments(model_name_or_path=name, model_revision=config.revision or "main")
        vocabulary = _input_embeddings(args, config, folder)
        report |= _describe_embeddings(weight, vocabulary, load_tokenizer(args), nearest)
    else:
        raise ModelError(f"{folder} does not say which model it was trained on; give --model_name_or_path")
    if initial.is_file():
        for token, distance in zip(report["tokens"], _moved(weight, initial), strict=True):
            token["moved"] = distance
    report["caution"] = CAUTION
    with atomic_folder(Path(output) if output else folder) as partial:
        write_json(partial / "inspection.json", report)
        _draw(report, partial / "inspection.png")
    return report


def _read_adapter(folder: Path) -> tuple[PeftConfig, torch.Tensor]:
    """The configuration and the weight: embeddings `[P, H]`, or the keys and values of all layers `[P, W]`."""
    config = load_adapter_config(folder)
    if not find_method(config.peft_type).has_prompt:
        expected = ", ".join(row.name.upper() for row in METHODS.values() if row.has_prompt)
        raise AdapterError(f"{folder}: a {config.peft_type.value} adapter; expected {expected}")
    weight = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].float()
    # PEFT gives an encoder-decoder prompt twice its rows and uses the first half.
    return config, weight[: config.num_virtual_tokens]


def _moved(weight: torch.Tensor, initial: Path) -> list[float]:
    """How far each virtual token is from where it started."""
    start = load_file(initial)[INITIAL].float()
    if start.shape != weight.shape:
        shapes = f"{list(start.shape)}, the trained prompt {list(weight.shape)}"
        raise AdapterError(f"{initial} is {shapes}; it belongs to another run: remove it")
    return _rounded((weight - start).norm(dim=1))


def _input_embeddings(args: ModelArguments, adapter: PeftConfig, folder: Path) -> torch.Tensor:
    """`[V, H]` as the model embeds its tokens; the one tensor, if the model's files allow it."""
    config = load_config(args)
    check_adapter(adapter, folder, config, renamed=args.model_name_or_path != adapter.base_model_name_or_path)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    embeddings = model.get_input_embeddings()
    if type(embeddings) is nn.Embedding:  # others scale what they look up
        names = [name for name, each in model.named_parameters(remove_duplicate=False) if each is embeddings.weight]
        tensor = _read_tensor(args, names + [name.removeprefix(f"{model.base_model_prefix}.") for name in names])
        if tensor is not None:
            return tensor.float()
    embeddings = load_base_model(args, config).get_input_embeddings()
    with torch.no_grad():
        return embeddings(torch.arange(embeddings.num_embeddings)).float()


def _read_tensor(args: ModelArguments, names: list[str]) -> torch.Tensor | None:
    """The first of `names` in the model's safetensors, in one file or several."""
    where = {"revision": args.model_revision, "_raise_exceptions_for_missing_entries": False}
    index = cached_file(args.model_name_or_path, "model.safetensors.index.json", **where)
    places = read_json(Path(index))["weight_map"] if index else {}
    for name in names:
        path = cached_file(args.model_name_or_path, places.get(name, "model.safetensors"), **where)
        if path:
            with safe_open(path, "pt") as weights:
                if name in set(weights.keys()):
                    return weights.get_tensor(name)
    return None


def _describe_embeddings(
    weight: torch.Tensor, vocabulary: torch.Tensor, tokenizer: PreTrainedTokenizerBase, nearest: int
) -> dict[str, Any]:
    """The prompt `[P, H]` beside the vocabulary `[V, H]`."""
    vocabulary = vocabulary[: len(tokenizer)]  # rows beyond it only round up the model's size
    norms = vocabulary.norm(dim=1)
    cosines, ids = (F.normalize(weight) @ F.normalize(vocabulary).T).topk(min(nearest, len(vocabulary)))
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens = [
        {
            "token": number,
            "norm": _rounded(row.norm()),
            "norm_percentile": round(100 * (norms < row.norm()).float().mean().item(), 1),
            "nearest": [
                {"id": id, "token": token_text(tokenizer, id, id in special), "cosine": _rounded(cosine)}
                for id, cosine in zip(row_ids.tolist(), row_cosines, strict=True)
            ],
        }
        for number, (row, row_ids, row_cosines) in enumerate(zip(weight, ids, cosines, strict=True))
    ]
    low, high = _rounded(norms.quantile(torch.tensor([0.05, 0.95])))
    whole = {"size": len(vocabulary), "norm_mean": _rounded(norms.mean()), "norm_5th": low, "norm_95th": high}
    return {"vocabulary": whole, "tokens": tokens, "similarity": _rounded(F.normalize(weight) @ F.normalize(weight).T)}


def token_text(tokenizer: PreTrainedTokenizerBase, id: int, special: bool) -> str:
    """A token for people: special ones by their name, others as quoted text, parts of a character as their piece."""
    piece = tokenizer.convert_ids_to_tokens(id)
    if special:
        return piece
    text = tokenizer.decode([id], clean_up_tokenization_spaces=False)
    if "\ufffd" in text or not text:
        return f"piece {piece!r}"
    # A SentencePiece tokenizer decodes a lone token without the space it stands for.
    return repr(f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text)


def _describe_prefix(weight: torch.Tensor, config: PeftConfig) -> dict[str, Any]:
    """Norms of keys and values by layer, and similarity as the mean cosine over layers, of keys and of values."""
    if isinstance(config, EncoderDecoderPrefixConfig):
        order = [place for place in ("encoder", "decoder", "cross") if place in config.places]  # as in the weight
        names = [f"{place} {layer}" for place in order for layer in range(config.places[place][0])]
        sizes = [config.places[place] for place in order]
        widths = [heads * size for layers, heads, size in sizes for _ in range(2 * layers)]
    else:
        names, widths = [*map(str, range(config.num_layers))], weight.shape[1] // (2 * config.num_layers)
    slots = weight.split(widths, dim=1)  # a layer's keys, then its values
    norms = [_rounded(slot.norm(dim=1)) for slot in slots]
    layers = zip(names, norms[::2], norms[1::2], strict=True)
    return {
        "layers": [{"layer": name, "key_norms": keys, "value_norms": values} for name, keys, values in layers],
        "tokens": [{"token": number} for number in range(len(weight))],
        "similarity": _rounded(sum(F.normalize(slot) @ F.normalize(slot).T for slot in slots) / len(slots)),
    }


def _rounded(tensor: torch.Tensor) -> Any:
    return torch.round(tensor.double(), decimals=4).tolist()


def inspection_text(report: dict[str, Any]) -> str:
    """The table of a report, a line for each virtual token, or for each layer of a prefix."""
    lines = ["{adapter}: {virtual_tokens} virtual tokens ({method}) of {model}".format_map(report)]
    if "layers" in report:
        lines.append("a prefix is keys and values, not embeddings, so nearest tokens do not exist for it")
        table = ["layer         norm of keys, lowest to highest    norm of values, lowest to highest"]
        for layer in report["layers"]:
            both = _mean_and_range(layer["key_norms"]) + _mean_and_range(layer["value_norms"])
            table.append("{:12}{:11.3f}{:11.3f} to{:8.3f}{:14.3f}{:11.3f} to{:8.3f}".format(layer["layer"], *both))
    else:
        size, mean, low, high = report["vocabulary"].values()
        lines.append(f"norms of the vocabulary's {size:,} tokens: mean {mean:.3f}, 90 % in {low:.3f} to {high:.3f}")
        table = ["token    norm  percentile   moved  nearest tokens by cosine"]
        for token in report["tokens"]:
            moved = f"{token['moved']:8.3f}" if "moved" in token else "       -"
            near = ", ".join(f"{each['token']} {each['cosine']:.2f}" for each in token["nearest"])
            table.append(f"{token['token']:5}{token['norm']:8.3f}{token['norm_percentile']:12.1f}{moved}  {near}")
    if report["initial_prompt"]:
        mean, low, high = _mean_and_range([token["moved"] for token in report["tokens"]])
        lines.append(f"moved from {report['initial_prompt']} by {mean:.3f} on average, {low:.3f} to {high:.3f}")
    else:
        lines.append(f"no {INITIAL}.safetensors in {report['adapter']}, so how far the prompt moved is unknown")
    if pairs := [value for number, row in enumerate(report["similarity"]) for value in row[:number]]:
        mean, low, high = _mean_and_range(pairs)
        over = ", mean over layers, keys and values" if "layers" in report else ""
        lines.append(f"cosine between two virtual tokens{over}: {mean:.3f} on average, {low:.3f} to {high:.3f}")
    return "\n".join([*lines, "", *table, "", report["caution"]])


def _mean_and_range(values: list[float]) -> tuple[float, float, float]:
    return sum(values) / len(values), min(values), max(values)


def _draw(report: dict[str, Any], path: Path) -> None:
    """Norms beside the vocabulary's, or by layer; and the similarity of virtual tokens."""
    figure = new_figure("inspection.png", 13, 5.2)
    from matplotlib.ticker import MaxNLocator

    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    if "layers" in report:
        for name, color in (("key_norms", "tab:blue"), ("value_norms", "tab:orange")):
            mean, low, high = zip(*(_mean_and_range(layer[name]) for layer in report["layers"]), strict=True)
            left.plot(mean, ".-", color=color, label=name.replace("_norms", "s"))
            left.fill_between(range(len(mean)), low, high, color=color, alpha=0.2)
        left.set(xlabel="layer, as in the table", ylabel="norm", title="Norms of keys and values, mean and range")
    else:
        _, mean, low, high = report["vocabulary"].values()
        norms = [token["norm"] for token in report["tokens"]]
        left.axhspan(low, high, color="tab:gray", alpha=0.25, label="90 % of the vocabulary")
        left.axhline(mean, color="tab:gray", label="mean of the vocabulary")
        left.plot(norms, ".", color="tab:blue", label="virtual tokens")
        left.set(xlabel="virtual token", ylabel="norm", title="Norms of virtual tokens and of the vocabulary")
        left.set_yscale("log" if max(norms) > 10 * low > 0 else "linear")
    left.legend()
    image = right.imshow(report["similarity"], vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    figure.colorbar(image, ax=right, label="cosine similarity")
    right.set(xlabel="virtual token", ylabel="virtual token", title="Virtual tokens among themselves")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{report['adapter']} ({report['method']}, {report['virtual_tokens']} virtual tokens)")
    write_png(figure, path)
