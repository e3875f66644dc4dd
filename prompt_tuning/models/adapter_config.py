"""Read the configuration of a saved adapter, and check its weights against it, before a model loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypedDict

from peft import OFTConfig, PeftConfig, TaskType, XLoraConfig

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.engine.adapter_weights import ADVICE, check_weights
from prompt_tuning.engine.trained_config import TrainedPromptConfig, TrainedTokensConfig
from prompt_tuning.errors import AdapterError, DataError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.encoder_decoder_prefix import load_prompt_config
from prompt_tuning.support.files import read_json
from prompt_tuning.support.json_types import Limits
from prompt_tuning.support.run_folder import RunFolder

SIZES = (
    "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules", "num_tasks",
    "num_ranks", "encoder_hidden_size", "r",
)  # fmt: skip
"""The fields of PEFT's configurations that the shapes of weights depend on."""

MAY_BE_ZERO = {"num_virtual_tokens": TrainedTokensConfig, "r": OFTConfig}
"""The sizes that are 0 in some adapters, with their configuration. OFT may have a block size in place of a rank."""

LARGEST_SIZE = 2**31 - 1
"""The largest of these sizes that is read, so that torch can count the numbers of a tensor."""


PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
"""The fields with regular expressions, or with names of modules."""

REPEATED_GROUP, REPETITION, MAX_REPETITIONS = re.compile(r"\)[*+{]"), re.compile(r"[*+{]|(?<![*+?}(])\?"), 4
MAX_CHOICES, MAX_ALTERNATIVES = 5, 20
"""The most repetitions and groups with alternatives together, and the most signs `|` of all groups."""


MAX_NAMES = 600
"""The most modules that one of these fields names, since PEFT compares each module of the model with each."""

LOOPS = ("loftq_iter", "psoft_svd_lowrank_niter", "num_cayley_neumann_terms")
"""The fields that count repetitions of a computation for every layer."""

MAX_LOOPS = 99

MAX_BYTES = 1_000_000
"""The size of a configuration."""

MAX_COPIES = 100
"""The most groups of layers that LoRA's layer_replication may copy."""


class AdapterFields(TypedDict, total=False):
    """The fields of PEFT's configurations whose types PEFT relies on and does not check."""

    base_model_name_or_path: str | None
    revision: str | None
    task_type: str | None
    inference_mode: bool
    modules_to_save: list[str] | None
    tokenizer_name_or_path: str | None
    prompt_tuning_init_text: str | None
    target_modules: str | list[str] | None
    exclude_modules: str | list[str] | None
    target_parameters: list[str] | None
    layers_to_transform: int | list[int] | None
    layers_pattern: str | list[str] | None
    layer_replication: list[list[int]] | None
    rank_pattern: dict[str, int] | None
    alpha_pattern: dict[str, float] | None
    init_lora_weights: bool | Annotated[str, Limits(pattern=r"[a-z_]+\d{0,2}")] | None
    loftq_config: dict[str, Any] | None
    lora_alpha: float
    lora_dropout: float
    fan_in_fan_out: bool
    use_rslora: bool
    use_dora: bool
    cpt_token_ids: list[int] | None
    cpt_mask: list[int] | None
    cpt_tokens_type_mask: list[int] | None
    places: dict[str, list[int]] | None
    text_token_ids: list[int]
    layer_vectors: bool
    trained_text: dict[str, Any] | None


def load_adapter_config(folder: str | Path) -> PeftConfig:
    """Return the configuration of an adapter whose weights fit it and are finite.

    Args:
        folder: a folder or a hub id.

    Raises:
        AdapterError: the folder holds no adapter, one whose weights do not fit its configuration or are not finite, or
            one with the prompts of several tasks.
    """
    run = RunFolder(adapter_folder(folder))
    run.check_adapter()
    config = read_adapter_config(run)
    if isinstance(config, XLoraConfig):
        # PEFT would load them from any folder, and from the hub.
        raise AdapterError(f"{run.path}: it mixes other adapters, which its file names. Name one of them instead.")
    tensors = check_weights(config, run.path)
    if find_method(config.peft_type).trains_embeddings and config.token_dim is None:
        config.token_dim = tensors["prompt_embeddings"].shape[1]  # CPTConfig forgets it when it is read.
    if find_method(config.peft_type).trains_several_tasks:
        tasks = ", ".join(sorted(str(path.parent) for path in run.path.glob(f"*/{run.TEMPLATE}")))
        advice = f"Name the folder of one: {tasks}." if tasks else "Name the folder of one, as train writes them."
        raise AdapterError(f"{run.path}: it holds the prompts of {config.num_tasks} tasks. {advice}")
    return config


