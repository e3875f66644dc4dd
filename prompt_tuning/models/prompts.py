"""Add a prompt, or LoRA to compare with, to a frozen base model, and load saved ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    CartridgeConfig,
    CartridgeEncoder,
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
from transformers import PreTrainedModel

from prompt_tuning.arguments.methods import METHODS, find_method
from prompt_tuning.arguments.prompt_args import PREFIX_PLACES, PromptArguments
from prompt_tuning.engine.adapter_weights import ADVICE
from prompt_tuning.engine.base_checks import cache_shape
from prompt_tuning.engine.dispatch import has_tested_cache
from prompt_tuning.engine.shared_prefix import SharedPrefixModel
from prompt_tuning.engine.trained_config import TrainedPrefixConfig, TrainedPromptConfig
from prompt_tuning.engine.trained_tokens import check_trained_tokens
from prompt_tuning.errors import AdapterError, RecipeError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.models.base_model import check_adapter
from prompt_tuning.models.encoder_decoder import EncoderDecoderPromptModel
from prompt_tuning.models.encoder_decoder_prefix import (
    EncoderDecoderPrefixConfig,
    TrainedEncoderDecoderPrefixConfig,
)
from prompt_tuning.models.loading import check_method
from prompt_tuning.support.files import unmistakable
from prompt_tuning.support.text import counted

# The names under which configurations of models hold these numbers, as PEFT looks for them.
NUM_HEADS_NAMES = {"num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"}
NUM_LAYERS_NAMES = {"num_hidden_layers", "num_layers", "n_layer"}

CONFIGS = {
    "prompt_tuning": PromptTuningConfig, "p_tuning": PromptEncoderConfig, "prefix_tuning": PrefixTuningConfig,
    "cartridge": CartridgeConfig, "cpt": CPTConfig, "multitask_prompt_tuning": MultitaskPromptTuningConfig,
    "lora": LoraConfig,
}  # fmt: skip
"""PEFT's configuration of every method that adds something to a model."""

TRAINED = {
    PromptTuningConfig: TrainedPromptConfig, PrefixTuningConfig: TrainedPrefixConfig,
    EncoderDecoderPrefixConfig: TrainedEncoderDecoderPrefixConfig,
}  # fmt: skip
"""The configurations that also have trained tokens."""

# With these inits PEFT loads the matrices of the tasks too.
SOURCE_TASK_INITS = (MultitaskPromptTuningInit.AVERAGE_SOURCE_TASKS, MultitaskPromptTuningInit.EXACT_SOURCE_TASK)


def prompt_config(
    model: PreTrainedModel,
    num_virtual_tokens: int,
    args: PromptArguments | None = None,
    ids: Sequence[int] = (),
    *,
    text_ids: Sequence[int] = (),
    trained_text: dict[str, Any] | None = None,
) -> PeftConfig:
    """Return PEFT's configuration of a method for this model, by default that of prompt tuning (Lester et al. 2021).

    An encoder-decoder prompt stands only before the encoder's input, so the configuration has one submodule. PEFT's
    default of two allocates twice the rows, and the second half never gets a gradient.

    Args:
        model: the frozen base model.
        num_virtual_tokens: P, the length of a prompt. Methods without a prompt ignore it.
        args: the method and its settings.
        ids: token ids, `[P]`, of the text that cpt changes.
        text_ids: token ids, `[S]`, of the text that is trained inside the template, if any.
        trained_text: what is trained of the template, for those who encode rows.

    Raises:
        ModelError: the method is prefix tuning, and the model has layers without keys and values; or trained tokens
            of the model have not been tested.
    """
    args = args or PromptArguments()
    check_method(model.config, args.method)
    common = dict(
        task_type=TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM,
        base_model_name_or_path=unmistakable(model.name_or_path),
    )
    if METHODS[args.method].has_prompt:
        common |= {"num_virtual_tokens": num_virtual_tokens}
    if METHODS[args.method].trains_embeddings:
        common |= {"num_transformer_submodules": 1, "token_dim": model.get_input_embeddings().embedding_dim}
        # PEFT asks every prompt for these, and needs them for prefixes only.
        names = model.config.to_dict()
        names = names.get("text_config", names).keys()
        if not NUM_HEADS_NAMES & names:
            common |= {"num_attention_heads": 1}
        if not NUM_LAYERS_NAMES & names:
            common |= {"num_layers": 1}
    if args.layer_vectors or text_ids:
        check_trained_tokens(model.config, layer_vectors=args.layer_vectors)
        common |= {"text_token_ids": list(text_ids), "layer_vectors": args.layer_vectors, "trained_text": trained_text}
        common |= {"num_layers": model.config.get_text_config().num_hidden_layers}  # PEFT does not find BART's.
    config_class: Any = CONFIGS[args.method]
    if config_class is PrefixTuningConfig and model.config.is_encoder_decoder:
        config_class = EncoderDecoderPrefixConfig
    if "text_token_ids" in common:
        config_class = TRAINED[config_class]
    config = config_class(**common | _method_settings(model, args, ids))
    if isinstance(config, CPTConfig):
        config.num_attention_heads = common.get("num_attention_heads")  # CPTConfig drops the argument.
    return config


