"""The model card of a run, from its facts alone and without a network.

What is unknown is left out. The user's texts (rows, predictions, templates, names) are in fences that they cannot
close.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pprint
import re
import shlex
from itertools import chain
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, UndefinedError
from transformers import Trainer

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.methods import HARD_PROMPT, METHODS, Method, find_method
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.errors import DataError
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.reports.card_tables import (
    data_table,
    read_split,
    results_table,
    saved_step,
    steps_table,
    steps_with_saved,
)
from prompt_tuning.reports.facts import card_facts, trainer_facts
from prompt_tuning.reports.markdown import LINE_END, fence, inline_code, plain_words
from prompt_tuning.reports.run_files import read_card_facts, read_results, systems_in
from prompt_tuning.reports.summary import (
    answers_text,
    decoding_text,
    probabilities_text,
    scores_of_systems,
)
from prompt_tuning.support.data_files import file_format
from prompt_tuning.support.files import write_json, write_text
from prompt_tuning.support.json_values import MAX_BYTES
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.tables import markdown_table
from prompt_tuning.support.text import counted
from prompt_tuning.support.yaml_files import to_yaml

logger = logging.getLogger(__name__)

CARD_MARK = b"; trained by prompt_tuning "  # A line of every card.
STARTS = {
    "random": "noise at the embeddings' own scale",
    "vocab": "tokens sampled from the vocabulary",
    "frequent": "the most frequent tokens of the targets",
    "text": "a text",
    "class_labels": "the class labels",
    "demonstrations": "training rows as the template writes them",
    "template": "the words that every row opens with",
    "adapter": "another adapter",
}
# The hub knows these metrics by other names.
HUB_METRICS = {"bleu": "sacrebleu", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge", "rougeLsum": "rouge"}
# The card has these settings elsewhere, or they do not change what is trained.
SHOWN_ELSEWHERE = {
    "model_name_or_path", "template", "method", "init", "init_text", "init_labels", "init_adapter", "adapter",
    "num_virtual_tokens", "license", "metrics", "output_dir", "seed", "disable_tqdm", "report_to", "use_cpu",
}  # fmt: skip


def write_card(source: Path, output: Path | None = None, own_example: dict[str, Any] | None = None) -> Path:
    """Write the card of a run and return its path.

    Args:
        source: a run's folder, or the facts of a card as a JSON file.
        output: the card, or its facts if the name ends in .json. Default: README.md in the folder.
        own_example: `example` and `own_example` for results.json: a row that replaces the data's first row. Without
            `output`, results.json keeps it, so that later cards and `push` also have it.

    Raises:
        DataError: the folder holds no finished training of one task, the file no facts, or the file beside it that
            would be replaced is not a card.
    """
    named_by_user = output is not None
    if source.suffix == ".json":
        facts = read_card_facts(source)
        output = output or _card_beside(source)
    else:
        facts = card_facts(source, own_example)
        run = RunFolder(source)
        if own_example and output is None:
            write_json(run.results, read_results(source) | own_example)
        output = output or run.card
    if output.suffix == ".json":
        write_json(output, facts, named_by_user=named_by_user)
    else:
        write_text(output, card_text(facts), named_by_user=named_by_user)
    return output


def write_trainer_card(
    trainer: Trainer,
    language: str | list[str] | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    *,
    finetuned_from: str | None = None,
    dataset_tags: str | list[str] | None = None,
    **kwargs: Any,
) -> None:
    """Write README.md in a trainer's output folder; the arguments are those of `Trainer.create_model_card`.

    The folder of a run keeps the card of its own facts. Arguments that have no place in the card are logged.
    """
    run = RunFolder(Path(trainer.args.output_dir))
    settings = {"lang": language, "license": license}
    added = {"tags": tags, "name": model_name, "base_model": finetuned_from, "datasets": dataset_tags}
    unused = kwargs | (settings | added if run.results.is_file() else {})
    names = [name for name, value in unused.items() if value]
    if names:
        logger.warning("%s: %s not in the card, which has the facts of the training", run.card, ", ".join(names))
    if run.results.is_file():
        write_card(run.path)
        return
    facts = trainer_facts(trainer)
    facts["settings"] |= {name: value for name, value in settings.items() if value}
    facts |= {name: value for name, value in added.items() if value}
    write_text(run.card, card_text(facts))


def card_for_hub(folder: Path, repo_id: str, base_model: str | None = None) -> str | None:
    """Return the card of a run with the names by which others load it.

    Args:
        folder: the run's folder.
        repo_id: replaces the folder's name.
        base_model: hub id that replaces the name of the base model. Default: as the run names it.

    Returns:
        None if README.md is not the card of the folder's facts: edited by hand, or written by another version. It is
        then to be uploaded as it is.
    """
    run = RunFolder(folder)
    try:
        facts = _facts_of_written_card(run)
    except DataError:  # something that a card needs is gone, for example the predictions
        return None
    if facts is None:
        logger.warning(
            "%s: not the card of this run's facts (edited, or of another version). It is uploaded as it is; "
            "`prompt-tuning card %s` writes it again.",
            run.card,
            folder,
        )
        return None
    facts["folder"] = repo_id
    if base_model:
        facts["results"] |= {"model": base_model, "base_model": base_model}
        facts["settings"] |= {"model_name_or_path": base_model}
    return card_text(facts)


def _facts_of_written_card(run: RunFolder) -> dict[str, Any] | None:
    """Return the facts that README.md was written from; None if it says anything else."""
    facts = card_facts(run.path)
    if not run.card.is_file():
        return facts
    with run.card.open(encoding="utf-8", errors="replace", newline="") as file:  # A carriage return stays as it is.
        text = file.read(MAX_BYTES)
    # The folder may have been moved after its card was written.
    trained_in = facts["settings"].get("output_dir", "")
    for names in ({}, {"folder": trained_in, "name": Path(trained_in).name}):
        if text == card_text(facts | names):
            return facts | names
    return None


def _card_beside(facts: Path) -> Path:
    """Return the path of the card beside its facts; raise a DataError if that is a file of another kind."""
    card = facts.with_suffix(".md")
    if card.exists() and not (card.is_file() and CARD_MARK in card.read_bytes()):
        raise DataError(f"{card}: not a card of prompt-tuning, and it would be replaced. Name a file with --output.")
    return card


@functools.cache
def _card_template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "code": inline_code,
        "counted": counted,
        "fence": fence,
        "literal": _literal,
        "quote": shlex.quote,
        "words": plain_words,
        "yaml": to_yaml,
    }
    environment.globals["table"] = markdown_table
    return environment.get_template("model_card_template.md")


def card_text(facts: dict[str, Any]) -> str:
    """Return the card of these facts: Markdown after YAML metadata.

    Args:
        facts: what `card_facts` or `trainer_facts` returns.

    Raises:
        DataError: the facts lack what the card shows, for example a setting of an edited recipe.
    """
    results, settings = facts["results"], facts["settings"]
    systems = scores_of_systems(results)
    scores = next(iter(systems.values()), Scores({}, {}))
    steps = steps_with_saved(facts)
    try:
        text = _card_template().render(
            facts,
            method=_method(results["method"]),
            start=STARTS.get(settings.get("init", "")),
            metrics=list(scores.values),
            signatures=list(scores.signatures.values()),
            results_table=results_table(systems, results.get("comparison", {})),
            compares=len(systems) == 2,
            decoding=decoding_text(results["decoding"]) if systems else None,
            answers=[
                *(answers_text(results["answers"]) if "answers" in results else []),
                *probabilities_text(results.get("probabilities", {})),
            ],
            predicted=_predictions(facts.get("example", {})),
            data_table=data_table(results, settings) if systems else None,
            changed=_changed(settings, results["method"]),
            steps_table=steps_table(steps, saved_step(results)),
            steps=len(steps),
        )
    except UndefinedError as error:
        raise DataError(f"card: {error.message}. Copy the recipe of the run again, or train again.") from error
    text = re.sub(r"\n{3,}(?=#|<details>)", "\n\n", text).replace(LINE_END, "\n")
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n{text.strip()}\n"


def _metadata(facts: dict[str, Any]) -> ModelCardData:
    results, settings = facts["results"], facts["settings"]
    task, method = results.get("task", "").replace("_", "-"), find_method(results["method"])
    tags = [method.name.replace("_", "-"), task]
    if method.has_prompt:
        tags.insert(0, "prompt-tuning")
    pipeline = task if task in ("summarization", "translation") else "text-generation"
    return ModelCardData(
        base_model=facts.get("base_model") or results.get("base_model"),
        datasets=[settings["dataset_name"]] if "dataset_commit" in results else _listed(facts.get("datasets")) or None,
        language=_languages(settings) or None,
        library_name="transformers" if method.trains_whole_model else "peft",
        license=settings.get("license"),
        model_name=facts["name"],
        pipeline_tag=pipeline,
        tags=list(dict.fromkeys(filter(None, [*tags, *_listed(facts.get("tags"))]))),
        eval_results=_eval_results(results, settings, task) or None,
    )


def _languages(settings: dict[str, Any]) -> list[str]:
    """Return the languages' codes without their regions, each once."""
    languages = []
    for code in chain.from_iterable(_listed(settings.get(key)) for key in ("source_lang", "target_lang", "lang")):
        code = re.split("[-_]", code)[0]
        if code and code not in languages:
            languages.append(code)
    return languages


