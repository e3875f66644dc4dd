"""A frozen base model, and the soft prompt added to it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, PeftModelForSeq2SeqLM, PromptTuningConfig, TaskType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prompt_tuning.config import ModelArguments, PromptArguments
from prompt_tuning.errors import AdapterError, ModelError, RecipeError
from prompt_tuning.shared_prefix import SharedPrefixModel

logger = logging.getLogger(__name__)

DEFAULT_VIRTUAL_TOKENS = 20


def load_config(args: ModelArguments) -> PretrainedConfig:
    """The base model's configuration; reads no weights.

    Raises:
        ModelError: neither a folder nor a hub id that can be reached.
    """
    return _from_pretrained(AutoConfig, args)


def load_tokenizer(args: ModelArguments) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a padding token.

    Raises:
        ModelError: it cannot be found, or has no end-of-sequence token.
    """
    tokenizer = _from_pretrained(AutoTokenizer, args)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{args.model_name_or_path}: the tokenizer has no eos_token, so no target could be ended")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base_model(args: ModelArguments, config: PretrainedConfig) -> PreTrainedModel:
    """The base model with every parameter frozen, causal or encoder-decoder as its configuration says."""
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = _from_pretrained(auto, args, dtype=args.dtype, use_safetensors=True)
    return model.requires_grad_(False).eval()


def count_virtual_tokens(args: PromptArguments, tokenizer: PreTrainedTokenizerBase) -> int:
    """The length of the soft prompt: as given, or that of init_text, or 20.

    Raises:
        RecipeError: init_text is longer than num_virtual_tokens, so some of it would be lost.
    """
    if args.init != "text":
        return args.num_virtual_tokens or DEFAULT_VIRTUAL_TOKENS
    length = len(_text_ids(args, tokenizer))
    if args.num_virtual_tokens and args.num_virtual_tokens < length:
        raise RecipeError(
            f"init_text has {length} tokens and num_virtual_tokens is {args.num_virtual_tokens}; "
            "leave num_virtual_tokens out to follow the text, or shorten it"
        )
    return args.num_virtual_tokens or length


def prompt_config(model: PreTrainedModel, num_virtual_tokens: int) -> PromptTuningConfig:
    """PEFT's configuration of a soft prompt (Lester et al. 2021) for a causal or an encoder-decoder model.

    An encoder-decoder prompt stands before the encoder's input alone, so it has one submodule; PEFT's default of two
    allocates twice the rows, and the second half never gets a gradient.
    """
    encoder_decoder = model.config.is_encoder_decoder
    return PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM,
        num_virtual_tokens=num_virtual_tokens,
        num_transformer_submodules=1,
        base_model_name_or_path=model.name_or_path,
    )


def add_soft_prompt(
    model: PreTrainedModel, config: PromptTuningConfig, initial: torch.Tensor | None = None
) -> PeftModel:
    """The model with a trainable soft prompt, in float32 whatever the model's type.

    Args:
        initial: `[P, H]`, what the prompt starts from; by default what `config` says.
    """
    wrapper = PeftModelForSeq2SeqLM if model.config.is_encoder_decoder else SharedPrefixModel
    peft_model = wrapper(model, config)
    weight = peft_model.prompt_encoder["default"].embedding.weight
    weight.data = weight.data.float()
    if initial is not None:
        weight.data.copy_(initial)
    return peft_model


def initial_prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: PromptArguments, seed: int
) -> torch.Tensor:
    """Where a soft prompt starts, `[P, H]` in float32 (Lester et al. 2021, section 3.2).

    random: normal noise with the mean and deviation of the model's own embeddings. vocab: embeddings of tokens drawn
    without replacement, special tokens left out. text: embeddings of init_text, repeated up to num_virtual_tokens.
    """
    embeddings = model.get_input_embeddings()
    length = count_virtual_tokens(args, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if args.init == "random":
            weight = embeddings.weight[: len(tokenizer)].float()
            return (
                torch.randn(length, weight.shape[1], generator=generator) * weight.std(0).cpu() + weight.mean(0).cpu()
            )
        if args.init == "vocab":
            ordinary = sorted(
                set(range(min(len(tokenizer), embeddings.num_embeddings))) - set(tokenizer.all_special_ids)
            )
            chosen = torch.randperm(len(ordinary), generator=generator)[:length]
            ids = [ordinary[index] for index in chosen.tolist()]
        else:
            ids = _text_ids(args, tokenizer)
        repeated = (ids * (length // len(ids) + 1))[:length]
        return embeddings(torch.tensor(repeated, device=embeddings.weight.device)).float().cpu()


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """The base model with a saved soft prompt, for evaluation and prediction."""
    config = load_adapter_config(folder)
    check_adapter(config, folder, model.config)
    config.inference_mode = True
    peft_model = add_soft_prompt(model, config)
    peft_model.load_adapter(str(folder), "default", torch_device=str(model.device))
    return peft_model.eval()


def load_adapter_config(folder: str | Path) -> PeftConfig:
    """The adapter's own configuration; reads no weights.

    Raises:
        AdapterError: no adapter there, or not a soft prompt.
    """
    folder = Path(folder)
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise AdapterError(
            f"{folder}: no {missing[0]} there; --adapter wants the folder that `prompt-tuning train` wrote"
        )
    config = PeftConfig.from_pretrained(str(folder))
    if config.peft_type != "PROMPT_TUNING":
        raise AdapterError(f"{folder}: a {config.peft_type.value} adapter; expected PROMPT_TUNING")
    return config


def check_adapter(config: PeftConfig, folder: str | Path, model_config: PretrainedConfig) -> None:
    """Raise AdapterError unless the adapter was trained on a model of this name and size."""
    trained_on, size = config.base_model_name_or_path or "", model_config.get_text_config().hidden_size
    name = model_config.name_or_path
    if config.token_dim != size or Path(trained_on).name != Path(name).name:
        raise AdapterError(
            f"{folder} was trained on {trained_on} (hidden size {config.token_dim}), the model here is {name} "
            f"(hidden size {size}); set model_name_or_path to the model it was trained on"
        )


def _text_ids(args: PromptArguments, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer(args.init_text, add_special_tokens=False).input_ids
    if not ids:
        raise RecipeError("init_text has no tokens; write the instruction the prompt should start from")
    return ids


def _from_pretrained(auto, args: ModelArguments, **kwargs):
    name = args.model_name_or_path
    local = Path(name).is_dir()
    if not local and (Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise ModelError(f"model_name_or_path {name}: no such folder (looked in {Path.cwd()})")
    try:
        return auto.from_pretrained(
            name, revision=args.model_revision, trust_remote_code=args.trust_remote_code, **kwargs
        )
    except (OSError, ValueError) as error:
        what = "the folder cannot be loaded as a model" if local else "not a folder here, and not found on the hub"
        raise ModelError(f"model_name_or_path {name}: {what}: {str(error).strip().splitlines()[0]}") from error
