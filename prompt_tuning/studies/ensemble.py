"""Several soft prompts of one frozen model as an ensemble (Lester et al. 2021, section 6: prompt ensembling).

A batch holds each row once per adapter, behind that adapter's prompt, so the model is loaded once and K adapters cost
K rows. `vote`: each adapter writes its text, and the most frequent one wins. `logits`: the adapters write one text
together, each token the most likely by the mean of their log-probabilities.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from transformers import LogitsProcessor, LogitsProcessorList, set_seed

from prompt_tuning.arguments.methods import METHODS, find_method
from prompt_tuning.data.loading import SPLITS
from prompt_tuning.encoding.batching import batches_within, source_length
from prompt_tuning.engine.dispatch import CACHE_ARCHITECTURES
from prompt_tuning.engine.shared_prefix import SharedPrefixModel
from prompt_tuning.errors import AdapterError, DataError, ErrorList, PromptTuningError, RecipeError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.metrics.language import primary_language
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.metrics.squad.squad import answer_tokens
from prompt_tuning.models.loading import load_base_model, load_config
from prompt_tuning.models.prompts import check_adapter, load_adapter, load_adapter_config
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.reports.summary import read_results
from prompt_tuning.runs.evaluate import check_output_dir, trainer_for
from prompt_tuning.runs.predictor import generate_texts
from prompt_tuning.runs.prepare import Prepared, prepare
from prompt_tuning.runs.results import describe, scores_of, write_pages, write_run
from prompt_tuning.training.memory import IN_EVALUATION, explain_out_of_memory
from prompt_tuning.training.trainer import PromptTuningTrainer

logger = logging.getLogger(__name__)


class MeanOverAdapters(LogitsProcessor):
    """Gives the K copies of a row, which stand one after the other, the mean of their log-probabilities.

    So all K choose the same token, and one greedy `generate`, with one cache, is the ensemble's.
    """

    def __init__(self, copies: int) -> None:
        self.copies = copies

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`[B * K, V]` -> `[B * K, V]`."""
        if len(scores) % self.copies:  # SharedPrefixModel runs rows one at a time where no cache can hold them
            raise AdapterError(
                "--combine logits: the prompts and rows reach beyond this model's sliding window, so adapters cannot "
                "share a batch; lower max_source_tokens, or use --combine vote"
            )
        mean = scores.log_softmax(-1).unflatten(0, (-1, self.copies)).mean(1)
        return mean.repeat_interleave(self.copies, 0)