def _listed(value: str | list[str] | None) -> list[str]:
    """Return one text, several or none as a list."""
    return [value] if isinstance(value, str) else value or []


def _eval_results(results: dict[str, Any], settings: dict[str, Any], task: str) -> list[EvalResult]:
    """Return the scores of what was trained, for the hub's model-index."""
    systems = scores_of_systems(results)
    systems.pop(HARD_PROMPT, None)
    scores = next(iter(systems.values()), Scores({}, {}))
    data = _evaluated_data(results, settings)
    language = settings.get("lang") or settings.get("target_lang")
    eval_results = []
    for metric, value in scores.values.items():
        args = {"language": language} if language else {}
        signature = scores.signatures.get(f"{metric}_signature")
        if signature:
            args["signature"] = signature
        eval_results.append(
            EvalResult(
                task_type=task,
                metric_type=HUB_METRICS.get(metric, metric),
                metric_name=metric,
                metric_value=value,
                metric_args=args | results["decoding"],
                **data,
            )
        )
    return eval_results


def _evaluated_data(results: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of EvalResult that name the evaluated rows."""
    split = results.get("split")
    read = read_split(settings, split)
    file = settings.get(f"{read}_file")
    if file:
        path = Path(file)
        return {"dataset_type": file_format(path), "dataset_name": path.name, "dataset_split": split}
    return {
        "dataset_type": settings.get("dataset_name"),
        "dataset_name": settings.get("dataset_name"),
        "dataset_config": settings.get("dataset_config_name"),
        "dataset_split": settings.get(f"{read}_split"),
        "dataset_revision": results.get("dataset_commit"),
    }


def _changed(settings: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the settings of prompt and training that differ from their defaults."""
    defaults: dict[str, Any] = {}
    for block in (ModelArguments, PromptArguments, PromptTuningArguments):
        defaults |= _defaults(block)
    defaults["learning_rate"] = find_method(method).default_learning_rate(settings)
    hidden = SHOWN_ELSEWHERE | _defaults(DataArguments).keys()
    return {key: value for key, value in settings.items() if key not in hidden and value != defaults.get(key)}


def _defaults(block: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(block)}


def _predictions(example: dict[str, Any]) -> dict[str, str]:
    """Return the predictions of the example row by the label of what made them."""
    return {label: example[name] for name, label in systems_in(example).items()}


def _method(name: str) -> Method:
    """Return the row of a method; the description of a method that is not ours quotes its name."""
    method = find_method(name)
    if method in METHODS.values():
        return method
    return dataclasses.replace(method, card_description=f"PEFT's {plain_words(method.name)}")


def _literal(value: Any) -> str:
    """Return a value as Python writes it."""
    return pprint.pformat(value, width=110, sort_dicts=False)
