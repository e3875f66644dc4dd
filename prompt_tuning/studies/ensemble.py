"""Combine several soft prompts of one frozen model (Lester et al. 2021, section 6: prompt ensembling).

A batch holds each row once for each adapter, after that adapter's prompt. So the model is loaded once, and K adapters
cost K rows. With `vote` each adapter writes a text, and the most frequent text wins. With `logits` the adapters write
one text together. Each of its tokens is the most likely one by the mean of their log-probabilities.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from transformers import LogitsProcessor, LogitsProcessorList, PretrainedConfig, set_seed
from transformers.utils.logging import tqdm

from prompt_tuning.arguments.methods import METHODS, find_method
from prompt_tuning.data.loading import check_split
from prompt_tuning.encoding.batching import batches_within, source_length
from prompt_tuning.engine.dispatch import CACHE_ARCHITECTURES, get_base
from prompt_tuning.engine.shared_prefix import SharedPrefixModel
from prompt_tuning.errors import AdapterError, ErrorList, RecipeError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.metrics.language import primary_language
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.metrics.squad.squad import answer_tokens
from prompt_tuning.models.adapter_config import load_adapter_config, read_adapter_config
from prompt_tuning.models.base_model import check_adapter, check_tokenizer
from prompt_tuning.models.loading import load_base_model, load_config
from prompt_tuning.models.prompts import load_adapter
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.run_files import read_results
from prompt_tuning.runs.answers import generate_texts
from prompt_tuning.runs.evaluate import check_output_dir, trainer_for
from prompt_tuning.runs.output_folder import hold_folder
from prompt_tuning.runs.prepare import Prepared, prepare
from prompt_tuning.runs.results import describe, scores_of, write_pages, write_run
from prompt_tuning.runs.trained_text import without_trained_text
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.tables import text_table
from prompt_tuning.support.text import counted
from prompt_tuning.training.batch_limits import evaluation_limits
from prompt_tuning.training.memory import IN_EVALUATION, explain_out_of_memory
from prompt_tuning.training.trainer import PromptTuningTrainer

logger = logging.getLogger(__name__)


class MeanOverAdapters(LogitsProcessor):
    """Give the K copies of a row, which are consecutive, the mean of their log-probabilities.

    So all K copies choose the same token, and one greedy `generate` with one cache writes the ensemble's text.

    Args:
        copies: K, the number of adapters.
    """

    def __init__(self, copies: int) -> None:
        """Keep the number of adapters."""
        self.copies = copies

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Average scores: `[B * K, V]` -> `[B * K, V]`.

        Raises:
            AdapterError: the batch has no K copies of its rows, because SharedPrefixModel runs rows one by one if they
                are longer than the model's sliding window.
        """
        if len(scores) % self.copies:
            raise AdapterError(
                "--combine logits: the prompts and rows reach beyond this model's sliding window, so adapters cannot "
                "share a batch. Lower max_source_tokens, or use --combine vote."
            )
        mean = scores.log_softmax(-1).unflatten(0, (-1, self.copies)).mean(1)
        return mean.repeat_interleave(self.copies, 0)


@dataclass(frozen=True)
class EnsembleTexts:
    """The texts of an ensemble, and the time that they took.

    Args:
        by_adapter: the texts of each adapter, by its name in results.json.
        together: the ensemble's text of each row.
        votes: for each row the number of adapters that wrote the most frequent text.
        one_adapter_seconds: the time of one adapter alone.
        ensemble_seconds: the time of the ensemble.
    """

    by_adapter: dict[str, list[str]]
    together: list[str]
    votes: list[int]
    one_adapter_seconds: float
    ensemble_seconds: float


