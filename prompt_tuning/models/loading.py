"""Load a frozen base model, its configuration and its tokenizer."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from httpx2 import HTTPError
from huggingface_hub import constants
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.encoding.target_language import language_id
from prompt_tuning.engine.dispatch import has_recurrent_layers
from prompt_tuning.errors import ModelError, PromptTuningError, RecipeError, first_line
from prompt_tuning.hub.download import hub_answers
from prompt_tuning.models.encoder_decoder_attention import without_prefix
from prompt_tuning.models.quantization import quantization_config
from prompt_tuning.models.tokenizer_growth import check_growth, check_growth_in_file
from prompt_tuning.models.weight_files import check_weight_files
from prompt_tuning.support.files import looks_like_path, read_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted
from prompt_tuning.support.trust import ADVICE, FLAG, build_from_config, load_pretrained

MAX_MODULES = 1000
"""The most layers of a model, and the most experts of a layer."""

FILES = {AutoConfig: RunFolder.MODEL_CONFIG, AutoTokenizer: "tokenizer.json, tokenizer_config.json"}
"""The files that each class reads besides weights."""


COUNT = re.compile(r"layers?$|experts|depth$")
"""The settings of configurations that count modules."""


def load_config(args: ModelArguments) -> PretrainedConfig:
    """Load the base model's configuration, without its weights.

    Raises:
        ModelError: the name is neither a folder nor a hub id that can be reached, its model generates no text, or a
            folder's weights are cut or missing.
    """
    if args.api_name is not None:
        # Nothing is known of such a model except its name.
        return PretrainedConfig(vocab_size=None)
    config = _from_pretrained(AutoConfig, args)
    _check_generates(config, args)
    _check_kernels(config, args)
    if Path(str(args.model_name_or_path)).is_dir():
        check_weight_files(Path(str(args.model_name_or_path)))
    return config


def excessive_count(values: dict[str, Any]) -> str | None:
    """Return what counts more layers or experts than any model has, with its number; None if nothing does.

    Args:
        values: a configuration before transformers reads it, which makes lists of this length.
    """
    parts = [values]
    for part in parts:
        for name, value in part.items():
            if isinstance(value, dict):
                parts.append(value)
            elif isinstance(value, int) and value > MAX_MODULES and COUNT.search(name):
                return f"{name} is {value:,}"
    return None


def _check_counts(args: ModelArguments) -> None:
    """Raise a ModelError for a configuration with more layers or experts than any model has."""
    values, _ = PretrainedConfig.get_config_dict(args.model_name_or_path, revision=args.model_revision)
    count = excessive_count(values)
    if count:
        raise ModelError(
            f"model_name_or_path {args.model_name_or_path}: {count} in its {RunFolder.MODEL_CONFIG}, and no model has "
            f"more than {MAX_MODULES:,}. Download or copy the model again."
        )


def _check_kernels(config: PretrainedConfig, args: ModelArguments) -> None:
    """Raise a ModelError for a configuration that names kernels of the hub, which are code, unless it is trusted."""
    parts = [config, *(getattr(config, name) for name in config.sub_configs)]
    present = [part for part in parts if part is not None]  # A Gemma 4 without audio has None there.
    for kernels in {str(part._attn_implementation) for part in present}:  # noqa: SLF001 - no public name
        if "/" in kernels and not args.trust_remote_code:
            raise ModelError(
                f"model_name_or_path {args.model_name_or_path}: its {RunFolder.MODEL_CONFIG} asks for the attention "
                f"kernels {kernels}, which are code of the hub. {ADVICE}"
            )


def _check_generates(config: PretrainedConfig, args: ModelArguments) -> None:
    """Raise a ModelError for a model that writes no text, such as an encoder.

    BERT and its relatives load as causal models, but every token sees those after it.
    """
    auto, mapping = AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING
    if config.is_encoder_decoder:
        auto, mapping = AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if auto.__name__ in (vars(config).get("auto_map") or {}):
        return
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and vars(config).get("is_decoder") is False
    if type(config) not in mapping or (is_encoder and not config.is_encoder_decoder):
        kind = "an encoder" if is_encoder or type(config) in MODEL_FOR_MASKED_LM_MAPPING else "no language model"
        raise ModelError(
            f"model_name_or_path {args.model_name_or_path}: {config.model_type} is {kind}, which writes no text. Set "
            "a causal model or an encoder-decoder."
        )


def check_method(config: PretrainedConfig, method: str) -> None:
    """Raise a ModelError for a prefix of a model with recurrent layers, or of an untested encoder-decoder.

    Recurrent layers have no keys and values: with PEFT they ignore a prefix, or fail.

    Args:
        config: the configuration of the base model.
        method: a name in METHODS.
    """
    if not METHODS[method].trains_keys_and_values:
        return
    if config.is_encoder_decoder and without_prefix(config):
        raise ModelError(without_prefix(config))
    if has_recurrent_layers(config):
        raise ModelError(
            f"{method} puts keys and values into every layer, and {config.model_type} has recurrent layers, "
            "which have none. Take method prompt_tuning or lora."
        )


def load_tokenizer(
    args: ModelArguments, source_lang: str | None = None, target_lang: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer and give it a padding token if it has none.

    Args:
        args: the name and revision of the base model.
        source_lang: the code of the source language, for a tokenizer that marks languages (mBART, NLLB).
        target_lang: the code of the target language, for the same.

    Raises:
        ModelError: the tokenizer cannot be loaded, or has no end-of-sequence token.
        RecipeError: the tokenizer marks languages and does not know one of the codes, or has no chat template of the
            name that the recipe sets.
    """
    if args.api_name is not None:
        args = replace(args, model_name_or_path=args.tokenizer_name)
    tokenizer = _from_pretrained(AutoTokenizer, args)
    check_growth(tokenizer, str(args.model_name_or_path))
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{args.model_name_or_path}: the tokenizer has no eos_token, which ends a target. Set one in its folder."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if args.chat_template is not None:
        _choose_chat_template(tokenizer, args.chat_template)
    if hasattr(tokenizer, "src_lang") and source_lang and target_lang:
        for name, code in (("source_lang", source_lang), ("target_lang", target_lang)):
            if language_id(tokenizer, code) is None:
                examples = ", ".join(sorted(tokenizer.all_special_tokens)[:8])
                raise RecipeError(
                    f"{name} {code}: the tokenizer marks languages and does not know it. It has {examples}, ..."
                )
        tokenizer.src_lang = source_lang
        tokenizer.tgt_lang = target_lang
    return tokenizer


