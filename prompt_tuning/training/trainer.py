"""Seq2SeqTrainer for prompts and, to compare with, for LoRA and full fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import DynamoBackend
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.data.data_collator import DataCollator
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import HubStrategy, TrainOutput

from prompt_tuning.engine.dispatch import has_prompt
from prompt_tuning.engine.likelihood import Normalization
from prompt_tuning.engine.prompt_network import has_network, save_network
from prompt_tuning.engine.shared_prefix import SharedPrefixModel
from prompt_tuning.engine.target_batch import target_loss
from prompt_tuning.errors import RecipeError
from prompt_tuning.metrics.scores import MetricFunction
from prompt_tuning.models.quantization import allow_quantized_evaluation
from prompt_tuning.support.files import explain_full_disk
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.training import resuming
from prompt_tuning.training.callbacks import Divergence, TrainingStart
from prompt_tuning.training.checkpoints import KeepOnlyBest, atomic_checkpoint, load_named_adapter, rotate_checkpoints
from prompt_tuning.training.distributed import keep_losses_in_float32, without_repeated
from prompt_tuning.training.evaluation import trains_several_tasks
from prompt_tuning.training.losses import aligned_outputs, distillation_loss, teacher_logits
from prompt_tuning.training.optimizer import separate_layer_vectors
from prompt_tuning.training.preparation import (
    check_arguments,
    check_model,
    check_shared_text,
    prepare_model,
    set_up_devices,
)
from prompt_tuning.training.sampling import epoch_sampler
from prompt_tuning.training.split_checkpoints import SplitCheckpointTrainer, keep_whole
from prompt_tuning.training.whole_checkpoints import check_whole, newest_whole_checkpoint

logger = logging.getLogger(__name__)


class PromptTuningTrainer(SplitCheckpointTrainer):
    """Train and evaluate causal and encoder-decoder models on rows from `encode`, or on any rows of the same form.

    It is a `Seq2SeqTrainer` with these differences:

    - A causal model generates from the source, the tokens before the first label. Seq2SeqTrainer would show the model
      source and answer.
    - Evaluation reads rows by length, in batches of so many tokens, with one cache of the prompt. It returns
      predictions in the order of the data set. Its loss is the mean over all target tokens, not over batches.
      `compute_metrics` gets texts. Several evaluation sets keep the arguments of `generate`.
    - Label smoothing and gradient accumulation count target tokens. That holds for encoder-decoder models too, whose
      own loss ignores `num_items_in_batch`.
    - All processes take rows of like length in one step. Rows that are repeated to fill the last batch have no
      targets.
    - A checkpoint gets its name as soon as it is whole, and is removed by a rename. A run resumes in the order of rows
      in which it was stopped, takes no step after its last one, and finds its best checkpoint after a move.
    - A loss or gradient that is not finite ends the training before anything of it is saved.
    - `torch_compile` compiles each decoder layer by itself. `push_to_hub` uploads no training state.

    Rows for a multitask prompt also have the number of their task, in a column `task_ids`. The arguments up to
    `preprocess_logits_for_metrics`, which is refused since no logits are kept, are those of Seq2SeqTrainer.

    Args:
        model_init: `model_init()` or `model_init(trial)` returns the model with its prompt, for each training anew.
        compute_loss_func: `(outputs, labels, num_items_in_batch) -> loss`, with logits `[B, T, V]` for labels
            `[B, T]`. As in transformers, a causal model predicts label t by the logits of t - 1.
        compute_metrics: `(predictions, references) -> metrics`, as `metrics.load_metrics` returns. References come
            from the rows' column `references`, or from their labels if they have none. A function of one argument
            gets Trainer's `EvalPrediction`: new ids `[rows, new]` and labels, padded with -100, in the rows' order.
        generation_kwargs: for `generate`, such as `dict(max_new_tokens=32, num_beams=4)`.
        stop: a prediction ends at the first of these texts that follows something other than white space.
        choice_normalization: how choices are compared, for rows with `choices`, `choice_ids` and their number as
            `row`. A prediction is then one of these texts, and `predict` gives its number, `[rows, 1]`.
        teacher: for context distillation, `losses.teacher_states` of the rows by their column `row`.
        distillation: the divergence to train on if there is a teacher. The loss of an evaluation stays cross entropy.
        name_row: names a training row in an error by its `row`, and with several tasks also by its `task_ids`.

    Raises:
        AdapterError: PEFT's own model of a causal prompt, which gives a row other predictions than alone.
        RecipeError: an argument would have no effect here, or another one than in Trainer.
        DataError: an evaluation set without a length.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | None = None,
        args: Seq2SeqTrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        model_init: Callable[..., PreTrainedModel | PeftModel] | None = None,
        compute_loss_func: Callable[..., torch.Tensor] | None = None,
        compute_metrics: MetricFunction | Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        stop: tuple[str, ...] = (),
        choice_normalization: Normalization = "none",
        teacher: dict[int, torch.Tensor] | None = None,
        distillation: Literal["kl", "mse"] = "kl",
        name_row: Callable[..., str] = "row {}".format,
    ) -> None:
        """Check the arguments and prepare model and tokenizer."""
        check_arguments(args, eval_dataset, compute_metrics, preprocess_logits_for_metrics)
        set_up_devices(args)
        if teacher is not None and compute_loss_func is not None:
            raise RecipeError("compute_loss_func: the loss is the divergence from the teacher. Leave one of them out")
        if model is not None:
            check_model(model, args)
        self._tokenizer = processing_class
        with allow_quantized_evaluation(model) if model is not None else nullcontext():
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator or DataCollatorForSeq2Seq(processing_class, padding="longest"),
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                model_init=model_init,
                compute_loss_func=compute_loss_func,
                compute_metrics=self._score if compute_metrics else None,
                callbacks=callbacks,
                optimizers=optimizers,
            )
        unset_hf_deepspeed_config()  # Trainer has set it again.
        keep_losses_in_float32(self.accelerator)
        if compute_metrics and not self.args.predict_with_generate:
            logger.warning("evaluations give a loss and no metric, since predict_with_generate is False")
        # Otherwise Trainer uploads an unfinished output folder, or the optimiser's state, while it trains.
        self.args.hub_strategy = HubStrategy.END
        if compute_metrics:
            self.score = compute_metrics
        self.stop = stop
        self.choice_normalization = choice_normalization
        self.teacher = teacher
        self.distillation = distillation
        self.training_start = TrainingStart()
        self.divergence = Divergence(name_row)
        for callback in (self.training_start, KeepOnlyBest(), self.divergence):
            self.add_callback(callback)
        self._partial_run: Path | None = None
        if model is not None:
            prepare_model(model, processing_class, args)
        if isinstance(self.model, SharedPrefixModel):
            if has_prompt(self.model):
                # The model smooths. Trainer could not match labels with logits of targets only.
                self.label_smoother = None
            if self.args.torch_compile:
                # The whole forward would be compiled anew for the layout of each batch.
                self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
        self.generation_kwargs = self._all_generation_kwargs(generation_kwargs or {})

    def call_model_init(self, trial: Any = None) -> PreTrainedModel | PeftModel:
        """Return a new model from `model_init`, prepared as a model that is given."""
        model = super().call_model_init(trial)
        check_model(model, self.args)
        prepare_model(model, self._tokenizer, self.args)
        return model

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or resume a training to the same weights as if it had not been stopped.

        Raises:
            TrainingError: a loss or gradient is not finite. Stopped: a signal came, and a checkpoint is saved.
            RecipeError: the checkpoint lacks a state, or these settings do not fit it or the model.
        """
        check_shared_text(self.model, self.args)
        needs = {"needs_best": self.args.load_best_model_at_end, "needs_scaler": self.args.fp16}
        checkpoint = None
        if resume_from_checkpoint is True:
            checkpoint = newest_whole_checkpoint(Path(self.args.output_dir), **needs)
            resume_from_checkpoint = str(checkpoint) if checkpoint else True  # Trainer refuses True.
        elif resume_from_checkpoint not in (None, False):
            checkpoint = Path(str(resume_from_checkpoint))
            check_whole(checkpoint, **needs)
        self.training_start.checkpoint = checkpoint
        with resuming.resumed(checkpoint, self.train_dataset, self.args):
            output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        best = self.state.best_model_checkpoint if needs["needs_best"] else None
        if best and isinstance(self.model, PeftModel) and not self.is_deepspeed_enabled:
            load_named_adapter(self.model, Path(best))
        return output

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Optimizer:
        """Create the optimiser, with a rate for layer vectors, and note its settings before a checkpoint has them."""
        exists = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not exists:
            separate_layer_vectors(optimizer, model or self.model, self.args)
            if self.is_deepspeed_enabled:
                self.whole_optimizer = keep_whole(optimizer)
        self.training_start.hyperparameters = resuming.hyperparameters(optimizer)
        return optimizer

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run a step and record its loss for the check that it is finite."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.divergence.add_batch(self.state.global_step + 1, loss, inputs)
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the cross entropy over target tokens, the divergence from a teacher, or what compute_loss_func does.

        The sum over targets is divided by `num_items_in_batch`, the targets of the whole accumulated batch. By default
        it is divided by the targets of this batch.
        """
        rows = inputs.pop("row", None)
        smoothing = self.args.label_smoothing_factor
        teacher = self.teacher if model.training else None
        aligned = self.compute_loss_func is not None and (has_prompt(self.model) or not self._is_causal)
        if self._is_causal and teacher is None and not aligned:
            if isinstance(self.model, SharedPrefixModel):
                inputs = inputs | {"label_smoothing": smoothing}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if aligned:
            outputs, labels = aligned_outputs(model, inputs, causal=self._is_causal)
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
        elif teacher is not None:
            outputs = model(**inputs)
            targeted = (inputs["labels"] != -100).any(1)  # A row that another process has, too, has no target here.
            states = [teacher[row] for row in rows[targeted].tolist()]
            expected = teacher_logits(self.model.get_base_model().get_output_embeddings(), states, outputs.logits)
            loss = distillation_loss(outputs.logits, expected, self.distillation, num_items_in_batch)
        else:
            outputs = model(**inputs)
            targets = inputs["labels"].flatten()
            loss = target_loss(outputs.logits.flatten(0, 1), targets, num_items_in_batch, smoothing)
        loss = self._over_processes(loss, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _over_processes(self, loss: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
        """Return a loss whose average over processes, which DDP takes, is the sum over their rows."""
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            return loss * self.accelerator.num_processes
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Return the batches of one step and their number of targets.

        A run that resumes after its last step gets no batch, since Trainer would take one more step.
        """
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            logger.info("no step is left to train")  # Trainer says that the epoch seems to have no sample.
            self.control.should_training_stop = True
            return [], None
        whole = self.args.dataloader_drop_last or self.args.train_sampling_strategy == "batch_rebalance"
        if isinstance(self.train_dataset, Dataset) and not whole:  # A stream has no last batch.
            ends = self.accelerator.gradient_state
            epoch_iterator = without_repeated(epoch_iterator, len(self.train_dataset), ends, self.args)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; a checkpoint also gets the network that writes the prompt, and no card."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call or not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        RunFolder(folder).card.unlink(missing_ok=True)
        if has_network(self.model):
            save_network(self.model, folder)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Give a checkpoint its name only when it is whole; Trainer writes file by file under the final name.

        Needed by test_a_run_killed_many_times_ends_with_the_adapter_of_an_uninterrupted_one.
        """
        self.divergence.check()
        run = Path(self._get_output_dir(trial))
        state = self.state
        checkpoint = run / f"checkpoint-{state.global_step}"
        with atomic_checkpoint(checkpoint) as partial_run, explain_full_disk(run, partial_run):
            self._partial_run = partial_run
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._partial_run = None
            # Trainer looked for the best checkpoint beside the partial one.
            best = run / f"checkpoint-{state.best_global_step}"
            if best == checkpoint or best.is_dir():
                state.best_model_checkpoint = str(best)
            if self.args.should_save:
                state.save_to_json(str(partial_run / checkpoint.name / TRAINER_STATE_NAME))
                if self.training_start.sampler:
                    self.training_start.sampler.save_interrupted_order(partial_run / checkpoint.name)
        if self.args.should_save:
            rotate_checkpoints(run, self.args.save_total_limit, state.best_model_checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        """Return the folder in which `_save_checkpoint` makes a checkpoint, which Trainer asks for by this method.

        Needed by test_a_checkpoint_is_never_written_or_removed_file_by_file_under_its_name.
        """
        return str(self._partial_run or super()._get_output_dir(trial))

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the loss and a multitask prompt read; Trainer keeps those of the model's forward.

        Needed by
        test_a_loss_or_gradient_that_is_not_finite_stops_with_its_step_and_rows_and_is_not_saved.
        """
        super()._set_signature_columns_if_needed()
        columns = ["row", "task_ids"] if trains_several_tasks(self.model) else ["row"]
        self._signature_columns += [name for name in columns if name not in self._signature_columns]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Return a sampler with the same order in a resumed run and in every process; Trainer's own has another one.

        Needed by test_a_run_stopped_in_a_later_epoch_resumes_with_the_rows_that_are_due.
        """
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        rows = self.train_dataset if train_dataset is None else train_dataset
        self.training_start.sampler = epoch_sampler(sampler, rows, self.args, self.training_start.checkpoint)
        return self.training_start.sampler

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Upload the adapter and its card, as `hub.push` names the files; always blocks.

        Returns:
            The URL of the commit, on the main process.
        """
        from prompt_tuning.hub.upload import push
        from prompt_tuning.reports.model_card import card_for_hub

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        return push(
            self.args.output_dir,
            self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            finished=False,
            token=token or self.args.hub_token,
            message=commit_message,
            card=partial(card_for_hub, Path(self.args.output_dir)),
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card from the facts of `train`, or else from what the trainer knows; arguments as for Trainer."""
        from prompt_tuning.reports.model_card import write_trainer_card

        if self.is_world_process_zero():
            write_trainer_card(self, *args, **kwargs)