def read_adapter_config(run: RunFolder) -> PeftConfig:
    """Return the configuration of an adapter.

    Raises:
        AdapterError: it is not one of PEFT's, or a field in it has another type.
    """
    if run.adapter_config.is_file() and run.adapter_config.stat().st_size > MAX_BYTES:
        raise AdapterError(f"{run.adapter_config}: larger than {MAX_BYTES:,} bytes. {ADVICE}")
    try:
        config = load_prompt_config(run.path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ImportError) as error:
        raise AdapterError(f"{run.adapter_config}: not the configuration of an adapter: {error}. {ADVICE}") from error
    try:
        read_json(run.adapter_config, AdapterFields)
    except DataError as error:
        raise AdapterError(str(error)) from error
    _check_sizes(config, run)
    _check_patterns(config, run)
    if config.is_prompt_learning:
        _check_prompt(config, run)
    return config


def _check_sizes(config: PeftConfig, run: RunFolder) -> None:
    """Raise an AdapterError for a size that no adapter has, or for more repetitions than one needs."""
    for name in SIZES:
        size = vars(config).get(name)
        least = 0 if isinstance(config, MAY_BE_ZERO.get(name, ())) else 1
        if size is not None and (type(size) is not int or not least <= size <= LARGEST_SIZE):
            raise AdapterError(
                f"{run.adapter_config}: {name} is {size!r}, expected a whole number from {least} to {LARGEST_SIZE}. "
                f"{ADVICE}"
            )
    fields = vars(config) | (vars(config).get("loftq_config") or {})
    for name in LOOPS:
        number = fields.get(name, 0)
        if type(number) is not int or number > MAX_LOOPS:
            problem = f"{name} is {number!r}, expected a whole number up to {MAX_LOOPS}"
            raise AdapterError(f"{run.adapter_config}: {problem}. {ADVICE}")
    if len(vars(config).get("layer_replication") or ()) > MAX_COPIES:
        raise AdapterError(f"{run.adapter_config}: layer_replication has more than {MAX_COPIES} entries. {ADVICE}")
    for place, sizes in (vars(config).get("places") or {}).items():
        if len(sizes) != 3:
            raise AdapterError(f"{run.adapter_config}: places.{place} has {len(sizes)} sizes, expected 3. {ADVICE}")


def _check_prompt(config: PeftConfig, run: RunFolder) -> None:
    """Raise an AdapterError for a prompt without a length, or for more models than its base model has."""
    if config.num_virtual_tokens is None:
        raise AdapterError(f"{run.adapter_config}: num_virtual_tokens is missing. {ADVICE}")
    number = config.num_transformer_submodules or 1
    most = 1 if config.task_type == TaskType.CAUSAL_LM or isinstance(config, TrainedPromptConfig) else 2
    if number > most:
        raise AdapterError(
            f"{run.adapter_config}: num_transformer_submodules is {number}, expected a whole number from 1 to {most}. "
            f"{ADVICE}"
        )


def _check_patterns(config: PeftConfig, run: RunFolder) -> None:
    """Raise an AdapterError for a regular expression that PEFT could compare with a module's name for hours."""
    for name in PATTERNS:
        value = vars(config).get(name) or ()
        if not isinstance(value, str) and len(value) > MAX_NAMES:
            raise AdapterError(f"{run.adapter_config}: {name} has more than {MAX_NAMES} entries. {ADVICE}")
        for pattern in [value] if isinstance(value, str) else value:
            repetitions, alternatives = len(REPETITION.findall(pattern)), pattern.count("|")
            choices = repetitions + (pattern.count("(") if alternatives else 0)
            too_many = repetitions > MAX_REPETITIONS or choices > MAX_CHOICES or alternatives > MAX_ALTERNATIVES
            if REPEATED_GROUP.search(pattern) or too_many:
                raise AdapterError(
                    f"{run.adapter_config}: {name} has the pattern {pattern[:80]!r}, which repeats too much. Name the "
                    "modules in a list."
                )