def ensemble(
    recipe: Recipe,
    adapters: Sequence[str],
    combine: Literal["vote", "logits"] = "vote",
    split: str = "test",
    output_dir: Path | None = None,
) -> Path:
    """Evaluate a split with several adapters, each alone and all together.

    Args:
        adapters: folders or hub ids of trained runs; the first breaks ties.

    Returns:
        The folder with results.json, predictions/<split>.jsonl and report.html.

    Raises:
        PromptTuningError: before the model loads, with all that is wrong with the adapters. DataError: no such split.
    """
    if split not in SPLITS:
        raise DataError(f"split {split}: expected one of {', '.join(SPLITS)}")
    check_output_dir(output_dir)
    check_adapters(recipe, adapters, combine)
    prepared = prepare(recipe, (split,))
    _check_open(prepared)
    set_seed(recipe.training.seed)
    model = load_adapters(prepared, adapters)
    names, lengths = list(model.peft_config), [each.num_virtual_tokens for each in model.peft_config.values()]
    rows, trainer = prepared.encoded[split], trainer_for(model, prepared)

    write_together(trainer, rows.select([0]), names)  # so that no measured pass pays for a first one
    logger.info("one adapter, to compare the cost with, then %s together", len(names))
    started = time.perf_counter()
    trainer.predict_texts(rows)
    one_adapter = time.perf_counter()
    alone = write_together(trainer, rows, names)
    finished = time.perf_counter()
    winners = [vote(texts, recipe.data.metric_language) for texts in alone]
    together, seconds = [text for text, _ in winners], finished - one_adapter
    if combine == "logits":
        together = [texts[0] for texts in write_together(trainer, rows, names, [MeanOverAdapters(len(names))])]
        seconds = time.perf_counter() - finished

    each = {f"adapter_{number}": list(texts) for number, texts in enumerate(zip(*alone, strict=True), 1)}
    results = describe(prepared, split) | {
        "recipe": recipe.resolved(),
        "combine": combine,
        "ensemble": scores_of(together, prepared, split).to_json(),
        "adapters": {
            name: {"folder": str(folder), "virtual_tokens": length} | scores_of(texts, prepared, split).to_json()
            for (name, texts), folder, length in zip(each.items(), adapters, lengths, strict=True)
        },
        "all_agree": round(100 * sum(votes == len(names) for _, votes in winners) / len(rows), 2),
        "mean_votes": round(sum(votes for _, votes in winners) / len(rows), 2),
        "cost": {
            "rows": {"one_adapter": len(rows), "ensemble": len(rows) * len(names)},
            "virtual_tokens": {"one_adapter": lengths[0], "ensemble": sum(lengths)},
            "seconds": {"one_adapter": round(one_adapter - started, 2), "ensemble": round(seconds, 2)},
        },
    }
    folder = output_dir or Path(recipe.training.output_dir) / f"evaluate-{split}-ensemble-{combine}"
    write_run(folder, results, prepared, split, {"ensemble": together} | each)
    write_pages(folder, "report")
    return folder


def check_adapters(recipe: Recipe, adapters: Sequence[str], combine: str) -> None:
    """Raise one error with all that keeps these adapters from being an ensemble; reads no weights."""
    if combine not in ("vote", "logits"):
        raise RecipeError(f"--combine {combine}: expected vote or logits")
    if len(adapters) < 2:
        raise AdapterError(f"--adapters: an ensemble needs at least two, found {len(adapters)}; name them in a row")
    config, name = load_config(recipe.model), recipe.model.model_name_or_path
    problems = ErrorList()
    if config.is_encoder_decoder:
        problems.append(AdapterError(f"{name} is an encoder-decoder model; ensembles are of causal models only"))
    elif combine == "logits" and config.get_text_config().model_type not in CACHE_ARCHITECTURES:
        reason = f"--combine logits: {config.model_type} cannot run several prompts in a batch"
        problems.append(AdapterError(f"{reason}; use --combine vote, which runs row by row there"))
    if combine == "logits" and recipe.decoding["num_beams"] > 1:
        problems.append(RecipeError("--combine logits is greedy; leave generation_num_beams out, or set it to 1"))
    seen: set[Path] = set()
    for folder in adapters:
        if Path(folder).resolve() in seen:
            problems.append(AdapterError(f"{folder} is named twice and would vote twice; name each adapter once"))
            continue
        seen.add(Path(folder).resolve())
        try:
            adapter = load_adapter_config(folder)
            if not find_method(adapter.peft_type).joins_ensembles:
                takes = " and ".join(row.name.upper() for row in METHODS.values() if row.joins_ensembles)
                raise AdapterError(f"{folder}: a {adapter.peft_type.value} adapter; an ensemble takes {takes}")
            check_adapter(adapter, folder, config)
        except PromptTuningError as error:
            problems.append(error)
    problems.raise_all()


def _check_open(prepared: Prepared) -> None:
    if prepared.encoder.closed:
        raise RecipeError(
            f"template {prepared.template.name} has answer_choices, and an ensemble votes on what its prompts write; "
            "set score_choices: false, or evaluate each adapter alone"
        )