def ensemble(
    recipe: Recipe,
    adapters: Sequence[str],
    combine: Literal["vote", "logits"] = "vote",
    split: str = "test",
    output_dir: Path | None = None,
) -> Path:
    """Evaluate a split with each of several adapters, and with all together.

    Args:
        recipe: the model, the rows and the template.
        adapters: folders or hub ids of trained runs. The first wins ties.
        combine: how the adapters are combined, see the module's docstring.
        split: the rows to evaluate.
        output_dir: by default a folder in the recipe's output_dir.

    Returns:
        The folder with results.json, predictions/<split>.jsonl and report.html.

    Raises:
        DataError: the recipe has no such split.
        PromptTuningError: all errors of the adapters, before the model loads.
    """
    check_split(split)
    check_output_dir(output_dir)
    check_adapters(recipe, adapters, combine)
    folder = output_dir or Path(str(recipe.training.output_dir)) / f"evaluate-{split}-ensemble-{combine}"
    with hold_folder(folder, RunFolder.EVALUATED):
        _evaluate(recipe, adapters, combine, split, folder)
    return folder


def _evaluate(recipe: Recipe, adapters: Sequence[str], combine: str, split: str, folder: Path) -> None:
    """Evaluate a split into a folder that this process holds."""
    prepared = prepare(without_trained_text(recipe), (split,), adapters[0])
    _check_template(prepared)
    for adapter in adapters:
        check_tokenizer(adapter, prepared.tokenizer)
    set_seed(recipe.training.seed)
    model = load_adapters(prepared, adapters)
    rows = prepared.encoded[split]
    texts = _write_texts(trainer_for(model, prepared), rows, combine, recipe.data.metric_language)
    lengths = [config.num_virtual_tokens for config in model.peft_config.values()]
    results = {
        **describe(prepared, split),
        "recipe": recipe.resolved(),
        "combine": combine,
        "ensemble": scores_of(texts.together, prepared, split).to_json(),
        "prediction_counts": {"ensemble": {"empty": texts.together.count("")}},
        "adapters": {},
        "all_agree": round(100 * texts.votes.count(len(adapters)) / len(rows), 2),
        "mean_votes": round(sum(texts.votes) / len(rows), 2),
        "cost": _cost(texts, lengths),
    }
    for (name, predictions), adapter, length in zip(texts.by_adapter.items(), adapters, lengths, strict=True):
        scores = scores_of(predictions, prepared, split).to_json()
        results["adapters"][name] = {"folder": str(adapter), "virtual_tokens": length, **scores}
    write_run(folder, results, prepared, split, {"ensemble": texts.together, **texts.by_adapter})
    write_pages(folder, "report", trust_remote_code=recipe.model.trust_remote_code)


def _write_texts(trainer: PromptTuningTrainer, rows: Dataset, combine: str, language: str | None) -> EnsembleTexts:
    """Write texts with one adapter, with each adapter, and with all together."""
    names = list(trainer.model.peft_config)
    write_together(trainer, rows.select([0]), names)  # The first pass is slower, so it is not measured.
    logger.info("one adapter, to compare the cost with, then %s together", len(names))
    started = time.perf_counter()
    trainer.predict_texts(rows)
    one_adapter_finished = time.perf_counter()
    by_row = write_together(trainer, rows, names)
    finished = time.perf_counter()
    seconds = finished - one_adapter_finished
    together = []
    votes = []
    for texts in by_row:
        text, count = vote(texts, language)
        together.append(text)
        votes.append(count)
    if combine == "logits":
        copies = write_together(trainer, rows, names, [MeanOverAdapters(len(names))])
        together = [texts[0] for texts in copies]
        seconds = time.perf_counter() - finished
    by_adapter = {}
    for number, predictions in enumerate(zip(*by_row, strict=True), 1):
        by_adapter[f"adapter_{number}"] = list(predictions)
    return EnsembleTexts(by_adapter, together, votes, one_adapter_finished - started, seconds)