def _choose_chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make one of a tokenizer's chat templates its default; raise RecipeError if it has none of that name."""
    templates = tokenizer.chat_template
    names = templates if isinstance(templates, dict) else {}
    if name not in names:
        has = ", ".join(sorted(names)) or "no chat templates with names"
        raise RecipeError(
            f"chat_template {name}: the tokenizer has {has}. Name one of them, or leave the setting out."
        )
    tokenizer.chat_template = names | {"default": names[name]}


def load_base_model(args: ModelArguments, config: PretrainedConfig) -> PreTrainedModel:
    """Load the base model and freeze all its parameters.

    Args:
        args: the model's name and revision, the type of its weights, and its quantization.
        config: the configuration from `load_config`, which says whether the model is an encoder-decoder.

    Returns:
        The model in evaluation mode.

    Raises:
        ModelError: the model cannot be loaded, or cannot be quantized as `args` say; or weights are missing or have
            numbers that are not finite.
    """
    if args.api_name is not None:
        raise ModelError(
            f"model_name_or_path {args.model_name_or_path}: a model behind an API has no weights here. Take evaluate, "
            "compare or predict --recipe."
        )
    if Path(str(args.model_name_or_path)).is_dir():
        build_empty_model(args, config)
    quantized = quantization_config(args)
    options = {"dtype": args.dtype, "use_safetensors": True, "quantization_config": quantized}
    model, loaded = _from_pretrained(_model_class(config), args, **options, output_loading_info=True)
    _check_weights(model, loaded["missing_keys"], str(args.model_name_or_path))
    return model.requires_grad_(requires_grad=False).eval()


def build_empty_model(args: ModelArguments, config: PretrainedConfig) -> PreTrainedModel:
    """Return the base model without its weights, on the device `meta`.

    Args:
        args: the model's name.
        config: the configuration from `load_config`.

    Raises:
        ModelError: the configuration is damaged, or says more numbers than the folder's files have bits. transformers
            would draw what the files lack at random, in any size.
    """
    auto = _model_class(config)
    with _explain_damage(auto, args), torch.device("meta"):
        model = build_from_config(auto, copy.deepcopy(config), trust_remote_code=args.trust_remote_code)
    bits = 8 * sum(file.stat().st_size for file in Path(str(args.model_name_or_path)).glob("*.safetensors"))
    numbers = sum(parameter.numel() for parameter in model.parameters())
    if 0 < bits < numbers:
        raise ModelError(
            f"model_name_or_path {args.model_name_or_path}: its {RunFolder.MODEL_CONFIG} describes {numbers:,} "
            f"numbers, and its weights have {bits:,} bits. Download or copy the model again."
        )
    return model