def load_adapters(prepared: Prepared, adapters: Sequence[str]) -> SharedPrefixModel:
    """One base model with the prompt of every adapter, in their order; the first one's is active."""
    model = load_adapter(load_base_model(prepared.recipe.model, prepared.config), adapters[0])
    for number, folder in enumerate(adapters[1:], 2):
        model.load_adapter(str(adapter_folder(folder)), f"adapter_{number}", torch_device=str(model.device))
    return model.eval()


def write_together(
    trainer: PromptTuningTrainer, rows: Dataset, names: Sequence[str], processors: Sequence[LogitsProcessor] = ()
) -> list[list[str]]:
    """What each adapter writes for each row, `[rows][K]`, by batches that hold a row once per adapter."""
    model, tokenizer, args, copies = trainer.model, trainer.processing_class, trainer.args, len(names)
    kwargs = trainer.generation_kwargs
    sources = [
        row["input_ids"][: source_length(row["labels"])] for row in rows.select_columns(["input_ids", "labels"])
    ]
    order = sorted(range(len(sources)), key=lambda number: -len(sources[number]))
    longest = max(each.num_virtual_tokens for each in model.peft_config.values())
    batches = batches_within(
        [
            (longest + len(sources[number]) + kwargs["max_new_tokens"]) * kwargs["num_beams"] * copies
            for number in order
        ],
        max(args.per_device_eval_batch_size // copies, 1),
        args.per_device_eval_batch_tokens,
    )
    written: list[list[str]] = [[] for _ in sources]
    for batch in batches:
        numbers = [order[place] for place in batch]
        copied = [sources[number] for number in numbers for _ in names]
        average = {"logits_processor": LogitsProcessorList(processors)} if processors else {}
        with explain_out_of_memory(IN_EVALUATION), trainer.accelerator.autocast():  # that evaluation runs under
            texts = generate_texts(
                model, tokenizer, copied, trainer.stop, adapter_names=[*names] * len(batch), **average, **kwargs
            )
        for place, number in enumerate(numbers):
            written[number] = texts[place * copies : (place + 1) * copies]
    return written


def vote(texts: Sequence[str], language: str | None = None) -> tuple[str, int]:
    """The text that most adapters wrote, and how many did; of equally many, that of the adapter named first.

    Texts are one if they differ in what SQuAD's metric leaves out, as case and punctuation.
    """
    language = primary_language(language)
    normalised = [tuple(answer_tokens(text, language)) for text in texts]
    counts = Counter(normalised)
    winner = max(counts, key=counts.__getitem__)  # the first of the largest, in the order of the adapters
    return texts[normalised.index(winner)], counts[winner]


def ensemble_text(folder: Path) -> str:
    """The table of an ensemble's results: its metrics, those of each adapter alone, and the cost."""
    results = read_results(folder)
    scored = {each["folder"]: each for each in results["adapters"].values()}
    scored[f"together, by {results['combine']}"] = results["ensemble"]
    metrics = list(Scores.from_json(results["ensemble"]).values)
    width = max(map(len, scored)) + 2
    lines = [" " * width + "".join(f"{metric:>14}" for metric in metrics)]
    for name, scores in scored.items():
        lines.append(f"{name:{width}}" + "".join(f"{scores[metric]:14.1f}" for metric in metrics))
    count, cost = len(results["adapters"]), results["cost"]
    rows, virtual, seconds = cost["rows"], cost["virtual_tokens"], cost["seconds"]
    return "\n".join(
        [
            *lines,
            "",
            f"{results['rows']} rows of {results['split']}, template {results['template']}, model {results['model']}",
            f"all {count} adapters wrote the same for {results['all_agree']:.1f} % of the rows; "
            f"on average {results['mean_votes']:.2f} wrote the most frequent text",
            f"cost against {next(iter(scored))} alone: {rows['ensemble']} rows for {rows['one_adapter']}, "
            f"{virtual['ensemble']} virtual tokens for {virtual['one_adapter']}, "
            f"{seconds['ensemble']:.1f} s for {seconds['one_adapter']:.1f} s",
            f"written to {folder}",
        ]
    )
