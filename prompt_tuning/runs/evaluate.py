"""Predict and score a split, with a saved adapter or with the hard prompt alone, and write the results."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from datasets import Dataset
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerCallback, set_seed

from prompt_tuning.arguments.methods import HARD_PROMPT, METHODS, find_method
from prompt_tuning.arguments.prompt_args import CHOICE_LOSSES
from prompt_tuning.data.loading import check_split, row_origin, split_origin, with_standard_columns
from prompt_tuning.encoding.target_language import target_language
from prompt_tuning.engine.dispatch import get_base
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.models.base_model import check_adapter, check_tokenizer
from prompt_tuning.models.loading import load_base_model, load_config
from prompt_tuning.models.prompts import load_adapter
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.losses import prediction_counts
from prompt_tuning.reports.run_files import read_results
from prompt_tuning.runs.api_model import ApiModel, api_counts
from prompt_tuning.runs.output_folder import hold_folder
from prompt_tuning.runs.predict import PredictedRow
from prompt_tuning.runs.prepare import Prepared, prepare
from prompt_tuning.runs.results import answer_counts, choice_facts, describe, scores_of, write_pages, write_run
from prompt_tuning.runs.trained_text import without_trained_text
from prompt_tuning.support.files import read_json_lines
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.training.choices import ChoiceTrainer
from prompt_tuning.training.trainer import PromptTuningTrainer

logger = logging.getLogger(__name__)

NEUTRAL_DECODING = {
    "repetition_penalty": 1, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "length_penalty": 1,
    "encoder_repetition_penalty": 1, "encoder_no_repeat_ngram_size": 0, "suppress_tokens": None, "stop_strings": None,
    "begin_suppress_tokens": None, "bad_words_ids": None, "sequence_bias": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "exponential_decay_length_penalty": None, "early_stopping": False,
}  # fmt: skip
"""Settings of a model's generation_config.json with the value that changes nothing; length_penalty is for beams."""


def evaluate(recipe: Recipe, adapter: str | None = None, split: str = "test", output_dir: Path | None = None) -> Path:
    """Evaluate one split with a saved adapter, or with the hard prompt alone.

    Args:
        recipe: the recipe, with the rows and the template.
        adapter: a folder or a hub id; None for the hard prompt alone.
        split: train, validation or test.
        output_dir: the folder to write; None for one in the recipe's output_dir, named by split and adapter.

    Returns:
        The folder with results.json, predictions/<split>.jsonl and report.html.

    Raises:
        RecipeError: output_dir holds a run of `train`, the evaluation of another adapter, or files of others.
        DataError: there is no such split.
        PromptTuningError: everything that is wrong with the recipe and the adapter, before the model loads.
    """
    check_split(split)
    check_output_dir(output_dir)
    adapter_config = None
    if adapter and recipe.model.api_name is not None:
        raise RecipeError(f"adapter {adapter}: {recipe.model.model_name_or_path} takes none. Leave one of them out.")
    if adapter:
        adapter_config = load_adapter_config(adapter)
        check_adapter(adapter_config, adapter, load_config(recipe.model), revision=recipe.model.model_revision)
    folder = output_dir or Path(recipe.training.output_dir) / f"evaluate-{split}-{_results_key(adapter_config)}"
    with hold_folder(folder, RunFolder.EVALUATED):
        _check_same_adapter(folder, adapter and str(adapter))
        _evaluate(recipe, folder, split, adapter, adapter_config)
    return folder


def _evaluate(
    recipe: Recipe, folder: Path, split: str, adapter: str | None, adapter_config: PeftConfig | None
) -> None:
    """Evaluate a split into a folder that this process holds; the adapter's configuration has its base model."""
    prepared = prepare(without_trained_text(recipe), (split,), adapter)
    # Training rows need no references until they are evaluated.
    prepared.template.check_columns(prepared.rows[split].column_names, split_origin(recipe.data, split))
    if adapter:
        check_tokenizer(adapter, prepared.tokenizer)

    set_seed(recipe.training.seed)
    model = load_model(prepared)
    facts = describe(prepared, split) | {"recipe": recipe.resolved()}
    if adapter:
        model = load_adapter(model, adapter, config=adapter_config)
        tensors = load_file(RunFolder(adapter_folder(adapter)).adapter_weights)
        trained = [tensor for name, tensor in tensors.items() if not name.endswith("_scales")]  # These are measured.
        facts["trainable_parameters"] = sum(tensor.numel() for tensor in trained)
        facts["adapter"] = str(adapter)
    evaluate_models([(_results_key(adapter_config), model)], prepared, split, folder, facts)
    write_pages(folder, "report", trust_remote_code=recipe.model.trust_remote_code)
    # The other processes must not return before the folder is whole.
    PartialState().wait_for_everyone()


