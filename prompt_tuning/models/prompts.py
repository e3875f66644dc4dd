"""A frozen base model, and the prompt (or, to compare with, the LoRA) added to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    CPTConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForSeq2SeqLM,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
)
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding, MultitaskPromptTuningInit
from peft.tuners.tuners_utils import BasePromptEncoder
from safetensors import SafetensorError, safe_open
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)

from prompt_tuning.arguments.arguments import PREFIX_PLACES, PromptArguments
from prompt_tuning.arguments.methods import METHODS, find_method
from prompt_tuning.engine.shared_prefix import SharedPrefixModel
from prompt_tuning.errors import AdapterError, RecipeError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.encoder_decoder import (
    EncoderDecoderPrefixConfig,
    EncoderDecoderPromptModel,
    load_prompt_config,
)
from prompt_tuning.models.loading import check_method

logger = logging.getLogger(__name__)

# The names under which configurations of models hold the number of attention heads, as PEFT looks for them.
NUM_HEADS_NAMES = {"num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"}

# Starts of PEFT's multitask prompts that come with matrices of their own.
SOURCE_TASK_INITS = (MultitaskPromptTuningInit.AVERAGE_SOURCE_TASKS, MultitaskPromptTuningInit.EXACT_SOURCE_TASK)


def prompt_config(
    model: PreTrainedModel, num_virtual_tokens: int, args: PromptArguments | None = None, ids: Sequence[int] = ()
) -> PeftConfig:
    """PEFT's configuration of a method for this model; by default that of a soft prompt (Lester et al. 2021).

    An encoder-decoder prompt stands before the encoder's input alone, so it has one submodule; PEFT's default of two
    allocates twice the rows, and the second half never gets a gradient.

    Args:
        num_virtual_tokens: P; LoRA has none.
        args: whose `method` and its settings decide.
        ids: token ids, `[P]`, of the text that cpt changes.

    Raises:
        ModelError: a prefix, and the model has layers without keys and values.
    """
    args = args or PromptArguments()
    check_method(model.config, args.method)
    common = dict(
        task_type=TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM,
        base_model_name_or_path=model.name_or_path,
    )
    if METHODS[args.method].has_prompt:
        common |= {"num_virtual_tokens": num_virtual_tokens}
    if METHODS[args.method].trains_embeddings:
        common |= {"num_transformer_submodules": 1}
        if not NUM_HEADS_NAMES & model.config.get_text_config().to_dict().keys():
            common |= {"num_attention_heads": 1}  # PEFT asks every prompt for it, and needs it for prefixes only.
    return CONFIGS[args.method](model, args, ids, common)


def _prompt_tuning_config(
    model: PreTrainedModel, args: PromptArguments, ids: Sequence[int], common: dict[str, Any]
) -> PeftConfig:
    return PromptTuningConfig(**common)


def _p_tuning_config(
    model: PreTrainedModel, args: PromptArguments, ids: Sequence[int], common: dict[str, Any]
) -> PeftConfig:
    return PromptEncoderConfig(
        encoder_reparameterization_type=args.encoder_reparameterization_type,
        encoder_hidden_size=network_width(model, args),
        **common,
    )


def _prefix_tuning_config(
    model: PreTrainedModel, args: PromptArguments, ids: Sequence[int], common: dict[str, Any]
) -> PeftConfig:
    network = {"prefix_projection": args.prefix_projection, "encoder_hidden_size": network_width(model, args)}
    if not model.config.is_encoder_decoder:
        return PrefixTuningConfig(**common, **network)
    places = {name: vars(args)[name] for name in PREFIX_PLACES}
    return EncoderDecoderPrefixConfig(**common, **network, **places)


def _cpt_config(
    model: PreTrainedModel, args: PromptArguments, ids: Sequence[int], common: dict[str, Any]
) -> PeftConfig:
    # Type 2 is "input" to PEFT: such a token may move as far as opt_projection_epsilon lets it.
    masks = {"cpt_mask": [1] * len(ids), "cpt_tokens_type_mask": [2] * len(ids)}
    config = CPTConfig(cpt_token_ids=list(ids), **masks, **common)
    config.num_attention_heads = common.get("num_attention_heads")  # CPTConfig drops the argument.
    return config


def _multitask_config(
    model: PreTrainedModel, args: PromptArguments, ids: Sequence[int], common: dict[str, Any]
) -> PeftConfig:
    return MultitaskPromptTuningConfig(num_tasks=len(args.tasks or ()), num_ranks=args.num_ranks, **common)


def _lora_config(
    model: PreTrainedModel, args: PromptArguments, ids: Sequence[int], common: dict[str, Any]
) -> PeftConfig:
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules or "all-linear",
        **common,
    )


CONFIGS = {
    "prompt_tuning": _prompt_tuning_config,
    "p_tuning": _p_tuning_config,
    "prefix_tuning": _prefix_tuning_config,
    "cpt": _cpt_config,
    "multitask_prompt_tuning": _multitask_config,
    "lora": _lora_config,
}


def network_width(model: PreTrainedModel, args: PromptArguments) -> int:
    """Return the hidden units of a network that writes a prompt: `encoder_hidden_size`, or the model's hidden size."""
    return args.encoder_hidden_size or model.config.get_text_config().hidden_size


