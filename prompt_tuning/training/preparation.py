"""Refuse what a PromptTuningTrainer cannot do as soon as it is built, and prepare its model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate.state import is_initialized
from peft import PeftModel
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Seq2SeqTrainingArguments, TrainingArguments

from prompt_tuning.arguments.training_args import NO_AUTO_FIND_BATCH_SIZE, sharding_errors
from prompt_tuning.engine.dispatch import (
    autocast_dtype,
    check_checkpointing,
    check_one_device,
    get_base,
    has_prompt,
)
from prompt_tuning.engine.shared_prefix import SharedPrefixModel
from prompt_tuning.engine.stop_texts import add_end_tokens
from prompt_tuning.errors import AdapterError, ErrorList, RecipeError
from prompt_tuning.training.evaluated_rows import check_length

logger = logging.getLogger(__name__)


def takes_eval_prediction(compute_metrics: Callable[..., Any]) -> bool:
    """Return whether metrics are computed from Trainer's `EvalPrediction`, not from predicted texts and references."""
    parameters = inspect.signature(compute_metrics).parameters.values()
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return len(required) == 1


def check_arguments(
    args: Any,
    eval_dataset: Any,
    compute_metrics: Callable[..., Any] | None,
    preprocess_logits_for_metrics: Callable[..., Any] | None,
) -> None:
    """Raise a PromptTuningError for training arguments and rows that an evaluation would fail with, or ignore.

    Args:
        args: the training arguments.
        eval_dataset: one evaluation set, several by name, or None.
        compute_metrics: in either form.
        preprocess_logits_for_metrics: Trainer's argument, or None.
    """
    if not isinstance(args, Seq2SeqTrainingArguments):
        raise RecipeError(
            f"args: {type(args).__name__} has no predict_with_generate. Pass PromptTuningArguments or "
            "Seq2SeqTrainingArguments, which take the same settings"
        )
    reasons = {
        NO_AUTO_FIND_BATCH_SIZE: args.auto_find_batch_size,
        "batch_eval_metrics: metrics are computed over all rows together. Leave it out.": (
            args.batch_eval_metrics and compute_metrics
        ),
        "eval_do_concat_batches false: predictions are given in the order of the rows. Leave it out.": (
            not args.eval_do_concat_batches
        ),
        "include_for_metrics loss: Trainer repeats the mean loss of a batch. Leave it out; evaluate gives the loss.": (
            "loss" in args.include_for_metrics
        ),
        "include_for_metrics inputs: compute_metrics(predictions, references) gets no inputs. Leave it out, or give a "
        "compute_metrics(eval_prediction).": (
            "inputs" in args.include_for_metrics and compute_metrics and not takes_eval_prediction(compute_metrics)
        ),
        "preprocess_logits_for_metrics: evaluations keep no logits; compute_metrics gets what is generated. Leave it "
        "out.": preprocess_logits_for_metrics,
        f"label_names {args.label_names}: targets are read from the column labels. Rename the column, and leave "
        "label_names out.": args.label_names not in (None, ["labels"]),
    }
    reasons |= dict.fromkeys(sharding_errors(args), True)
    errors = ErrorList(RecipeError(reason) for reason in reasons if reasons[reason])
    for rows in eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]:
        if rows is not None:
            with errors.collect():
                check_length(rows)
    errors.raise_all()


def set_up_devices(args: Seq2SeqTrainingArguments) -> None:
    """Use one of several GPUs that one process sees, and log it; use the DeepSpeed of an earlier trainer of this run.

    Unlike this, Trainer's DataParallel would multiply the rows of a step, and copy the prompt at each one.
    """
    if args.n_gpu > 1:
        logger.warning(
            "%s GPUs are visible, and this process uses one of them, %s. To use all, start one process for each: "
            "accelerate launch --config_file recipes/accelerate/ddp.yaml",
            args.n_gpu,
            args.device,
        )
        args._n_gpu = 1  # noqa: SLF001 - no public name; Trainer sets it, too
    if args.deepspeed_plugin is not None and is_initialized():
        args.deepspeed_plugin = None  # accelerate refuses to be given one again, and has kept it.


def check_model(model: PreTrainedModel | PeftModel, args: Seq2SeqTrainingArguments) -> None:
    """Raise a PromptTuningError for a model that rows are not exact in, or that an argument has no meaning for."""
    check_one_device(get_base(model))
    if not has_prompt(model):
        return
    if not (model.config.is_encoder_decoder or isinstance(model, SharedPrefixModel)):
        raise AdapterError(
            f"a {type(model).__name__} pads its rows before the prompt and so gives them other predictions than "
            "alone; make it by add_soft_prompt(model, config)"
        )
    if args.activation_checkpointing and isinstance(model, SharedPrefixModel):
        check_checkpointing(get_base(model), model.active_peft_config)
    if args.neftune_noise_alpha is not None:
        raise RecipeError(
            "neftune_noise_alpha: noise on embeddings is for fine-tuning; rows that share a prompt have no padded "
            "length to scale it by. Leave it out, or train LoRA or the whole model"
        )


def check_shared_text(model: PreTrainedModel | PeftModel, args: Seq2SeqTrainingArguments) -> None:
    """Raise a RecipeError if `group_shared` has no effect on the training of a model, or with its order of rows."""
    if getattr(args, "group_shared", 1) == 1:
        return
    reason = ""
    if args.train_sampling_strategy != "group_by_length":
        reason = f"train_sampling_strategy is {args.train_sampling_strategy}, not group_by_length"
    elif not isinstance(model, SharedPrefixModel):
        reason = f"a {type(model).__name__} reads each row by itself"
    elif model.execution_path.name != "packed":
        reason = model.execution_path.reason
    if reason:
        raise RecipeError(f"group_shared: rows of a batch share no text here ({reason}). Leave it out")


def prepare_model(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, args: Seq2SeqTrainingArguments
) -> None:
    """Set what training and evaluation need of the model and the tokenizer."""
    base = get_base(model)
    if args.generation_config is not None:
        base.generation_config = model.generation_config  # A prompt generates by its base model.
    add_end_tokens(base, tokenizer)
    tokenizer.padding_side = "right"  # This is for training. An evaluation pads the sources on the left.
    if args.torch_compile and isinstance(model, SharedPrefixModel):
        model.compile_layers(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    if args.world_size > 1:
        # Each process reads the frozen weights from the same files. DDP would send them all once more.
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        frozen += [name for name, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)  # noqa: SLF001 - no public name


def report_repeated_casts(model: torch.nn.Module, args: TrainingArguments) -> None:
    """Log that autocast casts frozen float32 weights anew at each forward. It keeps the casts of trained ones only."""
    half = autocast_dtype(vars(args))
    frozen = [weight.dtype for weight in model.parameters() if not weight.requires_grad]
    if half is not None and len(frozen) < len(list(model.parameters())) and torch.float32 in frozen:
        logger.warning(
            "the frozen weights are float32, and each forward casts them, so that each new token does. Load them with "
            "dtype: %s, in half the memory; what is trained stays float32",
            str(half).removeprefix("torch."),
        )