def _method_settings(model: PreTrainedModel, args: PromptArguments, ids: Sequence[int]) -> dict[str, Any]:
    """Return the settings that only the configuration of this method has."""
    match args.method:
        case "p_tuning":
            return {
                "encoder_reparameterization_type": args.encoder_reparameterization_type,
                "encoder_hidden_size": network_width(model, args),
            }
        case "prefix_tuning":
            settings = {"prefix_projection": args.prefix_projection, "encoder_hidden_size": network_width(model, args)}
            if model.config.is_encoder_decoder:
                return settings | {place: vars(args)[place] for place in PREFIX_PLACES}
            return settings | _sizes_of_cache(model)
        case "cartridge":
            return {"num_frozen_tokens": args.num_frozen_tokens, **_sizes_of_cache(model)}
        case "cpt":
            # Type 2 is "input" to PEFT: such a token may move as far as opt_projection_epsilon lets it.
            return {"cpt_token_ids": list(ids), "cpt_mask": [1] * len(ids), "cpt_tokens_type_mask": [2] * len(ids)}
        case "multitask_prompt_tuning":
            return {"num_tasks": len(args.tasks or ()), "num_ranks": args.num_ranks}
        case "lora":
            return {
                "r": args.lora_r,
                "lora_alpha": args.lora_alpha,
                "lora_dropout": args.lora_dropout,
                "target_modules": args.lora_target_modules or "all-linear",
                "use_rslora": args.lora_use_rslora,
                "use_dora": args.lora_use_dora,
            }
    return {}


def _sizes_of_cache(model: PreTrainedModel) -> dict[str, int]:
    """Return the sizes of a model's keys and values, which PEFT guesses from names; none if it guesses them right."""
    if has_tested_cache(model):
        return {}
    layers, heads, size = cache_shape(model)
    return {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * size}


def network_width(model: PreTrainedModel, args: PromptArguments) -> int:
    """Return the hidden units of a network that writes a prompt: `encoder_hidden_size`, or the model's hidden size."""
    return args.encoder_hidden_size or model.config.get_text_config().hidden_size


def add_soft_prompt(
    model: PreTrainedModel,
    config: PeftConfig,
    initial: torch.Tensor | None = None,
    residual: int | None = None,
    layer_scales: torch.Tensor | None = None,
) -> PeftModel:
    """Return the model with a trainable prompt, which is float32 whatever the type of the model.

    Args:
        model: the frozen base model. It is changed.
        config: the configuration from `prompt_config`, or another of PEFT's for prompts.
        initial: the start of a soft prompt, `[P, H]`, or of a prefix, `[P, layers * 2 * heads * D]`. By default
            `config` decides.
        residual: the hidden units of a network that is trained beside the soft prompt (Residual Prompt Tuning).
        layer_scales: `[L]`, the units of layer vectors, which `initialization.layer_scales` measures; by default 1.
            Those of an encoder are followed by those of its decoder.

    Returns:
        A `SharedPrefixModel` for a causal model, an `EncoderDecoderPromptModel` for an encoder-decoder model.

    Raises:
        RuntimeError: `initial` does not have the shape of the prompt.
    """
    wrapper = EncoderDecoderPromptModel if model.config.is_encoder_decoder else SharedPrefixModel
    peft_model = wrapper(model, config)
    peft_model.prompt_encoder.float()
    encoder = peft_model.prompt_encoder["default"]
    if isinstance(encoder, CartridgeEncoder) and initial is not None:
        encoder.load_prompt_embeddings(initial)
    elif initial is not None:
        encoder.embedding.weight.data.copy_(initial)
    if layer_scales is not None:
        encoder.trained_tokens.set_scales(layer_scales)
    if isinstance(encoder, MultitaskPromptEmbedding) and config.prompt_tuning_init not in SOURCE_TASK_INITS:
        _start_at_shared_prompt(encoder)
    if residual:
        peft_model.prompt_encoder["default"] = ResidualPrompt(encoder.embedding, residual)
    return peft_model


@torch.no_grad()
def _start_at_shared_prompt(encoder: MultitaskPromptEmbedding) -> None:
    """Make the product `cols [P, R] @ rows [R, H]` of every task 1, so that each task starts at the shared prompt.

    The product multiplies the shared prompt. PEFT draws both factors with deviation 0.02, so its products are about
    4e-4 and its prompts almost zero. Here the first rank is ones. In the other ranks one factor is noise and the other
    zero, as in LoRA (Hu et al. 2022).
    """
    cols, rows = encoder.prefix_task_cols, encoder.prefix_task_rows
    cols.normal_(std=0.02)[:, :, 0] = 1
    rows.zero_()[:, 0] = 1