def add_soft_prompt(
    model: PreTrainedModel, config: PeftConfig, initial: torch.Tensor | None = None, residual: int | None = None
) -> PeftModel:
    """The model with a trainable prompt, in float32 whatever the model's type.

    Args:
        config: as `prompt_config` makes, or any of PEFT's for prompts.
        initial: `[P, H]`, what a soft prompt starts from, or `[P, layers * 2 * heads * D]` for a prefix; by default
            what `config` says.
        residual: train a network of this width beside the soft prompt (Residual Prompt Tuning).

    Returns:
        For a causal model a `SharedPrefixModel`, else PEFT's with its defects of encoder-decoder prompts put right.

    Raises:
        RuntimeError: `initial` does not fit the shape of the prompt.
    """
    wrapper = EncoderDecoderPromptModel if model.config.is_encoder_decoder else SharedPrefixModel
    peft_model = wrapper(model, config)
    peft_model.prompt_encoder.float()
    encoder = peft_model.prompt_encoder["default"]
    if initial is not None:
        encoder.embedding.weight.data.copy_(initial)
    if isinstance(encoder, MultitaskPromptEmbedding) and config.prompt_tuning_init not in SOURCE_TASK_INITS:
        _start_at_shared_prompt(encoder)
    if residual:
        peft_model.prompt_encoder["default"] = ResidualPrompt(encoder.embedding, residual)
    return peft_model


@torch.no_grad()
def _start_at_shared_prompt(encoder: MultitaskPromptEmbedding) -> None:
    """Make every task's `cols [P, R] @ rows [R, H]`, by which the shared prompt is multiplied, exactly 1.

    PEFT draws both with deviation 0.02: a product of about 4e-4, and with it prompts of next to nothing. Here the
    first rank is ones, and of further ranks one factor is noise and the other zero, as LoRA starts.
    """
    cols, rows = encoder.prefix_task_cols, encoder.prefix_task_rows
    cols.normal_(std=0.02)[:, :, 0] = 1
    rows.zero_()[:, 0] = 1


class ResidualPrompt(BasePromptEncoder):
    """E + LayerNorm(Up(ReLU(Down(E)))) in place of E `[P, H]` (Razdaibiedina et al. 2023, section 3).

    The norm's weight starts at a tenth of E's deviation rather than at 1, so that the prompt starts near E.
    """

    def __init__(self, embedding: torch.nn.Embedding, width: int) -> None:
        super().__init__()
        size = embedding.embedding_dim
        self.embedding = embedding
        self.network = torch.nn.Sequential(
            torch.nn.Linear(size, width), torch.nn.ReLU(), torch.nn.Linear(width, size), torch.nn.LayerNorm(size)
        )
        torch.nn.init.constant_(self.network[-1].weight, 0.1 * embedding.weight.std().item())
        self.network.to(embedding.weight.device)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(indices)
        return embedded + self.network(embedded)


