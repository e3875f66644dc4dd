"""Seq2SeqTrainingArguments with the defaults that prompt tuning needs."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

import torch
from accelerate import PartialState
from transformers import Seq2SeqTrainingArguments, Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_liger_kernel_available

from prompt_tuning.arguments.methods import PROMPT_LEARNING_RATE
from prompt_tuning.errors import first_line

NO_AUTO_FIND_BATCH_SIZE = (
    "auto_find_batch_size: smaller batches would make other steps. Set activation_checkpointing: true, or lower "
    "per_device_train_batch_size and raise gradient_accumulation_steps"
)


@dataclass
class PromptTuningArguments(Seq2SeqTrainingArguments):
    """The flags of `Seq2SeqTrainingArguments` with other defaults, and `per_device_eval_batch_tokens`.

    A prompt's few numbers want a learning rate some thousand times that of fine-tuning (Lester et al. 2021, section
    3.2, use 0.3 with Adafactor); PEFT's and Trainer's 5e-5 leaves them where they started.
    """

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
        default=PROMPT_LEARNING_RATE, metadata={"help": "The peak learning rate of the prompt."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The shape of the learning rate's decay."})
    warmup_steps: float = field(
        default=0.06, metadata={"help": "Steps of linear warm-up; below 1 a share of them all."}
    )
    predict_with_generate: bool = field(default=True, metadata={"help": "Evaluate what the model writes."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "'random', 'sequential', or 'group_by_length' (rows of like length share a batch).",
            "choices": ["random", "sequential", "group_by_length", "batch_rebalance"],
        },
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "The most rows of an evaluation batch, if its tokens allow them."}
    )
    per_device_eval_batch_tokens: int = field(
        default=8192,
        metadata={
            "help": "The most tokens of an evaluation batch: rows times the longest one with prompt and new tokens."
        },
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints kept; the best is always among them."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without a gradient at each step; a prompt has none."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave nan and inf out of the logged loss, at the price of waiting for each step."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every this many steps."})

    def __post_init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            # accelerate does not hand on its configuration's `use_cpu`, and each process would be one of one.
            self.use_cpu = True
        if self.use_cpu:
            # Trainer leaves ddp_timeout out then, and several processes would wait for a lost one half an hour.
            PartialState(cpu=True, timeout=timedelta(seconds=self.ddp_timeout))
        super().__post_init__()
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # would only bring a warning
        if self.mixed_precision in ("bf16", "fp16"):
            # `accelerate launch` says it in the environment alone, and the recipe would not have it.
            setattr(self, self.mixed_precision, True)

    def validation_errors(self) -> list[str]:
        """What Trainer would refuse of these settings once it has a model: each is tried without one."""
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        tries = {
            "report_to": lambda: [each() for each in get_reporting_integration_callbacks(self.report_to)],
            "lr_scheduler_type": lambda: get_scheduler(
                self.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=self.lr_scheduler_kwargs
            ),
            "optim": lambda: Trainer.get_optimizer_cls_and_kwargs(self),
        }
        if self.use_liger_kernel and not is_liger_kernel_available():
            return ["use_liger_kernel: liger-kernel is not installed; `pip install liger-kernel`, or leave it out"]
        problems = [NO_AUTO_FIND_BATCH_SIZE] if self.auto_find_batch_size else []
        for name, attempt in tries.items():
            try:
                attempt()
            except (ImportError, RuntimeError, TypeError, ValueError) as error:
                if not str(error).startswith("You need to pass a"):  # the model, to an optimiser that looks at it
                    problems.append(f"{name}: {first_line(error)}; change it, or leave it out")
        return problems
