"""Predict and score a split, with a soft prompt or with the hard prompt alone, and write what came out."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerCallback, set_seed

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.data.loading import SPLITS, row_origin, split_origin
from prompt_tuning.encoding.batching import source_length
from prompt_tuning.encoding.dataset import EncodingReport
from prompt_tuning.encoding.streaming import StreamReport
from prompt_tuning.encoding.target_language import target_language
from prompt_tuning.engine.dispatch import get_base
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.models.loading import load_base_model, load_config
from prompt_tuning.models.prompts import check_adapter, load_adapter, load_adapter_config
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.facts import machine_facts, origin_facts
from prompt_tuning.reports.html import write_report
from prompt_tuning.reports.model_card import write_card
from prompt_tuning.runs.fingerprints import input_fingerprints
from prompt_tuning.runs.prepare import Prepared, prepare
from prompt_tuning.support.files import atomic_write, read_json, write_json, write_json_lines
from prompt_tuning.training.trainer import PromptTuningTrainer

logger = logging.getLogger(__name__)

# Of a model's generation_config.json, with the value that changes nothing; length_penalty is for beams.
OWN_DECODING = {
    "repetition_penalty": 1, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "length_penalty": 1
}  # fmt: skip


def evaluate(recipe: Recipe, adapter: str | None = None, split: str = "test", output_dir: Path | None = None) -> Path:
    """Evaluate one split with a saved soft prompt, or without one the hard prompt alone.

    Args:
        adapter: a folder or a hub id.

    Returns:
        The folder with results.json, predictions/<split>.jsonl and report.html.

    Raises:
        RecipeError: output_dir holds a run of `train`. DataError: there is no such split.
    """
    if split not in SPLITS:
        raise DataError(f"split {split}: expected one of {', '.join(SPLITS)}")
    check_output_dir(output_dir)
    adapter_config = load_adapter_config(adapter) if adapter else None
    if adapter_config:
        check_adapter(adapter_config, adapter, load_config(recipe.model))
    name = find_method(adapter_config.peft_type if adapter_config else "none").results_key
    folder = output_dir or Path(recipe.training.output_dir) / f"evaluate-{split}-{name}"
    _check_adapter_of(folder, adapter and str(adapter))
    prepared = prepare(recipe, (split,))
    set_seed(recipe.training.seed)
    model = load_base_model(recipe.model, prepared.config)
    if adapter:
        model = load_adapter(model, adapter, config=adapter_config)
    results = describe(prepared, split) | {"recipe": recipe.resolved()}
    if adapter:
        tensors = load_file(adapter_folder(adapter) / "adapter_model.safetensors")
        results["trainable_parameters"] = sum(tensor.numel() for tensor in tensors.values())
        results["adapter"] = str(adapter)
    evaluate_and_write([(name, model)], prepared, split, folder, results)
    write_pages(folder, "report")
    PartialState().wait_for_everyone()  # until the folder is whole
    return folder


def _check_adapter_of(folder: Path, adapter: str | None) -> None:
    """Raise a RecipeError if the folder has the evaluation of another adapter."""
    known = read_json(folder / "results.json").get("adapter") if (folder / "results.json").is_file() else adapter
    if _place(known) != _place(adapter):
        raise RecipeError(
            f"{folder} holds the evaluation of {known or 'the hard prompt alone'}; name another --output_dir"
        )


def _place(adapter: str | None) -> Path | str | None:
    """A folder however it is written; a hub id as it is."""
    return Path(adapter).resolve() if adapter and Path(adapter).is_dir() else adapter


def check_output_dir(folder: Path | None) -> None:
    """Raise a RecipeError if an evaluation would be written over a run."""
    if folder and any((folder / name).exists() for name in ("recipe.yaml", "adapter_config.json")):
        raise RecipeError(
            f"output_dir {folder} holds a run of train, whose results and template an evaluation would replace; name "
            "another --output_dir, or leave it out"
        )


def evaluate_and_write(
    models: Iterable[tuple[str, PreTrainedModel | PeftModel]],
    prepared: Prepared,
    split: str,
    folder: Path,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Predict and score a split with one model after the other, and write what came out; returns results.json.

    Args:
        models: each with its name in results.json; they may be made as their turn comes.
        facts: what else results.json holds.
    """
    results, predictions, seconds = dict(facts), {}, {}
    started = time.perf_counter()
    for name, model in models:
        logger.info("evaluating %s with the %s", split_origin(prepared.recipe.data, split), name.replace("_", " "))
        predictions[name], scores = predict_and_score(model, prepared, split)
        results[name] = scores.to_json()
        if not prepared.encoder.closed:
            results["decoding"] = results["decoding"] | _own_decoding(model)
        finished = time.perf_counter()
        seconds[name], started = round(finished - started, 1), finished
    results |= {"evaluation_seconds": round(sum(seconds.values()), 1), "prediction_seconds": seconds}
    if prepared.encoder.closed:
        results |= answers_taken(prepared, split, predictions)
    write_run(folder, results, prepared, split, predictions)
    return results


def _own_decoding(model: PreTrainedModel | PeftModel) -> dict[str, float]:
    """What the model's own generation configuration adds to the recipe's decoding."""
    config = get_base(model).generation_config
    found = {name: getattr(config, name, None) for name in OWN_DECODING}
    return {name: value for name, value in found.items() if value not in (None, OWN_DECODING[name])}


