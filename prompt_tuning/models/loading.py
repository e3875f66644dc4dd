"""Load a frozen base model, its configuration and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prompt_tuning.arguments.arguments import ModelArguments
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.encoding.target_language import language_id
from prompt_tuning.engine.dispatch import has_recurrent_layers
from prompt_tuning.errors import ModelError, RecipeError, first_line
from prompt_tuning.models.quantization import quantization_config


def load_config(args: ModelArguments) -> PretrainedConfig:
    """Load the base model's configuration, without its weights.

    Raises:
        ModelError: the name is neither a folder nor a hub id that can be reached.
    """
    return _from_pretrained(AutoConfig, args)


def check_method(config: PretrainedConfig, method: str) -> None:
    """Raise a ModelError for a prefix of a model with recurrent layers.

    These layers have no keys and values: with PEFT they ignore a prefix, or fail.

    Args:
        config: the configuration of the base model.
        method: a name in METHODS.
    """
    if METHODS[method].trains_keys_and_values and has_recurrent_layers(config):
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
    tokenizer = _from_pretrained(AutoTokenizer, args)
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
        ModelError: the model cannot be loaded, or cannot be quantized as `args` say.
    """
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    quantized = quantization_config(args)
    model = _from_pretrained(auto, args, dtype=args.dtype, use_safetensors=True, quantization_config=quantized)
    return model.requires_grad_(requires_grad=False).eval()


def _from_pretrained(auto: Any, args: ModelArguments, **kwargs: Any) -> Any:
    """Load a configuration, a tokenizer or a model by its class, and explain what fails."""
    name = args.model_name_or_path
    if not name:
        raise ModelError("model_name_or_path is missing. Set it to a folder or a hub id.")
    local = Path(name).is_dir()
    if not local and (Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise ModelError(
            f"model_name_or_path {name}: no such folder (looked in {Path.cwd()}). Name another folder or a hub id."
        )
    try:
        return auto.from_pretrained(
            name, revision=args.model_revision, trust_remote_code=args.trust_remote_code, **kwargs
        )
    except (OSError, HTTPError, ValueError, ImportError) as error:  # A missing quantizer is an ImportError.
        reason = "the folder cannot be loaded as a model" if local else "not a folder here, and not found on the hub"
        raise ModelError(f"model_name_or_path {name}: {reason}: {first_line(error)}") from error
