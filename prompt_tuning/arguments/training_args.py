"""Seq2SeqTrainingArguments with the defaults that prompt tuning needs."""

import copy
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import Seq2SeqTrainingArguments, Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.training_args import OptimizerNames
from transformers.utils import is_liger_kernel_available

from prompt_tuning.arguments.methods import PROMPT_LEARNING_RATE
from prompt_tuning.errors import first_line

NO_AUTO_FIND_BATCH_SIZE = (
    "auto_find_batch_size: smaller batches would make other steps. Set activation_checkpointing: true, or lower "
    "per_device_train_batch_size and raise gradient_accumulation_steps."
)

OPTIMIZERS_BY_NUMBER = (
    OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED, OptimizerNames.RMSPROP, OptimizerNames.SGD,
)  # fmt: skip
"""Optimisers that change each number by its own gradients, so that they may be given parts of the weights."""


def sharding(args: Seq2SeqTrainingArguments) -> str:
    """Return what splits the model, by the arguments or by `accelerate launch`: FSDP, ZeRO-3 or nothing."""
    if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
        return "ZeRO-3"
    return "FSDP" if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP") else ""


def sharding_errors(args: Seq2SeqTrainingArguments) -> list[str]:
    """Return what a split model cannot be trained with, one message each."""
    plugin = args.fsdp_plugin_args or {}
    errors = []
    is_fsdp = sharding(args) == "FSDP"
    if is_fsdp and int(plugin.get("fsdp_version") or os.environ.get("FSDP_VERSION", "1")) != 2:
        errors.append("FSDP: version 1 does not run here. Set fsdp_version: 2, as recipes/accelerate/fsdp2.yaml does.")
    if is_fsdp and (plugin.get("cpu_offload") or parse_flag_from_env("FSDP_OFFLOAD_PARAMS")):
        errors.append(
            "fsdp_offload_params: the weights would lie on the CPU and the rows on the GPU. Set it to false; load the "
            "frozen weights in bfloat16, or take more GPUs."
        )
    return errors + (deepspeed_errors(args) if args.deepspeed_plugin is not None else [])


def deepspeed_errors(args: Seq2SeqTrainingArguments) -> list[str]:
    """Return the settings that DeepSpeed would not train with as one process does, one message each."""
    errors = []
    if args.deepspeed_plugin.zero_stage == 0:
        errors.append("DeepSpeed: ZeRO stage 0 splits nothing. Launch it with recipes/accelerate/ddp.yaml.")
    if args.fp16:
        errors.append("fp16: DeepSpeed would round the trained weights to float16. Set bf16: true instead.")
    if args.optim not in OPTIMIZERS_BY_NUMBER:
        errors.append(
            f"optim {args.optim.value}: DeepSpeed gives an optimiser parts of the weights, for which this one takes "
            f"other steps. Set one of {', '.join(name.value for name in OPTIMIZERS_BY_NUMBER)}."
        )
    for section, setting in (("optimizer", "optim"), ("scheduler", "lr_scheduler_type")):
        if section in args.deepspeed_plugin.deepspeed_config:
            errors.append(
                f"{section} of DeepSpeed's configuration: it would replace {setting}. Remove it, and set {setting}."
            )
    return errors