def _model_class(config: PretrainedConfig) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _check_weights(model: PreTrainedModel, missing: Collection[str], name: str) -> None:
    """Raise a ModelError for weights that transformers has drawn at random, and for weights that are not finite."""
    if missing:
        tensors = counted(len(missing), "tensor")
        raise ModelError(
            f"model_name_or_path {name}: its files lack {tensors}, the first is {min(missing)}, which would be drawn "
            "at random. Name a whole language model, or download it again."
        )
    for parameter_name, parameter in model.named_parameters():
        # Numbers of one byte are quantized, and those on the meta device are not here.
        if parameter.is_meta or not parameter.is_floating_point() or parameter.itemsize == 1:
            continue
        # One pass without a copy; the least and the largest number of a tensor with a NaN are NaN.
        if parameter.numel() and not all(map(torch.isfinite, parameter.detach().aminmax())):
            raise ModelError(
                f"model_name_or_path {name}: {parameter_name} has numbers that are NaN or infinite. Name another "
                "model; if a training wrote it, train again with a lower learning_rate."
            )


def _from_pretrained(auto: Any, args: ModelArguments, **kwargs: Any) -> Any:
    """Load a configuration, a tokenizer or a model by its class, and explain what fails."""
    name = args.model_name_or_path
    if not name:
        raise ModelError("model_name_or_path is missing. Set it to a folder or a hub id.")
    local = Path(name).is_dir()
    if not local and looks_like_path(name):
        raise ModelError(
            f"model_name_or_path {name}: no such folder (looked in {Path.cwd()}). Name another folder or a hub id."
        )
    if not local and not hub_answers(name, "model", RunFolder.MODEL_CONFIG, args.model_revision):
        raise ModelError(
            f"model_name_or_path {name}: not a folder here, and not found on the hub: it is not in the cache, and "
            f"{constants.ENDPOINT} cannot be reached. Check id and connection, or name a folder."
        )
    with _explain_damage(auto, args):
        _check_no_adapter(name, args)
        if auto is AutoConfig:
            _check_counts(args)
        if auto is AutoTokenizer:
            check_growth_in_file(name, args.model_revision)
        return load_pretrained(
            auto, name, trust_remote_code=args.trust_remote_code, revision=args.model_revision, **kwargs
        )


@contextmanager
def _explain_damage(auto: Any, args: ModelArguments) -> Iterator[None]:
    """Raise a ModelError for any error of the block, which loads or builds what a class of transformers reads."""
    name = args.model_name_or_path
    local = Path(str(name)).is_dir()
    try:
        yield
    except PromptTuningError:
        raise
    except Exception as error:  # The libraries raise anything for damaged files; tokenizers raises Exception itself.
        if not args.trust_remote_code and FLAG in str(error):
            raise ModelError(
                f"model_name_or_path {name}: it needs Python code that is among its files. {ADVICE}"
            ) from error
        if "instantiate the backend tokenizer" in str(error):
            raise ModelError(
                f"model_name_or_path {name}: its files have no tokenizer ({FILES[AutoTokenizer]}). Copy those of its "
                "tokenizer there, or name another model."
            ) from error
        files = f" ({FILES[auto]})" if auto in FILES else ""
        reason = "the folder cannot be loaded as a model" if local else "it cannot be loaded as a model"
        if not local and isinstance(error, (OSError, HTTPError)):
            reason = "not a folder here, and not found on the hub"
        raise ModelError(f"model_name_or_path {name}: {reason}{files}: {first_line(error)}") from error


def _check_no_adapter(name: str, args: ModelArguments) -> None:
    """Raise a ModelError for an adapter, with which transformers would load its base model, or fail."""
    file = find_adapter_config_file(name, revision=args.model_revision)
    if file:
        base = read_json(Path(file), dict[str, Any]).get("base_model_name_or_path") or "its base model"
        raise ModelError(
            f"model_name_or_path {name}: an adapter ({RunFolder.ADAPTER_CONFIG}), not a model. Set it to {base}, and "
            f"--adapter to {name}. Or merge the two with merge_and_unload, and name the folder of the result."
        )
