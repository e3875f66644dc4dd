"""Export soft prompts as tokens of an ordinary model folder, which any server that takes token ids can serve."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.data.rows import open_rows
from prompt_tuning.encoding.decoding import special_stop_ids
from prompt_tuning.engine.adapter_weights import check_finite
from prompt_tuning.errors import AdapterError, ErrorList, ModelError, RecipeError
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.models.base_model import check_adapter, check_tokenizer, find_base_model
from prompt_tuning.models.gguf import convert_to_gguf, find_converter
from prompt_tuning.models.layered_config import BASES
from prompt_tuning.models.loading import load_base_model, load_config, load_tokenizer
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.run_files import read_results
from prompt_tuning.runs.evaluate import decoding_of
from prompt_tuning.runs.export_files import Exported, write_export
from prompt_tuning.runs.input_rows import read_row
from prompt_tuning.runs.named_runs import named_runs
from prompt_tuning.runs.predictor import read_run, run_encoder
from prompt_tuning.support.files import new_folder, read_json_lines, refuse_existing
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted
from prompt_tuning.templates.template import Template

logger = logging.getLogger(__name__)

SERVERS_THAT_TIE = {
    "cohere": "vLLM and llama.cpp", "cohere2": "llama.cpp", "gemma": "llama.cpp", "gemma2": "vLLM and llama.cpp",
}  # fmt: skip
"""Architectures whose heads a server ties to the embeddings, whatever the configuration says."""

MEASURED_ROWS = 32


def export_runs(
    runs: Sequence[str],
    output: str | Path,
    *,
    rows: Sequence[str] = (),
    logit_bias: bool = False,
    gguf: str | None = None,
    model_name_or_path: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write a model folder in which the trained embeddings of runs are tokens of the vocabulary.

    Args:
        runs: folders or hub ids of runs on one base model, each also as NAME=RUN. The name is that of the folder.
        output: the folder to create.
        rows: for each run a file with rows, to measure the head with; by default the rows of the run's evaluation.
        logit_bias: export an architecture whose servers tie the head, for requests that all carry a logit bias.
        gguf: also write a GGUF file with weights of this type, such as q8_0, by llama.cpp's converter.
        model_name_or_path: the base model, if it has moved.
        trust_remote_code: run the Python code that is with the model.

    Returns:
        The folder.

    Raises:
        PromptTuningError: a run cannot be exported, the runs have several base models, or the folder exists.
    """
    folder = Path(output)
    refuse_existing(folder)
    named = named_runs(runs)
    if rows and len(rows) != len(named):
        raise RecipeError(f"{counted(len(rows), 'file')} of rows for {counted(len(named), 'run')}. Give one for each.")
    converter = find_converter() if gguf else ""
    exported = []
    errors = ErrorList()
    for number, (name, run) in enumerate(named.items()):
        with errors.collect():
            file = rows[number] if rows else None
            exported.append(_read(name, run, file, model_name_or_path, trust_remote_code=trust_remote_code))
    errors.raise_all()
    model_args = exported[0].recipe.model
    config = load_config(model_args)
    tokenizer = load_tokenizer(model_args)
    _check_layers(exported, config, gguf=bool(gguf))
    _check_base(exported, config, tokenizer, logit_bias=logit_bias, renamed=bool(model_name_or_path))
    transformers_logging.disable_progress_bar()
    encoded = {task.name: _measured_rows(task, tokenizer, config) for task in exported}
    with new_folder(folder) as partial:
        model = load_base_model(model_args, config)
        _report_settings(model)
        write_export(partial, exported, encoded, model, tokenizer, logit_bias=logit_bias)
        del model
        if gguf:
            written = convert_to_gguf(converter, partial, gguf, folder.name)
            logger.info("%s takes %.1f MB", folder / written.name, written.stat().st_size / 1e6)
    return folder


def _read(
    name: str, run: RunFolder, rows: str | None, model_name_or_path: str | None, *, trust_remote_code: bool
) -> Exported:
    """Read a run without its base model; raise an AdapterError if it cannot be exported."""
    if run.model_config.is_file():
        raise AdapterError(f"{run.path}: a whole model, which servers load as it is. Leave it out.")
    config = load_adapter_config(run.path)
    method = find_method(config.peft_type)
    if not method.exportable:
        raise AdapterError(f"{run.path}: {method.name} trains no tokens. {method.instead_of_export}")
    base = model_name_or_path or find_base_model(config, run.path)
    run.check_links(run.recipe, run.template, run.adapter_config, run.adapter_weights)
    recipe, template = read_run(run, base, trust_remote_code=trust_remote_code)
    _check_decoding(run, recipe, template)
    tensors = load_file(run.adapter_weights)
    parts = [tensors[key].float() for key in ("prompt_embeddings", "text_embeddings") if key in tensors]
    layers = None
    if vars(config).get("layer_vectors"):
        layers = tensors["layer_vectors"].float() * tensors["layer_scales"].float()[:, None, None]
        check_finite({"layer_vectors": layers}, run.path)
    results = read_results(run.path) if run.results.is_file() else {}
    scores = {"split": results["split"], **results[method.results_key]} if method.results_key in results else {}
    return Exported(name, run, config, recipe, template, torch.cat(parts), layers, rows, scores)


