"""Seq2SeqTrainer for prompts: it evaluates what the model writes, and no label reaches the model before that."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import DynamoBackend, fsdp2_prepare_model, gather_object, load_fsdp_model
from datasets import Dataset
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler
from transformers import DataCollatorForSeq2Seq, EvalPrediction, PreTrainedTokenizerBase, Seq2SeqTrainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import pad_left, source_rows, start_with, tokens_in_batch
from prompt_tuning.engine.attention import ATTENTION
from prompt_tuning.engine.dispatch import get_base, has_prompt, packing_obstacle, within_window
from prompt_tuning.engine.generation import check_one_sequence, count_new_tokens, generate_with_cache, uses_own_cache
from prompt_tuning.engine.kv_cache import common_prefix_cache
from prompt_tuning.engine.likelihood import choose
from prompt_tuning.engine.prompt_network import has_network, save_network
from prompt_tuning.engine.shared_prefix import SharedPrefixModel, compute_prompt_once, target_loss
from prompt_tuning.engine.stop_texts import add_end_token, decode, stopping
from prompt_tuning.errors import AdapterError, DataError, ModelError, RecipeError
from prompt_tuning.metrics.scores import MetricFunction, Scores
from prompt_tuning.models.quantization import allow_quantized_evaluation
from prompt_tuning.support.files import atomic_write, explain_full_disk
from prompt_tuning.training.checkpoints import (
    atomic_checkpoint,
    remove_all_but,
    rotate_checkpoints,
)
from prompt_tuning.training.distributed import (
    batches_of_process,
    full_state_dict,
    gather_outside_layers,
    keep_gathered_outside_layers,
    loader_of_batches,
    num_real_rows,
    remove_duplicate_embedding_name,
    synchronized_forwards,
)
from prompt_tuning.training.divergence import STEPS_KEPT, Divergence
from prompt_tuning.training.evaluated_rows import EvaluatedRows
from prompt_tuning.training.losses import distillation_loss, teacher_logits
from prompt_tuning.training.memory import IN_EVALUATION, explain_out_of_memory, keep_global_batch
from prompt_tuning.training.sampling import RepeatableSampler

logger = logging.getLogger(__name__)

ORDER = "order.pt"


class PromptTuningTrainer(Seq2SeqTrainer):
    """Trains and evaluates causal and encoder-decoder models on rows from `encode`, or on any rows of the same form.

    It is a `Seq2SeqTrainer`, but for these:

    - A causal model generates from the source alone, the tokens before the first label; Seq2SeqTrainer would give it
      source and answer.
    - Evaluation goes through rows by length, in batches of so many tokens, with one cache of the prompt, and returns
      predictions in the order of the data set. Its loss is the mean over all target tokens, not over batches.
      `compute_metrics` gets texts. Several evaluation sets keep the arguments of `generate`.
    - Label smoothing and gradient accumulation count target tokens, for encoder-decoder models too, whose own loss
      ignores `num_items_in_batch`. `auto_find_batch_size` keeps the rows of a step.
    - Of several processes, all take rows of like length in one step, and rows that are repeated to fill the last batch
      have no targets.
    - A checkpoint gets its name once it is whole, and is removed by a rename. A run goes on in the order of rows that
      it was stopped in, takes no step after its last one, and finds its best checkpoint where its folder was moved.
    - A loss or gradient that is no number ends the training before anything of it is saved.
    - `torch_compile` compiles each decoder layer for itself. `push_to_hub` uploads no training state.

    Rows for a multitask prompt also have their task's number, in a column `task_ids`.

    Args:
        compute_metrics: `(predictions, references) -> metrics`, as `metrics.load_metrics` returns; references come
            from the rows' `references` column, or from their labels if they have none.
        generation_kwargs: for `generate`, as `dict(max_new_tokens=32, num_beams=4)`.
        stop: a prediction ends at the first of these texts that follows something other than white space.
        choice_normalization: of rows with `choices`, `choice_ids` and their number as `row`, whose predictions are one
            of these texts (choices.py). `predict` then gives the number of the choice, `[rows, 1]`.
        teacher: for context distillation, `distillation.teacher_states` of the rows by their `row` column.
        distillation: the divergence trained on if there is a teacher; evaluation's loss stays cross entropy.
        name_row: what an error calls a training row, by its `row`, and with several tasks also its `task_ids`.
        **kwargs: as for `Seq2SeqTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        processing_class: PreTrainedTokenizerBase,
        compute_metrics: MetricFunction | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        stop: tuple[str, ...] = (),
        choice_normalization: str = "none",
        teacher: dict[int, torch.Tensor] | None = None,
        distillation: Literal["kl", "mse"] = "kl",
        name_row: Callable[..., str] = "row {}".format,
        **kwargs: Any,
    ) -> None:
        if len(args) < 3:  # model, args, data_collator
            kwargs.setdefault("data_collator", DataCollatorForSeq2Seq(processing_class, padding="longest"))
        kwargs["compute_metrics"] = self._score if compute_metrics else None
        model = kwargs.get("model", args[0] if args else None)
        if model is None:
            raise ModelError("model is missing; model_init is not taken, since a prompt is added to a loaded model")
        if has_prompt(model) and not (model.config.is_encoder_decoder or isinstance(model, SharedPrefixModel)):
            raise AdapterError(
                f"a {type(model).__name__} pads its rows before the prompt and so gives them other predictions than "
                "alone; make it by add_soft_prompt(model, config)"
            )
        with allow_quantized_evaluation(model):
            super().__init__(*args, processing_class=processing_class, **kwargs)
        if compute_metrics and not self.args.predict_with_generate:
            logger.warning("evaluations give a loss and no metric, since predict_with_generate is False")
        base = get_base(self.model)
        if self.args.generation_config is not None:
            base.generation_config = self.model.generation_config  # by which prompts generate too
        add_end_token(base, processing_class)
        processing_class.padding_side = "right"  # for training; sources are padded left by prediction_step
        if isinstance(self.model, SharedPrefixModel):
            if has_prompt(self.model):  # which smooths: Trainer could not match logits of targets alone with labels
                self.label_smoother = None
            if self.args.torch_compile:
                # The whole forward would be compiled anew for the layout of each batch.
                self.model.compile_layers(backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode)
                self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
        if self.args.world_size > 1:
            self._send_only_what_is_trained()
        self.score = compute_metrics
        self.stop, self.choice_normalization = stop, choice_normalization
        self.teacher, self.distillation = teacher, distillation
        self.divergence = Divergence(name_row)
        self.generation_kwargs = {"do_sample": False, "pad_token_id": processing_class.pad_token_id}
        if self.args.generation_max_length and not base.config.is_encoder_decoder:
            # Trainer would count the source, and so the padding that a row has in its batch.
            self.generation_kwargs["max_new_tokens"] = self.args.generation_max_length
        if self.args.generation_num_beams:
            self.generation_kwargs["num_beams"] = self.args.generation_num_beams
        self.generation_kwargs |= generation_kwargs or {}
        self._evaluated: EvaluatedRows | None = None  # by the latest evaluation
        self._order: RepeatableSampler | None = None
        self._partial_run: Path | None = None

    def _send_only_what_is_trained(self) -> None:
        """Each process reads the frozen weights from the same files; DDP would send them all once more."""
        frozen = [name for name, parameter in self.model.named_parameters() if not parameter.requires_grad]
        frozen += [name for name, _ in self.model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, frozen)
        # Dropout on a CPU draws from the generator that orders rows, on each process as many numbers as its rows need.
        self.accelerator.rng_types.append("torch")

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[torch.nn.Module, DataLoader]:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        saved = Path(resume_from_checkpoint or "", ORDER)
        if self._order and resume_from_checkpoint and saved.is_file():
            self._order.draw_from = torch.load(saved, weights_only=True)
        keep_gathered_outside_layers(self.model)
        remove_duplicate_embedding_name(self.model)
        return prepared

    def _init_training_state(
        self, max_steps: int, steps_of_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """As Trainer's, which does without the best checkpoint if the run's folder was moved since."""
        trained = super()._init_training_state(max_steps, steps_of_epoch, epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint and not self.state.best_model_checkpoint:
            best = Path(resume_from_checkpoint).with_name(f"checkpoint-{self.state.best_global_step}")
            if best.is_dir():
                logger.info("the best checkpoint is %s", best)
                self.state.best_model_checkpoint = str(best)
        return trained

    def _inner_training_loop(self, batch_size: int, **kwargs: Any) -> TrainOutput:
        """As Trainer's, but with auto_find_batch_size a step keeps its rows, however few of them fit at once."""
        attempt = partial(super()._inner_training_loop, **kwargs)
        return keep_global_batch(self, attempt, batch_size) if self.args.auto_find_batch_size else attempt(batch_size)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer's, which takes one step more where a run goes on from its very last checkpoint."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As Trainer's, and the loss is kept until it is looked at."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.divergence.add_batch(self.state.global_step + 1, loss, inputs)
        return loss

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: torch.Tensor | float | None, *args: Any, **kwargs: Any
    ) -> None:
        """As Trainer's, but a loss or gradient that is no number ends the training before.

        Raises:
            TrainingError: it names the step and its rows.
        """
        if grad_norm is not None and not self.accelerator.optimizer_step_was_skipped:
            self.divergence.add_gradient(self.state.global_step, grad_norm)
        control, waiting = self.control, len(self.divergence.steps)
        due = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        if due or waiting >= STEPS_KEPT:
            self.divergence.check()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Cross entropy over target tokens, divided by their number in the whole accumulated batch."""
        rows, smoothing = inputs.pop("row", None), self.args.label_smoothing_factor
        distilled = self.teacher is not None and model.training
        if not (distilled or self.model.config.is_encoder_decoder):
            if isinstance(self.model, SharedPrefixModel):
                inputs = inputs | {"label_smoothing": smoothing}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        if distilled:
            targeted = (inputs["labels"] != -100).any(1)  # not so a row that another process has
            states = [self.teacher[row] for row in rows[targeted].tolist()]
            taught = teacher_logits(self.model.get_base_model().get_output_embeddings(), states, outputs.logits)
            loss = distillation_loss(outputs.logits, taught, self.distillation, num_items_in_batch)
        else:
            targets = inputs["labels"].flatten()
            loss = target_loss(outputs.logits.flatten(0, 1), targets, num_items_in_batch, smoothing)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which averages gradients over processes
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """As `Seq2SeqTrainer.evaluate`, with rows ordered by length."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = self.eval_dataset[rows]
        if isinstance(rows, dict):
            # Trainer would forget the arguments of `generate` there.
            metrics: dict[str, float] = {}
            for name in rows:
                of_name = name if eval_dataset is None else rows[name]
                metrics |= self.evaluate(of_name, ignore_keys, f"{metric_key_prefix}_{name}", **gen_kwargs)
            return metrics
        if rows is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        self._evaluated = EvaluatedRows.of(rows, causal=not self.model.config.is_encoder_decoder)
        given = self.generation_kwargs | gen_kwargs
        return super().evaluate(self._evaluated.rows, ignore_keys, metric_key_prefix, **given)

    def predict(
        self,
        test_dataset: Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **gen_kwargs: Any,
    ) -> PredictionOutput:
        """As `Seq2SeqTrainer.predict`: token ids `[rows, new]`, padded with -100, in the order of the data set.

        There is no loss among the metrics: it would cost another forward.

        Raises:
            RecipeError: predict_with_generate is False.
        """
        if not self.args.predict_with_generate:
            raise RecipeError("predict_with_generate is False, so that nothing is written; set it to True")
        causal = not self.model.config.is_encoder_decoder
        self._evaluated = EvaluatedRows.of(test_dataset, causal, with_loss=False)
        rows, given = self._evaluated.rows, self.generation_kwargs | gen_kwargs
        output = super().predict(rows, ignore_keys, metric_key_prefix, **given)
        back = np.argsort(self._evaluated.order)
        return PredictionOutput(
            output.predictions[: len(rows)][back], output.label_ids[: len(rows)][back], output.metrics
        )

    def predict_texts(self, dataset: Dataset) -> list[str]:
        """What the model writes for each row, or the choice that it takes, as text, in the order of the data set."""
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            predictions = self.predict(dataset).predictions
            return self._texts(predictions, dataset["choices"] if "choice_ids" in dataset.column_names else None)
        finally:
            self.compute_metrics = compute_metrics

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As Trainer's, with one cache of the prompt, and the loss as the mean over all target tokens.

        All of it is computed under the autocast of training, which Trainer would have for a model's own forward alone.
        """
        evaluated = self._evaluated
        if self.accelerator.is_fsdp2 and not self.accelerator._models:
            # Trainer would let accelerate prepare the model, which refuses one without an optimiser.
            self.accelerator._models.append(fsdp2_prepare_model(self.accelerator, self.model))
        told = explain_out_of_memory(IN_EVALUATION)
        autocast = self.accelerator.autocast()
        with told, autocast, gather_outside_layers(self.model), compute_prompt_once(self.model, evaluated.opening):
            try:
                output = super().evaluation_loop(dataloader, *args, **kwargs)
            finally:
                evaluated.common_prefix_cache = None
        name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
        if name in output.metrics:
            summed, items = zip(*gather_object([(evaluated.summed_loss, evaluated.loss_items)]), strict=True)
            if any(items):
                output.metrics[name] = sum(summed) / sum(items)
        return output

    @torch.no_grad()  # of rows read into a cache LoRA and full fine-tuning would keep every activation
    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Loss from source and target, if wanted; generation or the best choice from the source alone."""
        evaluated = self._evaluated
        loss, numbers = None, inputs["row"].tolist() if evaluated.choices else []
        own = num_real_rows(evaluated.left, len(inputs["labels"]), self.args.process_index)
        evaluated.left -= len(inputs["labels"]) * self.args.world_size
        if evaluated.with_loss:
            labels = inputs["labels"].clone()
            labels[own:] = -100
            loss = self.compute_loss(model, self._prepare_inputs(inputs | {"labels": labels}))
            counted = labels if self.model.config.is_encoder_decoder else labels[:, 1:]  # a first token has no loss
            if items := int((counted != -100).sum()):  # of none it is no number
                evaluated.add_loss(loss.item(), items)
        if prediction_loss_only or not self.args.predict_with_generate:
            return loss, None, None
        inputs = self._prepare_inputs(inputs)
        if evaluated.choices:
            best = self._best_choices(self._sources(inputs), [evaluated.choices[number] for number in numbers])
            return loss, inputs["labels"].new_tensor(best)[:, None], inputs["labels"]
        sources = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        if not self.model.config.is_encoder_decoder:
            sources = self._prepare_inputs(pad_left(self._sources(inputs), self.processing_class.pad_token_id))
        if _is_multitask(self.model):
            sources["task_ids"] = inputs["task_ids"]
        given = gen_kwargs or self._gen_kwargs
        check_one_sequence(get_base(self.model), given)
        with synchronized_forwards(self.model) as synced, self._eagerly():
            generated = self._generate(**sources, **stopping(self.processing_class, self.stop), **synced, **given)
        start = 1 if self.model.config.is_encoder_decoder else sources["input_ids"].shape[1]
        return loss, generated[:, start:].contiguous(), inputs["labels"]

    def _sources(self, inputs: dict[str, torch.Tensor]) -> list[list[int]]:
        """The token ids of each row's source."""
        if self.model.config.is_encoder_decoder:
            pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            return [ids[mask.bool()].tolist() for ids, mask in pairs]
        rows = source_rows(inputs)
        if not all(rows):
            raise DataError(
                "a row's first token is a target already, so that there is no source to write a prediction for; "
                "give it one, or set predict_with_generate=False, which evaluates the loss alone"
            )
        return rows

    def _best_choices(self, sources: list[list[int]], choices: list[tuple[list[str], list[list[int]]]]) -> list[int]:
        """The number of the choice that each row is answered with."""
        texts, ids = zip(*choices, strict=True)
        with synchronized_forwards(self.model), self._eagerly():
            return choose(self.model, self.processing_class, sources, texts, ids, self.choice_normalization)

    def _eagerly(self) -> AbstractContextManager:
        """Within it layers that were compiled for training, the base model's too, are run as they are.

        Those of generation are of ever new shapes, each of which would be compiled.
        """
        return torch.compiler.set_stance("force_eager") if self.args.torch_compile else nullcontext()

    def _generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """`generate`, where a model without a prompt also reads once what rows open with."""
        base = get_base(self.model)
        if (
            has_prompt(self.model)
            or base.config.is_encoder_decoder
            or packing_obstacle(base)
            or uses_own_cache(base, kwargs)
            or input_ids.shape[1] == 1  # of which nothing is read before generation
        ):
            return self.model.generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        kwargs = count_new_tokens(base, input_ids.shape[1], kwargs)
        if not within_window(base, input_ids.shape[1] + kwargs["max_new_tokens"]):
            return self.model.generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        base.set_attn_implementation(ATTENTION)
        evaluated = self._evaluated
        if evaluated.common_prefix_cache is None:
            evaluated.common_prefix_cache = common_prefix_cache(base, evaluated.opening)
        opening, cache = input_ids.new_tensor(evaluated.opening, dtype=input_ids.dtype), evaluated.common_prefix_cache
        if not start_with(input_ids, attention_mask, opening):  # an own collator's, or of an own data set with padding
            opening, cache = opening[:0], common_prefix_cache(base, [])
        return generate_with_cache(
            base, [cache], [0] * len(input_ids), input_ids, attention_mask, opening, packed=True, **kwargs
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's. A checkpoint also gets the network that writes the prompt, as PEFT leaves it out; no card."""
        if isinstance(self.model, FSDPModule):
            with full_state_dict(self.model, self.accelerator) as state_dict:
                if self.args.should_save:
                    self._save(output_dir, state_dict)
        else:
            super().save_model(output_dir, _internal_call)
        if not _internal_call or not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card, of places to fill in
        if has_network(self.model):
            save_network(self.model, folder)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As Trainer's, by which save_strategy best saves; a run that a signal stops saves in any case."""
        stopping = any(getattr(each, "stopping", False) for each in self.callback_handler.callbacks)
        return super()._determine_best_metric(metrics, trial) or stopping

    def _save_rng_state(self, output_dir: str) -> None:
        """As Trainer's, and in the middle of an epoch what the order of its rows was drawn from."""
        super()._save_rng_state(output_dir)
        if self._order and self.args.should_save and not self.accelerator.gradient_state.end_of_dataloader:
            torch.save(self._order.drawn_from, Path(output_dir, ORDER))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if isinstance(self.model, FSDPModule):
            # Trainer would then also load what PEFT saved, which cannot be put into split tensors.
            plugin = self.accelerator.state.fsdp_plugin
            load_fsdp_model(plugin, self.accelerator, self.model, resume_from_checkpoint, adapter_only=True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        named = isinstance(self.model, PeftModel) and best / self.model.active_adapter
        if named and (named / "adapter_config.json").is_file():  # where PEFT saves one that is not called default
            self.model.load_adapter(str(named), self.model.active_adapter, is_trainable=True)
        else:
            super()._load_best_model()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As Trainer's, but the checkpoint is there when it is whole, and not before, whatever happens meanwhile."""
        run, state = Path(self._get_output_dir(trial)), self.state
        checkpoint = run / f"checkpoint-{state.global_step}"
        with atomic_checkpoint(checkpoint) as made, explain_full_disk(run):
            self._partial_run = made
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._partial_run = None
            best = run / f"checkpoint-{state.best_global_step}"
            if best == checkpoint or best.is_dir():
                state.best_model_checkpoint = str(best)  # which Trainer looked for beside the partial one
            if self.args.should_save:
                state.save_to_json(str(made / checkpoint.name / TRAINER_STATE_NAME))
        if self.args.should_save:
            rotate_checkpoints(run, self.args.save_total_limit, state.best_model_checkpoint)

    def _finalize_training(self, trial: Any, *args: Any) -> TrainOutput:
        """As Trainer's, which with a save_total_limit of 1 removes the last checkpoint file by file."""
        if self.args.should_save and self.args.save_total_limit == 1 and self.state.best_model_checkpoint:
            remove_all_but(Path(self._get_output_dir(trial)), self.state.best_model_checkpoint)
        return super()._finalize_training(trial, *args)

    def _get_output_dir(self, trial: Any) -> str:
        """As Trainer's; while a checkpoint is made, the folder in which it is made."""
        return str(self._partial_run or super()._get_output_dir(trial))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As Trainer's, but the repository is made by the push: an evaluation makes a trainer too, and needs none."""
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: Trainer's uploads all of an unfinished output folder, and by `hub_strategy` the optimiser too."""

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | None:
        """As Trainer's, of the files that `hub.push` names alone; always blocks. Returns the URL of the commit."""
        from prompt_tuning.hub.upload import push
        from prompt_tuning.reports.model_card import card_for_hub

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:  # args.push_to_hub is False
            self.init_hf_repo()
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        return push(
            self.args.output_dir,
            self.hub_model_id,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            finished=False,
            token=token or self.args.hub_token,
            message=commit_message,
            card=partial(card_for_hub, Path(self.args.output_dir)),
        )

    def create_model_card(
        self, language: str | None = None, license: str | None = None, model_name: str | None = None, **kwargs: Any
    ) -> None:
        """The card of the run, if `prompt-tuning train` wrote its facts there; else of what the trainer knows.

        Args:
            kwargs: Trainer's others, for a draft with places to fill in, which this is not: without effect.
        """
        from prompt_tuning.reports.model_card import card_text, trainer_facts, write_card

        folder = Path(self.args.output_dir)
        if not self.is_world_process_zero():
            return
        if (folder / "results.json").is_file():
            write_card(folder)
            return
        given = {"lang": language, "license": license}
        facts = trainer_facts(self, **{name: value for name, value in given.items() if value})
        with atomic_write(folder / "README.md") as file:
            file.write(card_text(facts | ({"name": model_name} if model_name else {})))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "row" not in self._signature_columns:
            self._signature_columns.append("row")
        if _is_multitask(self.model) and "task_ids" not in self._signature_columns:
            self._signature_columns.append("task_ids")

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """As Trainer's, but rows of like length share the batch of all processes, as they would on one."""
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler = self._order = RepeatableSampler(
                sampler.batch_size * self.args.world_size, lengths=sampler.lengths
            )
        return sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """As Trainer's, but rows that accelerate repeats to fill the last batch of all processes have no targets."""
        return super().get_batch_samples(map(self._without_repeated, epoch_iterator), num_batches, device)

    def _without_repeated(self, batch: dict[str, Any]) -> dict[str, Any]:
        whole = self.args.dataloader_drop_last or self.args.train_sampling_strategy == "batch_rebalance"
        whole = whole or not isinstance(self.train_dataset, Dataset)  # a stream has no last batch
        left = 0 if whole else len(self.train_dataset) % (self._train_batch_size * self.args.world_size)
        if left and self.accelerator.gradient_state.end_of_dataloader:
            batch["labels"][num_real_rows(left, len(batch["labels"]), self.args.process_index) :] = -100
        return batch

    def _get_dataloader(
        self, dataset: Any, *args: Any, is_training: bool = False, dataloader_key: str | None = None, **kwargs: Any
    ) -> DataLoader:
        """As Trainer's, but an evaluation's batches are bounded by their tokens, and its loader is used once.

        Trainer would keep it by the key "eval", whichever of several data sets it is of.
        """
        loader = super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)
        if is_training or not isinstance(dataset, Dataset):
            return loader
        prompt = self.model.active_peft_config.num_virtual_tokens if has_prompt(self.model) else 0
        new_tokens = self.generation_kwargs.get("max_new_tokens", self.args.generation_max_length or 0)
        batches = batches_of_process(
            tokens_in_batch(dataset, prompt, new_tokens, self.generation_kwargs.get("num_beams", 1)),
            self.args.per_device_eval_batch_size,
            getattr(self.args, "per_device_eval_batch_tokens", sys.maxsize),  # which Trainer's own lack
            self.args.world_size,
            self.args.process_index,
        )
        return loader_of_batches(loader, batches, self.args)

    def _score(self, found: EvalPrediction) -> dict[str, float]:
        evaluated, count = self._evaluated, len(self._evaluated.rows)
        references = evaluated.references
        if references is None:
            references = [[text] for text in decode(found.label_ids[:count], self.processing_class)]
        choices = evaluated.choices and [texts for texts, _ in evaluated.choices.values()]
        scores = self.score(self._texts(found.predictions[:count], choices), list(references))
        return Scores.from_json(scores).values

    def _texts(self, predictions: np.ndarray, choices: Iterable[list[str]] | None) -> list[str]:
        """Predictions as text: ids `[rows, T]` of what was written, or `[rows, 1]` the number of a choice."""
        if choices is None:
            return decode(predictions, self.processing_class, self.stop)
        return [texts[number] for texts, number in zip(choices, predictions[:, 0], strict=True)]


def _is_multitask(model: torch.nn.Module) -> bool:
    """Whether rows have a `task_ids` column that says whose prompt stands before them."""
    return isinstance(model, PeftModel) and find_method(model.active_peft_config.peft_type).trains_several_tasks