@dataclass
class PromptTuningArguments(Seq2SeqTrainingArguments):
    """The flags of `Seq2SeqTrainingArguments` with other defaults, and three more.

    The few numbers of a prompt need a learning rate about a thousand times that of fine-tuning. Lester et al. 2021,
    section 3.2, use 0.3 with Adafactor; the default of Trainer, 5e-5, hardly changes a prompt. Unlike in a recipe,
    the default here does not depend on the method.
    """

    # A run's recipe.yaml has these settings even if the recipe did not set them.
    DEFAULTS: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "predict_with_generate",
        "train_sampling_strategy",
        "per_device_eval_batch_size",
        "per_device_eval_batch_tokens",
        "save_total_limit",
        "logging_steps",
        "metric_for_best_model",
        "greater_is_better",
    )

    learning_rate: float = field(
        default=PROMPT_LEARNING_RATE,
        metadata={
            "help": "The peak learning rate. 0.03 is that of method prompt_tuning; other methods, trained_text and "
            "layer_vectors have another default (docs/reference/recipe.md)."
        },
    )
    layer_vectors_learning_rate: float = field(
        default=1e-2,
        metadata={"help": "layer_vectors: their peak learning rate, in units of each layer's median input."},
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The shape of the learning rate's decay."})
    warmup_steps: float = field(
        default=0.06, metadata={"help": "Steps of linear warm-up; a number below 1 is a share of all steps."}
    )
    predict_with_generate: bool = field(
        default=True, metadata={"help": "Evaluate the texts that the model generates."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "'random', 'sequential', or 'group_by_length' (rows of similar length share a batch).",
            "choices": ["random", "sequential", "group_by_length", "batch_rebalance"],
        },
    )
    group_shared: int = field(
        default=1,
        metadata={
            "help": "Most training rows with the same passage or examples that are kept together in a batch, which "
            "then reads that text once; 1 draws rows without regard to it. Needs group_by_length."
        },
    )
    per_device_eval_batch_size: int = field(
        default=128,
        metadata={
            "help": "Most rows in an evaluation batch; the limit on tokens may allow fewer. On CUDA both defaults "
            "are multiplied, up to 8 times, by the free memory."
        },
    )
    per_device_eval_batch_tokens: int = field(
        default=8192,
        metadata={
            "help": "Most tokens in an evaluation batch: its rows times the length of the longest, with prompt and "
            "new tokens. Where keys are read without copies, a prompt or text that opens every row counts once."
        },
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints that are kept; the best is always one of them."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without a gradient at each step; a prompt has none."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave nan and inf out of the logged loss; training then waits for the loss of each step."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every N steps."})

    def __post_init__(self) -> None:
        """Complete the settings by what the machine and the launcher decide.

        Raises:
            ImportError: a setting needs a package that is not installed.
            ValueError: settings exclude each other.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            # accelerate does not pass the `use_cpu` of its configuration on, and each process would train alone.
            self.use_cpu = True
        if self.use_cpu:
            # Trainer leaves ddp_timeout out on CPUs, and processes would wait half an hour for a lost one.
            PartialState(cpu=True, timeout=timedelta(seconds=self.ddp_timeout))
        super().__post_init__()
        # transformers would let ZeRO-3 split a model while it is read, and a prompt starts from whole embeddings.
        unset_hf_deepspeed_config()
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # Without an accelerator it only causes a warning.
        if self.mixed_precision in ("bf16", "fp16"):
            # `accelerate launch` sets it only in the environment, and the saved recipe would lack it.
            setattr(self, self.mixed_precision, True)

    def validation_errors(self) -> list[str]:
        """Return what Trainer would refuse of these settings as soon as it has a model, one message each."""
        if self.use_liger_kernel and not is_liger_kernel_available():
            return [
                "use_liger_kernel: liger-kernel is not installed. Run `pip install liger-kernel`, or leave it out."
            ]
        errors = sharding_errors(self)
        if self.auto_find_batch_size:
            errors.append(NO_AUTO_FIND_BATCH_SIZE)
        checks = {
            "report_to": self._create_reporters,
            "lr_scheduler_type": self._create_scheduler,
            "optim": self._create_optimizer_arguments,
        }
        for name, check in checks.items():
            try:
                check()
            except (ImportError, RuntimeError, TypeError, ValueError) as error:
                errors.append(f"{name}: {first_line(error).rstrip('.')}. Change it, or leave it out.")
        return errors

    def _create_reporters(self) -> None:
        for callback in get_reporting_integration_callbacks(self.report_to):
            callback()

    def _create_scheduler(self) -> None:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        get_scheduler(self.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=self.lr_scheduler_kwargs)

    def _create_optimizer_arguments(self) -> None:
        """Create what the optimiser takes, for a model of one layer. Some optimisers look at the model's layers."""
        args = copy.copy(self)
        if args.optim_target_modules:
            args.optim_target_modules = "all-linear"
        model = torch.nn.Sequential(torch.nn.Linear(1, 1))
        Trainer.get_optimizer_cls_and_kwargs(args, model)
