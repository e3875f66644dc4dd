"""Load a frozen base model, its configuration and its tokenizer."""

from __future__ import annotations

from pathlib import Path

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
    """The base model's configuration; reads no weights.

    Raises:
        ModelError: neither a folder nor a hub id that can be reached.
    """
    return _from_pretrained(AutoConfig, args)


def check_method(config: PretrainedConfig, method: str) -> None:
    """Raise a ModelError for a prefix of a model with recurrent layers; with PEFT they ignore it, or raise."""
    if METHODS[method].trains_keys_and_values and has_recurrent_layers(config):
        raise ModelError(
            f"{method} puts keys and values into every layer, and {config.model_type} has recurrent layers, "
            "which have none; take method prompt_tuning or lora"
        )


def load_tokenizer(
    args: ModelArguments, source_lang: str | None = None, target_lang: str | None = None
) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a padding token; of models that mark languages (mBART, NLLB) for these two.

    Raises:
        ModelError: it cannot be found, or has no end-of-sequence token.
        RecipeError: it marks languages and does not know one of these.
    """
    tokenizer = _from_pretrained(AutoTokenizer, args)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{args.model_name_or_path}: the tokenizer has no eos_token, so no target could be ended")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if hasattr(tokenizer, "src_lang") and source_lang and target_lang:
        for name, code in (("source_lang", source_lang), ("target_lang", target_lang)):
            if language_id(tokenizer, code) is None:
                known = ", ".join(sorted(tokenizer.all_special_tokens)[:8])
                raise RecipeError(
                    f"{name} {code}: the tokenizer marks languages and does not know it; it has {known}, ..."
                )
        tokenizer.src_lang, tokenizer.tgt_lang = source_lang, target_lang
    return tokenizer


def load_base_model(args: ModelArguments, config: PretrainedConfig) -> PreTrainedModel:
    """The base model with every parameter frozen, causal or encoder-decoder as its configuration says.

    Raises:
        ModelError: it cannot be loaded, or not quantized as `args` say.
    """
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    quantized = quantization_config(args)
    model = _from_pretrained(auto, args, dtype=args.dtype, use_safetensors=True, quantization_config=quantized)
    return model.requires_grad_(False).eval()


def _from_pretrained(auto, args: ModelArguments, **kwargs):
    name = args.model_name_or_path
    local = Path(name).is_dir()
    if not local and (Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise ModelError(f"model_name_or_path {name}: no such folder (looked in {Path.cwd()})")
    try:
        return auto.from_pretrained(
            name, revision=args.model_revision, trust_remote_code=args.trust_remote_code, **kwargs
        )
    except (OSError, HTTPError, ValueError, ImportError) as error:  # the last of a quantizer's package
        what = "the folder cannot be loaded as a model" if local else "not a folder here, and not found on the hub"
        raise ModelError(f"model_name_or_path {name}: {what}: {first_line(error)}") from error