def trainer_for(
    model: PreTrainedModel | PeftModel,
    prepared: Prepared,
    callbacks: list[TrainerCallback] | None = None,
) -> PromptTuningTrainer:
    """A trainer on the recipe's rows, that generates as the recipe says."""
    encoded = prepared.encoded
    args = copy.copy(prepared.recipe.training)
    args.push_to_hub = False  # A run is pushed when its folder is whole.
    return PromptTuningTrainer(
        model=model,
        args=args,
        processing_class=prepared.tokenizer,
        compute_metrics=prepared.score,
        generation_kwargs=prepared.recipe.decoding | target_language(prepared.tokenizer),
        stop=prepared.template.stop,
        choice_normalization=prepared.recipe.prompt.choice_normalization,
        train_dataset=encoded.get("train"),
        # Trainer wants rows here where the recipe has an eval_strategy, of `evaluate --split train` too.
        eval_dataset=next((encoded[each] for each in ("validation", "test", "train") if each in encoded), None),
        callbacks=callbacks,
        distillation=prepared.recipe.prompt.loss,
        name_row=partial(row_origin, prepared.recipe.data, "train"),
    )


def predict_and_score(model: PreTrainedModel | PeftModel, prepared: Prepared, split: str) -> tuple[list[str], Scores]:
    """What the model writes for each row of a split, or the choice that it takes, and the metrics of it."""
    rows = prepared.encoded[split]
    predictions = trainer_for(model, prepared).predict_texts(rows)
    return predictions, scores_of(predictions, prepared, split)


def scores_of(predictions: list[str], prepared: Prepared, split: str) -> Scores:
    scores = prepared.score(predictions, list(prepared.encoded[split]["references"]))
    return Scores.from_json(scores).rounded()


def answers_taken(prepared: Prepared, split: str, predictions: dict[str, list[str]]) -> dict[str, Any]:
    """Of closed questions that share their choices: how often each was expected and taken, and what one alone scores.

    A model that takes one answer whatever it reads scores what `always` does.
    """
    rows = prepared.encoded[split]
    first, *others = rows["choices"]
    if any(choices != first for choices in others):
        return {}
    expected = Counter(references[0] for references in rows["references"] if references)
    if not expected:
        return {}
    [(likeliest, _)] = expected.most_common(1)
    taken = {name: dict(Counter(texts).most_common()) for name, texts in predictions.items()}
    always = {"answer": likeliest} | scores_of([likeliest] * len(rows), prepared, split).to_json()
    return {"answers": {"expected": dict(expected.most_common()), "always": always, "taken": taken}}


def describe(prepared: Prepared, split: str) -> dict[str, Any]:
    """The facts that every results.json opens with."""
    recipe, report = prepared.recipe, prepared.reports[split]
    chosen = {"choice_normalization": recipe.prompt.choice_normalization}
    return {
        "task": recipe.data.task,
        "split": split,
        "rows": report.rows,
        "cut_rows": report.cut_rows,
        "splits": {name: _size(each) for name, each in prepared.reports.items()},
        "seed": recipe.training.seed,
        "model": recipe.model.model_name_or_path,
        "template": recipe.prompt.template,
        "decoding": chosen if prepared.encoder.closed else recipe.decoding,
        "leakage": prepared.leakage,
        "inputs": input_fingerprints(prepared),
        "example": _example(prepared, split),
        **origin_facts(recipe.model.model_name_or_path, recipe.data.dataset_name, prepared.rows[split]),
        **machine_facts(recipe.training),
    }


def _size(report: EncodingReport | StreamReport) -> dict[str, int]:
    return {"rows": report.rows, "cut_rows": report.cut_rows, "longest": report.longest}


def _example(prepared: Prepared, split: str) -> dict[str, Any]:
    """What the template reads of the first row: the model card's example."""
    row = prepared.rows[split][prepared.encoded[split][0]["row"]]
    read = {column: row[column] for column in sorted(prepared.template.source_columns) if column in row}
    return json.loads(json.dumps(read, default=str))  # parquet has dates


def write_run(
    folder: Path, results: dict[str, Any], prepared: Prepared, split: str, predictions: dict[str, list[str]]
) -> None:
    """results.json, template.yaml and predictions/<split>.jsonl, by one process."""
    if not PartialState().is_main_process:
        return
    whole_input = prepared.config.is_encoder_decoder
    rows = prepared.encoded[split].select_columns(["row", "source", "references", "cut_tokens", "input_ids", "labels"])
    write_json_lines(
        folder / "predictions" / f"{split}.jsonl",
        (
            {"row": row["row"], "source": row["source"], "references": row["references"]}
            | {"source_tokens": len(row["input_ids"]) if whole_input else source_length(row["labels"])}
            | {"cut_tokens": row["cut_tokens"]}
            | {name: texts[number] for name, texts in predictions.items()}
            for number, row in enumerate(rows)
        ),
    )
    with atomic_write(folder / "template.yaml") as file:
        file.write(prepared.template.to_yaml())
    write_json(folder / "results.json", results)


def write_pages(folder: Path, *names: str) -> None:
    """Those of the `card`, README.md, and the `report`, report.html, of a finished run, by one process.

    All else is on disk by now, so what goes wrong here is said and fails nothing. Let the report come last: it may
    score rows for minutes.
    """
    if not PartialState().is_main_process:
        return
    for name in names:
        try:
            write_card(folder) if name == "card" else write_report(folder)
        except Exception as error:
            again = f"the run is complete without it; `prompt-tuning {name} {folder}` tries again"
            logger.warning("%s: no %s was written (%s: %s); %s", folder, name, type(error).__name__, error, again)
