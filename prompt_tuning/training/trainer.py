"""Seq2SeqTrainer for prompts: it evaluates what the model writes, and no label reaches the model before that."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import DynamoBackend, fsdp2_prepare_model, gather_object, load_fsdp_model
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.data.data_collator import DataCollator
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, PredictionOutput, TrainOutput, get_last_checkpoint

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.arguments.training_args import NO_AUTO_FIND_BATCH_SIZE
from prompt_tuning.encoding.batching import pad_left, source_rows, start_with, tokens_in_batch
from prompt_tuning.engine.attention import ATTENTION
from prompt_tuning.engine.dispatch import get_base, has_prompt, packing_obstacle, within_window
from prompt_tuning.engine.generation import check_one_sequence, count_new_tokens, generate_with_cache, uses_own_cache
from prompt_tuning.engine.kv_cache import common_prefix_cache
from prompt_tuning.engine.likelihood import choose
from prompt_tuning.engine.prompt_network import has_network, save_network
from prompt_tuning.engine.shared_prefix import SharedPrefixModel, compute_prompt_once, target_loss
from prompt_tuning.engine.stop_texts import add_end_token, decode, stopping
from prompt_tuning.errors import AdapterError, DataError, RecipeError
from prompt_tuning.metrics.scores import MetricFunction, Scores
from prompt_tuning.models.quantization import allow_quantized_evaluation
from prompt_tuning.support.files import atomic_write, explain_full_disk
from prompt_tuning.training.callbacks import Divergence, TrainingStart
from prompt_tuning.training.checkpoints import (
    KeepOnlyBest,
    atomic_checkpoint,
    rotate_checkpoints,
)
from prompt_tuning.training.distributed import (
    batches_of_process,
    full_state_dict,
    gather_outside_layers,
    loader_of_batches,
    num_real_rows,
    synchronized_forwards,
)
from prompt_tuning.training.evaluated_rows import EvaluatedRows
from prompt_tuning.training.losses import distillation_loss, teacher_logits
from prompt_tuning.training.memory import IN_EVALUATION, explain_out_of_memory
from prompt_tuning.training.sampling import EpochSampler

logger = logging.getLogger(__name__)

ORDER = "order.pt"  # Version 0.1.0 kept the state here from which the order of the epoch was drawn.


class PromptTuningTrainer(Seq2SeqTrainer):
    """Trains and evaluates causal and encoder-decoder models on rows from `encode`, or on any rows of the same form.

    It is a `Seq2SeqTrainer`, but for these:

    - A causal model generates from the source alone, the tokens before the first label; Seq2SeqTrainer would give it
      source and answer.
    - Evaluation goes through rows by length, in batches of so many tokens, with one cache of the prompt, and returns
      predictions in the order of the data set. Its loss is the mean over all target tokens, not over batches.
      `compute_metrics` gets texts. Several evaluation sets keep the arguments of `generate`.
    - Label smoothing and gradient accumulation count target tokens, for encoder-decoder models too, whose own loss
      ignores `num_items_in_batch`.
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
        model: PreTrainedModel | PeftModel,
        args: Seq2SeqTrainingArguments,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        compute_loss_func: Callable[..., torch.Tensor] | None = None,
        compute_metrics: MetricFunction | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        stop: tuple[str, ...] = (),
        choice_normalization: str = "none",
        teacher: dict[int, torch.Tensor] | None = None,
        distillation: Literal["kl", "mse"] = "kl",
        name_row: Callable[..., str] = "row {}".format,
    ) -> None:
        if args.auto_find_batch_size:
            raise RecipeError(NO_AUTO_FIND_BATCH_SIZE)
        if has_prompt(model) and not (model.config.is_encoder_decoder or isinstance(model, SharedPrefixModel)):
            raise AdapterError(
                f"a {type(model).__name__} pads its rows before the prompt and so gives them other predictions than "
                "alone; make it by add_soft_prompt(model, config)"
            )
        with allow_quantized_evaluation(model):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator or DataCollatorForSeq2Seq(processing_class, padding="longest"),
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_loss_func=compute_loss_func,
                compute_metrics=self._score if compute_metrics else None,
                callbacks=callbacks,
                optimizers=optimizers,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )
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
        self.divergence = Divergence(self.accelerator, name_row)
        # Otherwise Trainer uploads all of an unfinished output folder, or the optimiser's state, while it trains.
        self.args.hub_strategy = HubStrategy.END
        self.training_start = TrainingStart()
        self.add_callback(self.training_start)
        self.add_callback(KeepOnlyBest())
        self.add_callback(self.divergence)
        self.generation_kwargs = {"do_sample": False, "pad_token_id": processing_class.pad_token_id}
        if self.args.generation_max_length and not base.config.is_encoder_decoder:
            # Trainer would count the source, and so the padding that a row has in its batch.
            self.generation_kwargs["max_new_tokens"] = self.args.generation_max_length
        if self.args.generation_num_beams:
            self.generation_kwargs["num_beams"] = self.args.generation_num_beams
        self.generation_kwargs |= generation_kwargs or {}
        self._evaluated: EvaluatedRows | None = None  # by the latest evaluation
        self._partial_run: Path | None = None

    def _send_only_what_is_trained(self) -> None:
        """Each process reads the frozen weights from the same files; DDP would send them all once more."""
        frozen = [name for name, parameter in self.model.named_parameters() if not parameter.requires_grad]
        frozen += [name for name, _ in self.model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, frozen)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; the arguments are Trainer's."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        resumed = resume_from_checkpoint and resume_from_checkpoint is not True
        self.training_start.checkpoint = Path(resume_from_checkpoint) if resumed else None
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint and isinstance(self.model, PeftModel):
            # PEFT saves an adapter that is not called default in a folder of its own, where Trainer does not look.
            folder = Path(self.state.best_model_checkpoint, self.model.active_adapter)
            if folder.is_dir():
                self.model.load_adapter(str(folder), self.model.active_adapter, is_trainable=True)
        return output

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if isinstance(self.model, FSDPModule):
            # Trainer would then also load what PEFT saved, which cannot be put into split tensors.
            plugin = self.accelerator.state.fsdp_plugin
            load_fsdp_model(plugin, self.accelerator, self.model, resume_from_checkpoint, adapter_only=True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As Trainer's, but the checkpoint is there when it is whole, and not before, whatever happens meanwhile."""
        self.divergence.check()
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

    def _get_output_dir(self, trial: Any) -> str:
        """As Trainer's; while a checkpoint is made, the folder in which it is made."""
        return str(self._partial_run or super()._get_output_dir(trial))

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
        """Return the sampler; Trainer's own would order an epoch anew when a run resumes in the middle of it.

        It would also group by length only the rows of one process. Needed by
        test_a_run_stopped_in_a_later_epoch_goes_on_with_its_rows_and_trainer_does_not.
        """
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        checkpoint, order = self.training_start.checkpoint, None
        if checkpoint and (checkpoint / ORDER).is_file():
            order = torch.load(checkpoint / ORDER, weights_only=True)
        sampler = EpochSampler(sampler.batch_size * self.args.world_size, sampler.lengths, seed, order)
        self.training_start.sampler = sampler
        return sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Return the batches of one step and their number of targets.

        Rows that accelerate repeats to fill the last batch of all processes have no targets. A run that resumes after
        its last step gets no batch, since Trainer would take one more step.
        """
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(map(self._without_repeated, epoch_iterator), num_batches, device)

    def _without_repeated(self, batch: dict[str, Any]) -> dict[str, Any]:
        whole = self.args.dataloader_drop_last or self.args.train_sampling_strategy == "batch_rebalance"
        whole = whole or not isinstance(self.train_dataset, Dataset)  # a stream has no last batch
        left = 0 if whole else len(self.train_dataset) % (self._train_batch_size * self.args.world_size)
        if left and self.accelerator.gradient_state.end_of_dataloader:
            batch["labels"][num_real_rows(left, len(batch["labels"]), self.args.process_index) :] = -100
        return batch

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Return a loader for one evaluation; Trainer would keep it for other data sets too.

        Args:
            eval_dataset: rows, or the name of a data set among several.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            return super().get_eval_dataloader(eval_dataset)  # which raises an error
        return self.get_test_dataloader(self.eval_dataset[rows] if isinstance(rows, str) else rows)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return a loader whose batches are bounded by their tokens."""
        loader = super().get_test_dataloader(test_dataset)
        if not isinstance(test_dataset, Dataset):
            return loader
        prompt = self.model.active_peft_config.num_virtual_tokens if has_prompt(self.model) else 0
        new_tokens = self.generation_kwargs.get("max_new_tokens", self.args.generation_max_length or 0)
        batches = batches_of_process(
            tokens_in_batch(test_dataset, prompt, new_tokens, self.generation_kwargs.get("num_beams", 1)),
            self.args.per_device_eval_batch_size,
            getattr(self.args, "per_device_eval_batch_tokens", sys.maxsize),  # Seq2SeqTrainingArguments have none.
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