def evaluate_predictions(recipe: Recipe, file: Path, split: str = "test", output_dir: Path | None = None) -> Path:
    """Score predictions that `predict` or `requests` wrote for all rows of a split, in their order.

    Args:
        recipe: the recipe, with the rows and the template.
        file: JSON Lines, the rows of the split's file with a column `prediction`.
        split: train, validation or test.
        output_dir: the folder to write; None for one in the recipe's output_dir.

    Returns:
        The folder with results.json, predictions/<split>.jsonl and report.html.

    Raises:
        RecipeError: output_dir holds a run of `train`, or files of others.
        DataError: the file has other rows than the split, or rows without prediction.
    """
    check_output_dir(output_dir)
    folder = output_dir or Path(recipe.training.output_dir) / f"evaluate-{split}-{file.stem}"
    with hold_folder(folder, RunFolder.EVALUATED):
        _check_same_adapter(folder, str(file))
        prepared = prepare(without_trained_text(recipe), (split,))
        lines = _read_predictions(file, prepared, split)
        texts = [line["prediction"] for line in lines]
        limited = [line.get("at_limit") is True for line in lines]  # `predict --truncated` writes it.
        key = METHODS["prompt_tuning"].results_key
        results = describe(prepared, split) | {"recipe": recipe.resolved(), "adapter": str(file)}
        results["prediction_counts"] = {key: prediction_counts(texts, limited)}
        results |= {key: scores_of(texts, prepared, split).to_json()}
        write_run(folder, results, prepared, split, {key: texts})
        write_pages(folder, "report", trust_remote_code=recipe.model.trust_remote_code)
    return folder


def _read_predictions(file: Path, prepared: Prepared, split: str) -> list[dict[str, Any]]:
    """Return the predicted rows of the encoded rows of a split; raise a DataError if they are of other rows."""
    lines = read_json_lines(file, PredictedRow)
    rows, data = prepared.rows[split], prepared.recipe.data
    key = partial(prepared.template.source_key, languages=prepared.encoder.languages)
    predicted = []
    for number in prepared.encoded[split]["row"]:
        if number >= len(lines):
            raise DataError(
                f"{file}: it has {len(lines)} rows, and {split_origin(data, split)} {len(rows)}. Predict all."
            )
        line = with_standard_columns(lines[number], data)
        if key(line) != key(rows[number]):
            raise DataError(f"{file}, line {number + 1}: not {row_origin(data, split, number)}. Predict that file.")
        predicted.append(lines[number])
    return predicted


def _results_key(adapter_config: PeftConfig | None) -> str:
    """Return the key of results.json for an adapter, or for the hard prompt alone."""
    return find_method(adapter_config.peft_type if adapter_config else "none").results_key


def _check_same_adapter(folder: Path, adapter: str | None) -> None:
    """Raise a RecipeError if the folder holds the evaluation of another adapter."""
    if not RunFolder(folder).results.is_file():
        return
    earlier = read_results(folder).get("adapter")
    if _resolved(earlier) != _resolved(adapter):
        raise RecipeError(
            f"{folder} holds the evaluation of {earlier or 'the hard prompt alone'}; name another --output_dir"
        )


def _resolved(adapter: str | None) -> Path | str | None:
    """Return the absolute path of a folder; a hub id as it is."""
    return Path(adapter).resolve() if adapter and Path(adapter).is_dir() else adapter


def check_output_dir(folder: Path | None) -> None:
    """Raise a RecipeError if an evaluation would overwrite a run of `train`."""
    if folder and (RunFolder(folder).recipe.exists() or RunFolder(folder).adapter_config.exists()):
        raise RecipeError(
            f"output_dir {folder} holds a run of train, whose results and template an evaluation would replace; name "
            "another --output_dir, or leave it out"
        )