class ResidualPrompt(BasePromptEncoder):
    """A soft prompt E `[P, H]` plus a network of it: E + LayerNorm(Up(ReLU(Down(E)))).

    Source: Razdaibiedina et al. 2023, Residual Prompt Tuning, section 3. Unlike theirs, the weight of the norm starts
    at a tenth of E's deviation instead of 1, so that the prompt starts near E.

    Args:
        embedding: E.
        width: the hidden units of the network.
    """

    def __init__(self, embedding: torch.nn.Embedding, width: int) -> None:
        """Create the network, and scale its output to the embeddings."""
        super().__init__()
        size = embedding.embedding_dim
        self.embedding = embedding
        self.network = torch.nn.Sequential(
            torch.nn.Linear(size, width), torch.nn.ReLU(), torch.nn.Linear(width, size), torch.nn.LayerNorm(size)
        )
        torch.nn.init.constant_(self.network[-1].weight, 0.1 * embedding.weight.std().item())
        self.network.to(embedding.weight.device)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the prompt `[..., H]` at virtual tokens `[...]`."""
        embedded = self.embedding(indices)
        return embedded + self.network(embedded)


def add_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Return the model with a trainable adapter without a prompt, such as LoRA.

    Args:
        model: the frozen base model. It is changed.
        config: the configuration from `prompt_config`, or another of PEFT's.

    Raises:
        RecipeError: the model has no modules of the names in lora_target_modules.
    """
    wrapper = PeftModelForSeq2SeqLM if model.config.is_encoder_decoder else PeftModelForCausalLM
    try:
        return wrapper(model, config)
    except ValueError as error:
        raise RecipeError(f"lora_target_modules: {error}") from error


def load_adapter(
    model: PreTrainedModel, folder: str | Path, *, is_trainable: bool = False, config: PeftConfig | None = None
) -> PeftModel:
    """Return the base model with a saved adapter, to predict with it or to continue its training.

    A saved P-tuning or CPT adapter is continued as a plain soft prompt, a projected prefix as a plain prefix. PEFT's
    own `is_trainable=True` raises for every prompt.

    Args:
        model: the frozen base model. It is changed. Another name than that of the model in training is a warning.
        folder: a folder or a hub id.
        is_trainable: the training is continued.
        config: the configuration from `load_adapter_config`, if `check_adapter` has passed it. It is changed.

    Returns:
        The model in evaluation mode. A prompt is added as `add_soft_prompt` adds it.

    Raises:
        AdapterError: the folder holds no adapter, or one of another model, or the hub does not have it.
    """
    if config is None:
        config = load_adapter_config(folder)
        check_adapter(config, folder, model.config, renamed=True)
    folder = adapter_folder(folder)
    config.inference_mode = not is_trainable
    if not config.is_prompt_learning:
        return _load_layers(model, folder, config, is_trainable=is_trainable)
    peft_model = add_soft_prompt(model, config_of_saved(model, config, is_trainable=is_trainable))
    peft_model.load_adapter(str(folder), "default", is_trainable=is_trainable, torch_device=str(model.device))
    if not is_trainable:
        peft_model.requires_grad_(requires_grad=False)
    return peft_model.eval()


def _load_layers(model: PreTrainedModel, folder: Path, config: PeftConfig, *, is_trainable: bool) -> PeftModel:
    """Return the model with saved layers, such as LoRA's; unlike PEFT, refuse a file that lacks one of them."""
    try:
        peft_model = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)(model, config)
        loaded = peft_model.load_adapter(str(folder), "default", is_trainable=is_trainable)
    except (ImportError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        # PEFT checks few of the fields that it reads, and finds shapes, names and modules only in the model.
        raise AdapterError(f"{folder}: it does not fit the model: {error}. {ADVICE}") from error
    for reason, names in (("lack", loaded.missing_keys), ("have no place for", loaded.unexpected_keys)):
        if names:
            count = counted(len(names), "tensor")
            raise AdapterError(f"{folder}: its weights {reason} {count}, the first is {names[0]}. {ADVICE}")
    return peft_model.eval()


def config_of_saved(model: PreTrainedModel, config: PeftConfig, *, is_trainable: bool) -> PeftConfig:
    """Return the configuration of the prompt that a file holds, without the network or the text that made it."""
    method = find_method(config.peft_type)
    if is_trainable and method.continues_as != method.name:
        return prompt_config(model, config.num_virtual_tokens)
    if isinstance(config, PrefixTuningConfig):
        config.prefix_projection = False
    if type(config) in (PromptTuningConfig, TrainedPromptConfig):
        # PEFT would load the tokenizer to start from the text again.
        config.prompt_tuning_init = "RANDOM"
    return config