def _cost(texts: EnsembleTexts, lengths: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the rows, virtual tokens and seconds of one adapter and of the ensemble, as results.json has them."""
    num_rows = len(texts.together)
    one_adapter = round(texts.one_adapter_seconds, 2)
    return {
        "rows": {"one_adapter": num_rows, "ensemble": num_rows * len(lengths)},
        "virtual_tokens": {"one_adapter": lengths[0], "ensemble": sum(lengths)},
        "seconds": {"one_adapter": one_adapter, "ensemble": round(texts.ensemble_seconds, 2)},
    }


def check_adapters(recipe: Recipe, adapters: Sequence[str], combine: str) -> None:
    """Check that adapters can be combined, without reading weights.

    Raises:
        PromptTuningError: all reasons why they cannot.
    """
    if combine not in ("vote", "logits"):
        raise RecipeError(f"--combine {combine}: expected vote or logits. Name one of them.")
    if len(adapters) < 2:
        raise AdapterError(f"--adapters: an ensemble needs at least two, found {len(adapters)}. Name more.")
    config = load_config(recipe.model)
    errors = ErrorList()
    if config.is_encoder_decoder:
        name = recipe.model.model_name_or_path
        reason = f"{name}: an encoder-decoder model, and an ensemble needs a causal model"
        errors.append(AdapterError(f"{reason}. Evaluate the adapters one by one."))
    elif combine == "logits" and config.get_text_config().model_type not in CACHE_ARCHITECTURES:
        reason = f"--combine logits: {config.model_type} cannot run several prompts in a batch"
        errors.append(AdapterError(f"{reason}. Use --combine vote, which runs row by row."))
    if combine == "logits" and recipe.decoding["num_beams"] > 1:
        errors.append(RecipeError("--combine logits is greedy. Leave generation_num_beams out, or set it to 1."))
    folders: set[Path] = set()
    for folder in adapters:
        with errors.collect():
            if Path(folder).resolve() in folders:
                raise AdapterError(f"{folder} is named twice and would vote twice. Name each adapter once.")
            folders.add(Path(folder).resolve())
            _check_adapter(folder, config, recipe.model.model_revision)
    errors.raise_all()
    first, *others = map(_trained_text, adapters)
    for folder, text in zip(adapters[1:], others, strict=True):
        if text != first:
            raise AdapterError(f"{folder}: it has other trained text than {adapters[0]}. Evaluate them one by one.")


def _trained_text(folder: str) -> tuple[object, object]:
    """Return what decides which tokens of the template have trained ids with an adapter."""
    fields = vars(read_adapter_config(RunFolder(adapter_folder(folder))))
    return fields.get("trained_text"), fields.get("text_token_ids")


def _check_adapter(folder: str, config: PretrainedConfig, revision: str) -> None:
    """Raise an AdapterError if an ensemble on a model of this configuration cannot take an adapter."""
    adapter = load_adapter_config(folder)
    if not find_method(adapter.peft_type).joins_ensembles:
        expected = " and ".join(row.name.upper() for row in METHODS.values() if row.joins_ensembles)
        kind = adapter.peft_type.value
        raise AdapterError(f"{folder}: a {kind} adapter, and an ensemble takes {expected}. Leave it out.")
    check_adapter(adapter, folder, config, revision=revision)


def _check_template(prepared: Prepared) -> None:
    if prepared.encoder.closed:
        raise RecipeError(
            f"template {prepared.template.name} has answer_choices, and an ensemble votes on written texts. Set "
            "score_choices: false, or evaluate the adapters one by one."
        )


def load_adapters(prepared: Prepared, adapters: Sequence[str]) -> SharedPrefixModel:
    """Load a base model with the prompts of all adapters, in their order. The first prompt is active."""
    model = load_adapter(load_base_model(prepared.recipe.model, prepared.config), adapters[0])
    for number, folder in enumerate(adapters[1:], 2):
        model.load_adapter(str(adapter_folder(folder)), f"adapter_{number}", torch_device=str(model.device))
    return model.eval()


def write_together(
    trainer: PromptTuningTrainer, rows: Dataset, names: Sequence[str], processors: Sequence[LogitsProcessor] = ()
) -> list[list[str]]:
    """Write a text with each adapter for each row, `[rows][K]`.

    Args:
        trainer: of a model from `load_adapters`.
        rows: encoded rows.
        names: of the K adapters in the model.
        processors: change the logits of a batch, which holds the K copies of a row one after the other.
    """
    sources = []
    for row in rows.select_columns(["input_ids", "labels"]):
        sources.append(row["input_ids"][: source_length(row["labels"])])
    copies = len(names)
    written: list[list[str]] = [[] for _ in sources]
    with tqdm(total=len(sources), desc="ensemble", unit="row", disable=trainer.args.disable_tqdm) as bar:
        for numbers in _batches(trainer, sources, copies):
            texts = _write_batch(trainer, [sources[number] for number in numbers], names, processors)
            for place, number in enumerate(numbers):
                written[number] = texts[place * copies : (place + 1) * copies]
            bar.update(len(numbers))
    return written


def _batches(trainer: PromptTuningTrainer, sources: Sequence[list[int]], copies: int) -> list[list[int]]:
    """Split the numbers of rows into batches that hold K copies of a row, the longest rows first."""
    most_rows, most_tokens = evaluation_limits(trainer.args, get_base(trainer.model))
    kwargs = trainer.generation_kwargs
    num_virtual_tokens = max(config.num_virtual_tokens for config in trainer.model.peft_config.values())
    order = sorted(range(len(sources)), key=lambda number: -len(sources[number]))
    lengths = []
    for number in order:
        length = num_virtual_tokens + len(sources[number]) + kwargs["max_new_tokens"]
        lengths.append(length * kwargs["num_beams"] * copies)
    batches = []
    for places in batches_within(lengths, max(most_rows // copies, 1), most_tokens):
        batches.append([order[place] for place in places])
    return batches


def _write_batch(
    trainer: PromptTuningTrainer,
    sources: Sequence[list[int]],
    names: Sequence[str],
    processors: Sequence[LogitsProcessor],
) -> list[str]:
    """Write the texts of a batch, `[rows * K]`, the K texts of a row one after the other."""
    repeated: list[list[int]] = []
    for source in sources:
        repeated += [source] * len(names)
    kwargs = {**trainer.generation_kwargs, "adapter_names": [*names] * len(sources)}
    if processors:
        kwargs["logits_processor"] = LogitsProcessorList(processors)
    with explain_out_of_memory(IN_EVALUATION), trainer.accelerator.autocast():  # Evaluation runs under it too.
        return generate_texts(trainer.model, trainer.processing_class, repeated, trainer.stop, **kwargs)


def vote(texts: Sequence[str], language: str | None = None) -> tuple[str, int]:
    """Return the most frequent text and the number of adapters that wrote it. The first adapter wins ties.

    Texts that SQuAD's metric normalises to the same tokens are equal: case and punctuation do not count.
    """
    language = primary_language(language)
    normalised = [tuple(answer_tokens(text, language)) for text in texts]
    counts = Counter(normalised)
    winner = max(counts, key=counts.__getitem__)  # max returns the first of equals, in the order of the adapters.
    return texts[normalised.index(winner)], counts[winner]


def ensemble_text(folder: Path) -> str:
    """Return the metrics of each adapter and of the ensemble as a table, with the cost, for a terminal.

    Args:
        folder: what `ensemble` returned.
    """
    results = read_results(folder)
    metrics = list(Scores.from_json(results["ensemble"]).values)
    scored = {scores["folder"]: scores for scores in results["adapters"].values()}
    first = next(iter(scored))
    scored[f"together, by {results['combine']}"] = results["ensemble"]
    lines = []
    for name, scores in scored.items():
        lines.append([name, *(f"{scores[metric]:.1f}" for metric in metrics)])
    rows, tokens, seconds = results["cost"].values()
    return "\n".join(
        [
            text_table(["", *metrics], lines, align=["left", *["right"] * len(metrics)]),
            "",
            f"{counted(results['rows'], 'row')} of {results['split']}, template {results['template']}, "
            f"model {results['model']}",
            f"all {len(results['adapters'])} adapters wrote the same for {results['all_agree']:.1f} % of the rows; "
            f"on average {results['mean_votes']:.2f} wrote the most frequent text",
            f"cost against {first} alone: {counted(rows['ensemble'], 'row')} for {rows['one_adapter']}, "
            f"{counted(tokens['ensemble'], 'virtual token')} for {tokens['one_adapter']}, "
            f"{seconds['ensemble']:.1f} s for {seconds['one_adapter']:.1f} s",
            f"written to {folder}",
        ]
    )