def evaluate_models(
    models: Iterable[tuple[str, PreTrainedModel | PeftModel | ApiModel]],
    prepared: Prepared,
    split: str,
    folder: Path,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Predict and score a split with one model after the other, and write the results.

    Args:
        models: every model with its name in results.json. A generator may make each when it is needed. The hard prompt
            is read without trained ids.
        prepared: the recipe with its rows.
        split: the split to predict.
        folder: the folder to write.
        facts: what results.json holds besides the scores.

    Returns:
        What results.json holds.
    """
    results = dict(facts)
    predictions: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    for name, model in models:
        logger.info("evaluating %s with the %s", split_origin(prepared.recipe.data, split), name.replace("_", " "))
        rows = prepared.hard_prompt_rows(split) if name == HARD_PROMPT else prepared.encoded[split]
        predicted = _predict(model, prepared, split, rows)
        predictions[name] = predicted.texts
        results.setdefault("prediction_counts", {})[name] = predicted.counts
        results[name] = scores_of(predictions[name], prepared, split).to_json()
        if predicted.probabilities:
            results.setdefault("probabilities", {})[name] = choice_facts(rows, predicted.probabilities)
        results["decoding"] = results["decoding"] | predicted.decoding
        results |= predicted.facts
        finished = time.perf_counter()
        seconds[name] = round(finished - started, 1)
        started = finished
    results["evaluation_seconds"] = round(sum(seconds.values()), 1)
    results["prediction_seconds"] = seconds
    if prepared.encoder.closed:
        results |= answer_counts(prepared, split, predictions)
    return write_run(folder, results, prepared, split, predictions)


class Predicted(NamedTuple):
    """The texts of all rows, with what results.json says of how they were made, and the probabilities of choices."""

    texts: list[str]
    counts: dict[str, int]
    decoding: dict[str, Any]
    facts: dict[str, Any]
    probabilities: list[list[float]] | None = None


def _predict(
    model: PreTrainedModel | PeftModel | ApiModel, prepared: Prepared, split: str, rows: Dataset
) -> Predicted:
    """Predict the encoded rows of a split by a model here or behind an API."""
    closed = prepared.encoder.closed
    if isinstance(model, ApiModel):
        answers = model.answer_rows(rows, prepared.encoder, prepared.recipe, split)
        decoding = {"choices": model.choice_method} if closed else {}
        return Predicted([answer.text for answer in answers], api_counts(answers), decoding, {"api": model.facts()})
    trainer = trainer_for(model, prepared)
    texts, limited = trainer.predict_texts_to_limit(rows)
    counts = prediction_counts(texts, limited)
    if closed:
        return Predicted(texts, counts, {}, {}, trainer.choice_probabilities(rows))
    return Predicted(texts, counts, decoding_of(model), {})


def load_model(prepared: Prepared) -> PreTrainedModel | ApiModel:
    """Load the base model of a recipe, or return the one behind an API that it names."""
    args = prepared.recipe.model
    if args.api_name is not None:
        return ApiModel.load(args)
    model = load_base_model(args, prepared.config)
    if not prepared.encoder.closed:
        _report_fewest_tokens(model, prepared.recipe.decoding["max_new_tokens"])
    return model


def _report_fewest_tokens(model: PreTrainedModel, limit: int) -> None:
    """Warn if the model's generation configuration asks for more tokens than the limit, so that no text ends."""
    config = model.generation_config
    name = "min_new_tokens"
    fewest = config.min_new_tokens or 0
    # In a causal model min_length also counts the source. The first token of a decoder is none of the text.
    if config.min_new_tokens is None and model.config.is_encoder_decoder:
        name = "min_length"
        fewest = (config.min_length or 0) - 1
    if fewest > limit:
        logger.warning(
            "generation_config.json of %s sets %s %s, and a prediction has at most %s tokens, so that none would end. "
            "Raise generation_max_length, or remove it there.",
            model.name_or_path,
            name,
            getattr(config, name),
            limit,
        )


def decoding_of(model: PreTrainedModel | PeftModel) -> dict[str, float]:
    """Return what the model's own generation configuration adds to the recipe's decoding."""
    config = get_base(model).generation_config
    decoding = {}
    for name, neutral in NEUTRAL_DECODING.items():
        value = getattr(config, name, None)
        if value is not None and value != neutral:
            decoding[name] = value
    return decoding


def trainer_for(
    model: PreTrainedModel | PeftModel | None,
    prepared: Prepared,
    callbacks: list[TrainerCallback] | None = None,
    model_init: Callable[..., PreTrainedModel | PeftModel] | None = None,
    output_dir: Path | None = None,
) -> PromptTuningTrainer:
    """Return a trainer on the recipe's rows that generates as the recipe says.

    Args:
        model: the model with its prompt; None with a `model_init`.
        prepared: the recipe with its rows.
        callbacks: called besides those of the trainer.
        model_init: returns a new model for each training of a search.
        output_dir: a folder, which Trainer makes if it is not there; None for that of the recipe.
    """
    recipe, encoded = prepared.recipe, prepared.encoded
    # Trainer wants evaluation rows if the recipe has an eval_strategy, also for `evaluate --split train`.
    evaluated = next((encoded[split] for split in ("validation", "test", "train") if split in encoded), None)
    args = copy.copy(recipe.training)
    args.push_to_hub = False  # A run is pushed when its folder is whole.
    args.output_dir = str(output_dir or args.output_dir)
    trainer: Callable[..., PromptTuningTrainer] = PromptTuningTrainer
    if recipe.prompt.loss in CHOICE_LOSSES and "train" in encoded:
        trainer = partial(
            ChoiceTrainer,
            choice_loss="brier" if recipe.prompt.loss == "brier" else "choices",
            class_weights=recipe.prompt.class_weights,
        )
    return trainer(
        model=model,
        model_init=model_init,
        args=args,
        processing_class=prepared.tokenizer,
        compute_metrics=prepared.score,
        generation_kwargs=recipe.decoding | target_language(prepared.tokenizer),
        stop=prepared.template.stop,
        choice_normalization=recipe.prompt.choice_normalization,
        train_dataset=encoded.get("train"),
        eval_dataset=evaluated,
        callbacks=callbacks,
        distillation="mse" if recipe.prompt.loss == "mse" else "kl",
        name_row=partial(row_origin, recipe.data, "train"),
    )