def add_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """The model with a trainable adapter that is no prompt, as LoRA.

    Raises:
        RecipeError: the model has no modules of these names.
    """
    wrapper = PeftModelForSeq2SeqLM if model.config.is_encoder_decoder else PeftModelForCausalLM
    try:
        return wrapper(model, config)
    except ValueError as error:  # of modules that the model does not have
        raise RecipeError(f"lora_target_modules: {error}") from error


def load_adapter(
    model: PreTrainedModel, folder: str | Path, is_trainable: bool = False, config: PeftConfig | None = None
) -> PeftModel:
    """The base model with a saved adapter, for evaluation and prediction, or to go on training.

    What P-tuning's encoder or a prefix's network wrote goes on as the soft prompt or prefix that it is; PEFT's own
    `is_trainable=True` raises for every prompt.

    Args:
        folder: or a hub id, as `adapter_folder` takes it.
        config: what `load_adapter_config` found there and `check_adapter` passed; it is changed.

    Returns:
        In evaluation mode; a prompt as `add_soft_prompt` adds it. That the model has another name than the one it was
        trained on is a warning.

    Raises:
        AdapterError: not an adapter, one of another model, or a hub id that cannot be had.
    """
    if config is None:
        config = load_adapter_config(folder)
        check_adapter(config, folder, model.config, renamed=True)
    folder = adapter_folder(folder)
    config.inference_mode = not is_trainable
    if not config.is_prompt_learning:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable).eval()
    method = find_method(config.peft_type)
    if is_trainable and method.continues_as != method.name:
        config = prompt_config(model, config.num_virtual_tokens)
    if isinstance(config, PrefixTuningConfig):
        config.prefix_projection = False  # the file holds what the network wrote
    if type(config) is PromptTuningConfig:
        config.prompt_tuning_init = "RANDOM"  # not anew from a text, for which PEFT would look for the tokenizer
    peft_model = add_soft_prompt(model, config)
    peft_model.load_adapter(str(folder), "default", is_trainable, torch_device=str(model.device))
    if not is_trainable:
        peft_model.requires_grad_(False)
    return peft_model.eval()


def load_adapter_config(folder: str | Path) -> PeftConfig:
    """The configuration of an adapter, by its folder or hub id; reads no weights.

    Raises:
        AdapterError: no adapter there, or one with prompts of several tasks.
    """
    folder = adapter_folder(folder)
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if missing and (folder / "config.json").is_file():
        raise AdapterError(
            f"{folder} is a whole model, as method: full trains; give it as --model_name_or_path, without --adapter"
        )
    if missing:
        raise AdapterError(
            f"{folder}: no {missing[0]} there; --adapter wants the folder that `prompt-tuning train` wrote"
        )
    try:
        config = load_prompt_config(folder)
        with safe_open(folder / "adapter_model.safetensors", "pt"):
            pass
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise AdapterError(f"{folder}: its files are no adapter's, or not whole: {error}") from error
    if find_method(config.peft_type).trains_several_tasks:
        tasks = sorted(str(path.parent) for path in folder.glob("*/template.yaml"))
        raise AdapterError(
            f"{folder} holds the prompts of {config.num_tasks} tasks at once; name the folder of one"
            f"{': ' if tasks else ', as train writes them'}{', '.join(tasks)}"
        )
    return config


def check_adapter(
    config: PeftConfig, folder: str | Path, model_config: PretrainedConfig, renamed: bool = False
) -> None:
    """Raise AdapterError unless the adapter was trained on a model of this name and size.

    Args:
        renamed: the model was given for this adapter, by a folder that may have another name: that is then a warning.
    """
    trained_on, size = config.base_model_name_or_path or "", model_config.get_text_config().hidden_size
    name = model_config.name_or_path
    trained_size = size
    # Only a prompt of embeddings says the hidden size of its model, and CPTConfig forgets it when it is read.
    if find_method(config.peft_type).trains_embeddings and config.token_dim is not None:
        trained_size = config.token_dim
    if trained_size == size and Path(trained_on).name == Path(name).name:
        return
    found = (
        f"{folder} was trained on {trained_on} (hidden size {trained_size}), the model here is {name} "
        f"(hidden size {size})"
    )
    if not renamed or trained_size != size:
        raise AdapterError(f"{found}; set model_name_or_path to the model it was trained on")
    logger.warning("%s; predictions are those of the training only if it is that model under another name", found)
