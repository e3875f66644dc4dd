"""Evaluate what the model writes, without a target in sight of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import fsdp2_prepare_model, gather_object
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedTokenizerBase, Seq2SeqTrainer
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.encoding.batching import pad_left, source_rows, start_with, tokens_in_batch, unpadded
from prompt_tuning.encoding.decoding import decode, decode_to_limit
from prompt_tuning.engine.attention import ATTENTION
from prompt_tuning.engine.calls import first_set
from prompt_tuning.engine.dispatch import (
    autocast_dtype,
    autocasting,
    get_base,
    has_prompt,
    packing_obstacle,
    within_window,
)
from prompt_tuning.engine.generation import count_new_tokens, generate_padded, generate_with_cache
from prompt_tuning.engine.kv_cache import common_prefix_cache
from prompt_tuning.engine.likelihood import Normalization, choice_scores
from prompt_tuning.engine.shared_prefix import compute_prompt_once
from prompt_tuning.engine.stop_texts import limit_of_tokens, text_settings
from prompt_tuning.errors import AdapterError, DataError, RecipeError
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.training.batch_limits import evaluation_limits, shared_length
from prompt_tuning.training.distributed import (
    batches_of_process,
    gather_outside_layers,
    loader_of_batches,
    num_real_rows,
    synchronized_forwards,
    without_deepspeed,
)
from prompt_tuning.training.evaluated_rows import EvaluatedRows
from prompt_tuning.training.memory import IN_EVALUATION, explain_out_of_memory
from prompt_tuning.training.preparation import takes_eval_prediction


class EvaluatingTrainer(Seq2SeqTrainer):
    """The half of `PromptTuningTrainer` that evaluates; it has all that differs from Seq2SeqTrainer there.

    Attributes:
        score: `(predictions, references) -> metrics`, or `eval_prediction -> metrics`.
        generation_kwargs: for `generate`.
        stop: the texts that end a prediction.
        choice_normalization: how the choices of a closed question are compared.
    """

    processing_class: PreTrainedTokenizerBase
    score: Callable[..., Any]
    generation_kwargs: dict[str, Any]
    stop: tuple[str, ...]
    choice_normalization: Normalization
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None
    _evaluated: EvaluatedRows  # The rows of the latest evaluation.

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Return loss and metrics of the rows, which are read by length; arguments as for Seq2SeqTrainer.

        Raises:
            DataError: a stream, or rows without a source. RecipeError: several predictions of a row are asked for.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = self.eval_dataset[rows]
        if isinstance(rows, dict):
            # Trainer would forget the arguments of `generate` here.
            metrics: dict[str, float] = {}
            for name in rows:
                named_rows = name if eval_dataset is None else rows[name]
                metrics |= self.evaluate(named_rows, ignore_keys, f"{metric_key_prefix}_{name}", **gen_kwargs)
            return metrics
        if rows is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        self._evaluated = EvaluatedRows.of(rows, causal=self._is_causal)
        gen_kwargs = self.generation_kwargs | gen_kwargs
        return super().evaluate(self._evaluated.rows, ignore_keys, metric_key_prefix, **gen_kwargs)

    def predict(
        self,
        test_dataset: Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **gen_kwargs: Any,
    ) -> PredictionOutput:
        """Return token ids `[rows, new]`, padded with -100, in the order of the data set; metrics without a loss.

        A row with choices gets the number of its choice instead, `[rows, 1]`. A loss would cost another forward.

        Raises:
            RecipeError: predict_with_generate is False, or prediction_loss_only is True.
        """
        if not self.args.predict_with_generate:
            raise RecipeError("predict_with_generate is False, so that nothing is written; set it to True")
        if self.args.prediction_loss_only:
            raise RecipeError("prediction_loss_only is True, so that nothing is written; set it to False")
        self._evaluated = EvaluatedRows.of(test_dataset, causal=self._is_causal, with_loss=False)
        gen_kwargs = self.generation_kwargs | gen_kwargs
        output = super().predict(self._evaluated.rows, ignore_keys, metric_key_prefix, **gen_kwargs)
        predictions = self._evaluated.in_order(output.predictions)
        label_ids = self._evaluated.in_order(output.label_ids) if self._evaluated.labelled else None
        return PredictionOutput(predictions, label_ids, output.metrics)

    def predict_texts(self, dataset: Dataset) -> list[str]:
        """Return what the model writes for each row, or the choice that it takes, in the order of the data set."""
        return self.predict_texts_to_limit(dataset)[0]

    def predict_texts_to_limit(self, dataset: Dataset) -> tuple[list[str], list[bool]]:
        """Return the texts of `predict_texts`, and for each whether only the limit of new tokens ended it."""
        compute_metrics = self.compute_metrics
        self.compute_metrics = None
        try:
            predictions = self.predict(dataset).predictions
            if "choice_ids" in dataset.column_names:
                return self._texts(predictions, dataset["choices"]), [False] * len(dataset)
            limit = limit_of_tokens(self.model, self.generation_kwargs)
            return decode_to_limit(predictions, self.processing_class, self.stop, limit)
        finally:
            self.compute_metrics = compute_metrics

    def choice_probabilities(self, dataset: Dataset) -> list[list[float]]:
        """Return the probabilities of the choices of each row, which the latest `predict` of these rows compared.

        They are the softmax of the choices' normalised log-likelihoods. All processes call this together.
        """
        scores: dict[int, list[float]] = {}
        for of_process in gather_object([self._evaluated.choice_scores]):
            scores |= of_process
        return [torch.tensor(scores[row]).softmax(0).tolist() for row in dataset["row"]]

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Run an evaluation with one cache of the prompt; its loss is the mean over all target tokens.

        All of it is computed under the autocast of training. Trainer would have that only in a model's own forward.
        """
        evaluated = self._evaluated
        if self.accelerator.is_fsdp2 and not self.accelerator._models:  # noqa: SLF001 - no public name
            # Trainer would let accelerate prepare the model, which refuses a model without an optimiser.
            self.accelerator._models.append(fsdp2_prepare_model(self.accelerator, self.model))  # noqa: SLF001 - no public name
        with (
            explain_out_of_memory(IN_EVALUATION),
            self._autocast(),
            without_deepspeed(self),
            gather_outside_layers(self.model),
            compute_prompt_once(self.model, evaluated.common_prefix),
        ):
            try:
                output = super().evaluation_loop(dataloader, *args, **kwargs)
            finally:
                evaluated.common_prefix_cache = None
        name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
        if name in output.metrics:
            losses = gather_object([(evaluated.summed_loss, evaluated.loss_items)])
            items = sum(count for _, count in losses)
            if items:
                output.metrics[name] = sum(loss for loss, _ in losses) / items
        return output

    def _autocast(self) -> AbstractContextManager[None]:
        """Return the autocast of training; under DeepSpeed accelerate has none."""
        if self.is_deepspeed_enabled:
            return autocasting(self.args.device.type, autocast_dtype(vars(self.args)))
        return self.accelerator.autocast()

    @torch.no_grad()  # Reading rows into a cache would keep every activation of LoRA and full fine-tuning.
    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return the loss of source and target if it is needed, the predictions from the sources alone, and labels."""
        evaluated = self._evaluated
        row_numbers = inputs["row"].tolist() if evaluated.choices else []
        loss = self._evaluation_loss(model, inputs)
        if prediction_loss_only or not self.args.predict_with_generate:
            return loss, None, None
        inputs = self._prepare_inputs(inputs)
        # Without labels Trainer computes no metrics.
        labels = inputs["labels"] if evaluated.labelled or evaluated.references is not None else None
        if evaluated.choices:
            scores = self._choice_scores(self._sources(inputs), [evaluated.choices[number] for number in row_numbers])
            evaluated.choice_scores.update(zip(row_numbers, scores, strict=True))
            best = list(map(np.argmax, scores))
            return loss, inputs["labels"].new_tensor(best)[:, None], labels
        return loss, self._generate_targets(inputs, gen_kwargs or self._gen_kwargs), labels

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Return a loader for one evaluation; Trainer would keep it, and use it for other data sets too.

        Args:
            eval_dataset: rows, or the name of one data set of several.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            return super().get_eval_dataloader(eval_dataset)  # It raises an error.
        return self.get_test_dataloader(self.eval_dataset[rows] if isinstance(rows, str) else rows)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return a loader whose batches are bounded by their tokens."""
        loader = super().get_test_dataloader(test_dataset)
        if not isinstance(test_dataset, Dataset):
            return loader
        prompt = self.model.active_peft_config.num_virtual_tokens if has_prompt(self.model) else 0
        new_tokens = self.generation_kwargs.get("max_new_tokens", self.args.generation_max_length or 0)
        max_rows, max_tokens = evaluation_limits(self.args, get_base(self.model))
        settings = {"max_new_tokens": new_tokens} | self.generation_kwargs
        shared = shared_length(self.model, test_dataset, prompt, settings, self.args)
        batches = batches_of_process(
            tokens_in_batch(test_dataset, prompt - shared, new_tokens, self.generation_kwargs.get("num_beams", 1)),
            max_rows,
            max_tokens - shared,
            self.args.world_size,
            self.args.process_index,
        )
        return loader_of_batches(loader, batches, self.args)

    def _all_generation_kwargs(self, passed: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of `generate` that were passed, and those by the training arguments.

        Raises:
            RecipeError: an argument does not hold for rows of a batch. ModelError: a setting of the model does not.
        """
        kwargs = {"do_sample": False, "pad_token_id": self.processing_class.pad_token_id}
        if self.args.generation_max_length and self._is_causal:
            # Trainer would count the source, and so the padding that a row has in its batch.
            kwargs["max_new_tokens"] = self.args.generation_max_length
        if self.args.generation_num_beams:
            kwargs["num_beams"] = self.args.generation_num_beams
        kwargs |= passed
        if self.args.predict_with_generate:
            text_settings(self.model, self.processing_class, self.stop, kwargs)
        return kwargs

    @property
    def _is_causal(self) -> bool:
        return not self.model.config.is_encoder_decoder

    def _evaluation_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Return the mean loss of a batch, and add it to the evaluation's; padding rows have none."""
        evaluated = self._evaluated
        labels = inputs["labels"].clone()
        num_real = num_real_rows(evaluated.num_unread, len(labels), self.args.process_index)
        evaluated.num_unread -= len(labels) * self.args.world_size
        if not evaluated.with_loss:
            return None
        labels[num_real:] = -100
        loss = self.compute_loss(model, self._prepare_inputs(inputs | {"labels": labels}))
        targets = labels[:, 1:] if self._is_causal else labels  # The first token of a causal row has no loss.
        items = int((targets != -100).sum())
        if items:  # The mean over no item is not a number.
            evaluated.add_loss(loss.item(), items)
        return loss

    def _sources(self, inputs: dict[str, torch.Tensor]) -> list[list[int]]:
        """Return the token ids of each row's source."""
        if not self._is_causal:
            return unpadded(inputs["input_ids"], inputs["attention_mask"])
        rows = source_rows(inputs)
        if not all(rows):
            raise DataError(
                "a row's first token is a target already, so that there is no source to write a prediction for; "
                "give it one, or set predict_with_generate=False, which evaluates only the loss"
            )
        return rows

    def _choice_scores(
        self, sources: list[list[int]], choices: list[tuple[list[str], list[list[int]]]]
    ) -> list[list[float]]:
        """Return the normalised log-likelihood of each choice of each row; the row is answered with the highest."""
        if trains_several_tasks(self.model):
            raise AdapterError(
                "choices: a prompt of several tasks does not compare them. Evaluate the adapter of one task; `train` "
                "writes one for each."
            )
        texts, ids = zip(*choices, strict=True)
        with synchronized_forwards(self.model), self._eagerly():
            return choice_scores(
                self.model, self.processing_class, sources, texts, ids, normalization=self.choice_normalization
            )

    def _eagerly(self) -> AbstractContextManager:
        """Run layers that were compiled for training as they are, since generation's shapes are ever new."""
        return torch.compiler.set_stance("force_eager") if self.args.torch_compile else nullcontext()

    def _generate_targets(self, inputs: dict[str, torch.Tensor], gen_kwargs: dict[str, Any]) -> torch.Tensor:
        """Return the new tokens `[B, new]` that the model writes after the sources of a batch."""
        gen_kwargs = gen_kwargs | text_settings(self.model, self.processing_class, self.stop, gen_kwargs)
        sources = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        if self._is_causal:
            sources = self._prepare_inputs(pad_left(self._sources(inputs), self.processing_class.pad_token_id))
        start = sources["input_ids"].shape[1] if self._is_causal else 1
        if trains_several_tasks(self.model):
            sources["task_ids"] = inputs["task_ids"]
        with synchronized_forwards(self.model) as synced, self._eagerly():
            generated = self._generate(**sources, **synced, **gen_kwargs)
        return generated[:, start:].contiguous()

    def _generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Call `generate`; without a prompt too, read the rows' common prefix only once."""
        base = get_base(self.model)
        if (
            has_prompt(self.model)
            or not self._is_causal
            or packing_obstacle(base)
            or first_set(base, kwargs)
            or input_ids.shape[1] == 1  # Nothing of such a row is read before generation.
        ):
            return generate_padded(self.model, input_ids, attention_mask, **kwargs)
        kwargs = count_new_tokens(base, input_ids.shape[1], kwargs)
        if not within_window(base, input_ids.shape[1] + kwargs["max_new_tokens"]):
            return generate_padded(self.model, input_ids, attention_mask, **kwargs)
        base.set_attn_implementation(ATTENTION)
        evaluated = self._evaluated
        if evaluated.common_prefix_cache is None:
            evaluated.common_prefix_cache = common_prefix_cache(base, evaluated.common_prefix)
        cache = evaluated.common_prefix_cache
        prefix = input_ids.new_tensor(evaluated.common_prefix, dtype=input_ids.dtype)
        if not start_with(input_ids, attention_mask, prefix):  # A collator or data set of the user's may pad rows.
            prefix = prefix[:0]
            cache = common_prefix_cache(base, [])
        return generate_with_cache(
            base, [cache], [0] * len(input_ids), input_ids, attention_mask, common_prefix=prefix, packed=True, **kwargs
        )

    def _score(self, output: EvalPrediction) -> dict[str, float]:
        """Score an evaluation; the references are the rows' own, or else the texts of their labels."""
        evaluated = self._evaluated
        if takes_eval_prediction(self.score):
            inputs = None if output.inputs is None else evaluated.in_order(output.inputs)
            predictions = evaluated.in_order(output.predictions)
            return self.score(EvalPrediction(predictions, evaluated.in_order(output.label_ids), inputs))
        num_rows = len(evaluated.rows)
        references = evaluated.references
        if references is None:
            references = [[text] for text in decode(output.label_ids[:num_rows], self.processing_class)]
        choices = [texts for texts, _ in evaluated.choices.values()] if evaluated.choices else None
        scores = self.score(self._texts(output.predictions[:num_rows], choices), list(references))
        return Scores.from_json(scores).values

    def _texts(self, predictions: np.ndarray, choices: Iterable[list[str]] | None) -> list[str]:
        """Return predictions as text: of written ids `[rows, T]`, or of the numbers of choices `[rows, 1]`."""
        if choices is None:
            return decode(predictions, self.processing_class, self.stop)
        return [texts[number] for texts, number in zip(choices, predictions[:, 0], strict=True)]


def trains_several_tasks(model: torch.nn.Module) -> bool:
    """Return whether rows have a column `task_ids`, which selects their prompt."""
    return isinstance(model, PeftModel) and find_method(model.active_peft_config.peft_type).trains_several_tasks