def _check_decoding(run: RunFolder, recipe: Recipe, template: Template) -> None:
    """Raise an AdapterError for a run whose answers no request can ask for; report what requests do otherwise."""
    if recipe.prompt.score_choices and template.answer_choices is not None:
        raise AdapterError(
            f"{run.path}: it answers by the likeliest of its choices, which no request can ask for. Predict with "
            "prompt_tuning.Predictor, or set score_choices: false in its recipe.yaml."
        )
    if recipe.model.quantization_config:
        raise AdapterError(
            f"{run.path}: it was trained on a quantized model, whose folder cannot be written anew. Train it on the "
            "model itself."
        )
    if recipe.decoding["num_beams"] > 1:
        logger.warning("%s: it predicts with beams, and requests are greedy. Expect other texts.", run.path)


def _report_settings(model: PreTrainedModel) -> None:
    """Report what the model's generation configuration changes in the texts of a run, and no request asks for."""
    names = ", ".join(decoding_of(model))
    if names:
        logger.warning(
            "generation_config.json of %s sets %s, which servers read in other ways or not at all. Remove it, or "
            "expect other texts.",
            model.name_or_path,
            names,
        )


def _check_layers(exported: Sequence[Exported], config: PretrainedConfig, *, gguf: bool) -> None:
    """Raise an error for layer vectors of a model, or in a file, that cannot hold them."""
    with_layers = [task for task in exported if task.layer_vectors is not None]
    if not with_layers:
        return
    layered = with_layers[0].run.path
    if config.model_type not in BASES:
        raise ModelError(
            f"{layered}: it has vectors in every layer, which export writes for {', '.join(BASES)} and not for "
            f"{config.model_type}. Train without layer_vectors, or predict with prompt_tuning.Predictor."
        )
    if gguf:
        raise RecipeError(
            f"{layered}: it has vectors in every layer, and llama.cpp adds none. Leave --format out, or train without "
            "layer_vectors."
        )
    for task in with_layers:
        shape = [] if task.layer_vectors is None else [*task.layer_vectors.shape]
        expected = [config.num_hidden_layers, len(task.vectors), config.hidden_size]
        if shape != expected:
            raise AdapterError(
                f"{task.run.path}: layer_vectors has the shape {shape}, and the model takes {expected}. Export it "
                "with the model that it was trained on."
            )


def _check_base(
    exported: Sequence[Exported],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    logit_bias: bool,
    renamed: bool,
) -> None:
    """Raise all errors of runs that do not fit one base model, and of one that no server would serve right."""
    model = exported[0].recipe.model
    if config.is_encoder_decoder:
        raise ModelError(
            f"{model.model_name_or_path}: an encoder-decoder model, and export takes causal models. Predict with "
            "prompt_tuning.Predictor."
        )
    servers = SERVERS_THAT_TIE.get(config.get_text_config().model_type)
    if servers and not logit_bias:
        raise ModelError(
            f"{model.model_name_or_path}: {servers} tie the head of {config.model_type} to its embeddings, so that it "
            "would write tokens of the prompt. Give --logit_bias, and let each request carry the bias of prompts.json."
        )
    errors = ErrorList()
    for task in exported:
        with errors.collect():
            check_adapter(task.config, task.run.path, config, revision=model.model_revision, renamed=renamed)
            check_tokenizer(task.run.path, tokenizer, renamed=renamed)
        if task.recipe.model.dtype != model.dtype:
            errors.append(
                AdapterError(
                    f"{task.run.path}: trained on weights of {task.recipe.model.dtype}, {exported[0].run.path} on "
                    f"{model.dtype}. Export them apart."
                )
            )
    stops = [special_stop_ids(tokenizer, task.template.stop) for task in exported]
    if any(ids != stops[0] for ids in stops):
        errors.append(AdapterError("the runs stop at different special tokens. Export them apart."))
    errors.raise_all()


def _measured_rows(task: Exported, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> list[list[int]]:
    """Return token ids of rows of a task: of its file, else of the run's evaluation, else of its example."""
    encoder = run_encoder(task.recipe, task.template, tokenizer, config, task.config)
    data = task.recipe.data
    if task.rows:
        rows = list(zip(range(MEASURED_ROWS), open_rows(task.rows), strict=False))
        return [read_row(encoder, data, origin, row).source for _, (origin, row) in rows]
    results = read_results(task.run.path) if task.run.results.is_file() else {}
    predictions = task.run.predictions(results["split"]) if "split" in results else None
    # Predictions have the text of a row, which does not say which of its tokens are trained.
    if predictions and predictions.is_file() and encoder.trained_text is None:
        task.run.check_links(predictions)
        lines = read_json_lines(predictions, dict[str, Any])[:MEASURED_ROWS]
        return [encoder.tokenize(line["source"]) for line in lines]
    if "example" in results:
        return [read_row(encoder, data, f"{task.run.results}: example", results["example"]).source]
    raise AdapterError(f"{task.run.path}: it holds no rows to measure the head with. Give a file by --check.")
