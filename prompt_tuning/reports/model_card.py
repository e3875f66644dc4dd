"""The model card of a run: the facts of its folder, and the text that they alone make, without a network.

What is not known is left out. Texts of the user's (rows, predictions, templates, names) stand in fences that they
cannot close.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import pprint
import re
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from peft import PeftModel
from transformers import Trainer

from prompt_tuning.arguments.arguments import LOCAL_FORMATS, DataArguments, ModelArguments, PromptArguments
from prompt_tuning.arguments.methods import find_method
from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.errors import DataError
from prompt_tuning.hub.upload import public, public_name
from prompt_tuning.metrics.scores import Scores
from prompt_tuning.reports.facts import machine_facts, training_facts
from prompt_tuning.reports.summary import (
    NAMES,
    answers_text,
    decoding_text,
    leakage_text,
    logged_steps,
    read_results,
)
from prompt_tuning.support.files import atomic_write, read_json, write_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.tables import markdown_table
from prompt_tuning.support.yaml_files import read_yaml, to_yaml

logger = logging.getLogger(__name__)

STEPS_SHOWN = 20
LINE_END = "\ue002"  # of a fenced text, while blank lines between sections are counted
STARTS = {
    "random": "noise at the embeddings' own scale",
    "vocab": "tokens sampled from the vocabulary",
    "frequent": "the most frequent tokens of the targets",
    "text": "a text",
    "class_labels": "the class labels",
    "demonstrations": "training rows as the template writes them",
    "template": "what every row opens with",
    "adapter": "another adapter",
}
# Of a training without a recipe.
HYPERPARAMETERS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "bf16", "fp16",
)  # fmt: skip
# The metrics that are known by other names on the hub.
HUB_METRICS = {"bleu": "sacrebleu", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge", "rougeLsum": "rouge"}
# Settings that the card tells elsewhere, or that change nothing of what is trained.
TOLD = {
    "model_name_or_path", "template", "method", "init", "init_text", "init_labels", "init_adapter", "adapter",
    "num_virtual_tokens", "license", "metrics", "output_dir", "seed", "disable_tqdm", "report_to", "use_cpu",
}  # fmt: skip


def write_card(source: Path, output: Path | None = None, own_example: dict[str, Any] | None = None) -> Path:
    """Write the card of a run and return its path.

    Args:
        source: a run's folder, or the facts of a card as a JSON file.
        output: the card, or its facts where the name ends in .json. Default: README.md in the folder.
        own_example: `example` and `own_example` for results.json: a row that stands in place of one of the data. If
            the card is the run's own, results.json keeps it, so that later cards and `push` have it too.

    Raises:
        DataError: the folder holds no finished training of one task.
    """
    if source.suffix == ".json":
        facts = _read_facts(source)
        output = output or source.with_suffix(".md")
    else:
        facts = card_facts(source, own_example)
        if own_example and output is None:
            write_json(source / "results.json", read_results(source) | own_example)
        output = output or source / "README.md"
    if output.suffix == ".json":
        write_json(output, facts)
    else:
        with atomic_write(output) as file:
            file.write(card_text(facts))
    return output


def card_facts(folder: Path, own_example: dict[str, Any] | None = None) -> dict[str, Any]:
    """All that a card says, from a run's folder; no path of this machine is in it.

    Raises:
        DataError: the folder holds no finished training of one task.
    """
    results = read_results(folder) | (own_example or {})
    if "tasks" in results or "method" not in results:
        which = f"several tasks: name {folder / next(iter(results['tasks']))}" if "tasks" in results else "no training"
        raise DataError(f"{folder} is a run of {which}; a card is of what one task trained")
    facts = {"name": folder.absolute().name, "folder": public_name(str(folder))}
    facts["results"] = public(results)
    predictions = folder / "predictions" / f"{results['split']}.jsonl"
    needed = (folder / "recipe.yaml", folder / "template.yaml", predictions)
    if missing := [file for file in needed if not file.is_file() or not file.stat().st_size]:
        raise DataError(f"{missing[0]}: no such file, or nothing in it; a card is of all that train writes")
    facts["settings"] = public(read_yaml(folder / "recipe.yaml", DataError))
    facts["template"] = read_yaml(folder / "template.yaml", DataError)
    if (log := folder / "log_history.json").is_file():
        facts["log_history"] = read_json(log)
    if loader := _plain_loader(folder):
        facts["loader"] = loader
    if own := facts["results"].pop("own_example", None):
        return facts | {"example": own, "own_example": True}
    with predictions.open(encoding="utf-8") as rows:
        facts["example"] = json.loads(next(rows))
    return facts


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
    try:
        facts = _facts_of_written_card(RunFolder(folder))
    except DataError:  # something that a card needs is gone, for example the predictions
        return None
    if facts is None:
        logger.warning(
            "%s: not the card of this run's facts (edited, or of another version), so it is uploaded as it is. "
            "`prompt-tuning card %s` writes it again.",
            RunFolder(folder).card,
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
    trained_in = facts["settings"].get("output_dir", "")
    if not run.card.is_file():
        return facts
    text = run.card.read_bytes().decode("utf-8", "replace")  # read_text would change a carriage return
    # The folder may have been moved after its card was written.
    for names in ({}, {"folder": trained_in, "name": Path(trained_in).name}):
        if text == card_text(facts | names):
            return facts | names
    return None


def _read_facts(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: expected the facts of a card as JSON: {error}") from error
    if not isinstance(facts, dict) or not {"name", "results", "settings"} <= facts.keys():
        raise DataError(
            f"{file}: expected the facts of a card, as `prompt-tuning card RUN --output FILE.json` writes them"
        )
    return facts


def _plain_loader(folder: Path) -> str | None:
    """The class of PEFT or transformers that writes text with what was saved, if a causal model was."""
    if (whole := folder / "config.json").is_file():
        encoder_decoder = read_json(whole).get("is_encoder_decoder")
        return None if encoder_decoder else "AutoModelForCausalLM"
    config = read_json(folder / "adapter_config.json")
    return "AutoPeftModelForCausalLM" if config["task_type"] == "CAUSAL_LM" else None


def trainer_facts(trainer: Trainer, **given: Any) -> dict[str, Any]:
    """What is known of a training that no recipe describes.

    Args:
        given: settings that the trainer cannot know: `lang` and `license`.
    """
    args, model = trainer.args, trainer.model
    adapter = isinstance(model, PeftModel)
    base = (model.get_base_model() if adapter else model).name_or_path
    results = training_facts(trainer) | machine_facts(args) | {"model": base, "seed": args.seed}
    results["method"] = model.active_peft_config.peft_type.value.lower() if adapter else "full"
    if base and not Path(base).is_dir():
        results["base_model"] = base
    return {
        "name": Path(args.output_dir).absolute().name,
        "results": public(results),
        "settings": {name: args.to_dict()[name] for name in HYPERPARAMETERS} | given,
        "log_history": trainer.state.log_history,
    }


@functools.cache
def _card_template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "code": _code,
        "fence": _fence,
        "literal": _literal,
        "quote": shlex.quote,
        "yaml": to_yaml,
    }
    environment.globals["table"] = markdown_table
    return environment.get_template("model_card_template.md")


def card_text(facts: dict[str, Any]) -> str:
    """The card of these facts, Markdown behind YAML."""
    results, settings = facts["results"], facts["settings"]
    scored = {label: results[name] for name, label in NAMES.items() if name in results}
    scores = Scores.from_json(next(iter(scored.values()), {}))
    metrics = list(scores.values)
    method = find_method(results["method"])
    steps = _steps(facts)
    text = _card_template().render(
        facts,
        method=method,
        start=STARTS.get(settings.get("init", "")),
        metrics=metrics,
        signatures=list(scores.signatures.values()),
        results_table=(["", *metrics], [[label, *(each[key] for key in metrics)] for label, each in scored.items()]),
        decoding=decoding_text(results["decoding"]) if metrics else None,
        answers=answers_text(results["answers"]) if "answers" in results else [],
        predicted={label: facts["example"][name] for name, label in NAMES.items() if name in facts.get("example", ())},
        data_table=_data_table(results, settings) if metrics else None,
        changed=_changed(settings, results["method"]),
        steps_table=_steps_table(steps, _saved_step(results)),
        steps=len(steps),
    )
    text = re.sub(r"\n{3,}(?=#|<details>)", "\n\n", text).replace(LINE_END, "\n")
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n{text.strip()}\n"


def _metadata(facts: dict[str, Any]) -> ModelCardData:
    results, settings = facts["results"], facts["settings"]
    task, method = results.get("task", "").replace("_", "-"), find_method(results["method"])
    tags = ["prompt-tuning", method.name, task] if method.has_prompt else [method.name, task]
    codes = [settings.get(key) for key in ("source_lang", "target_lang", "lang")]
    languages = list(dict.fromkeys(re.split("[-_]", code)[0] for code in codes if code))
    pipeline = task if task in ("summarization", "translation") else "text-generation"
    return ModelCardData(
        base_model=results.get("base_model"),
        datasets=[settings["dataset_name"]] if "dataset_commit" in results else None,
        language=languages or None,
        library_name="transformers" if method.trains_whole_model else "peft",
        license=settings.get("license"),
        model_name=facts["name"],
        pipeline_tag=pipeline,
        tags=[tag.replace("_", "-") for tag in tags if tag],
        eval_results=_eval_results(results, settings, task) or None,
    )


def _eval_results(results: dict[str, Any], settings: dict[str, Any], task: str) -> list[EvalResult]:
    """The tuned scores, for the hub's model-index."""
    tuned = next((results[name] for name in NAMES if name in results and name != "hard_prompt"), {})
    scores = Scores.from_json(tuned)
    split = results.get("split")
    if file := settings.get(f"{split}_file"):
        data = {"dataset_type": LOCAL_FORMATS[Path(file).suffix], "dataset_name": Path(file).name}
        data |= {"dataset_split": split}
    else:
        data = {"dataset_type": settings.get("dataset_name"), "dataset_name": settings.get("dataset_name")}
        data |= {
            "dataset_config": settings.get("dataset_config_name"),
            "dataset_split": settings.get(f"{split}_split"),
        }
        data |= {"dataset_revision": results.get("dataset_commit")}
    language = settings.get("lang") or settings.get("target_lang")
    eval_results = []
    for metric, value in scores.values.items():
        args = {"language": language, "signature": scores.signatures.get(f"{metric}_signature")}
        args = {name: arg for name, arg in args.items() if arg}
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


def _changed(settings: dict[str, Any], method: str) -> dict[str, Any]:
    """The settings of prompt and training that differ from their defaults."""
    blocks = (ModelArguments, PromptArguments, PromptTuningArguments)
    defaults = {field.name: field.default for block in blocks for field in dataclasses.fields(block)}
    projected = settings.get("prefix_projection", False)
    defaults["learning_rate"] = find_method(method).default_learning_rate(network=projected)
    told = TOLD | {field.name for field in dataclasses.fields(DataArguments)}
    return {key: value for key, value in settings.items() if key not in told and value != defaults[key]}


def _data_table(results: dict[str, Any], settings: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for split, size in results["splits"].items():
        where = _code(settings.get(f"{split}_file") or settings[f"{split}_split"])
        count = f"{size['rows']:,}{' read of a stream' if split == 'train' and 'stream' in results else ''}"
        leaked = leakage_text(results["leakage"][split]) if split in results["leakage"] else ""
        rows.append([where, count, size["longest"], size["cut_rows"], leaked])
    return ["", "rows", "longest row, tokens", "cut to fit", "rows that also stand elsewhere"], rows


def _saved_step(results: dict[str, Any]) -> int:
    best = results.get("best_checkpoint")
    return int(best.rpartition("-")[2]) if best else results["train_steps"]


def _steps(facts: dict[str, Any]) -> dict[int, dict[str, float]]:
    """What was logged by step, and the step whose weights were saved; nothing if nothing was logged."""
    steps = logged_steps(facts.get("log_history", []))
    return dict(sorted(({_saved_step(facts["results"]): {}} | steps).items())) if steps else {}


def _steps_table(steps: dict[int, dict[str, float]], saved: int) -> tuple[list[str], list[list[Any]]] | None:
    """Some STEPS_SHOWN of the steps at most, evenly spaced, with the saved one."""
    if not steps:
        return None
    logged = {key for values in steps.values() for key in values}
    named = {"loss": "training loss", "eval_loss": "validation loss"}
    named |= {key: f"validation {key.removeprefix('eval_')}" for key in sorted(logged) if key.startswith("eval_")}
    keys = [key for key in named if key in logged]
    every = math.ceil(len(steps) / STEPS_SHOWN)
    rows = [
        [
            f"**{step}, saved**" if step == saved else step,
            *(f"{values[key]:.4g}" if key in values else "" for key in keys),
        ]
        for number, (step, values) in enumerate(steps.items(), 1)
        if number % every == 0 or step == saved
    ]
    return ["step", *(named[key] for key in keys)], rows


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _fence(text: str, language: str = "text") -> str:
    """A fenced block; nothing in the text ends it."""
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}".replace("\n", LINE_END)


def _code(text: Any) -> str:
    """Inline code on one line, whatever is in it."""
    line = " ".join(str(text).split())
    ticks = "`" * (_longest_ticks(line) + 1)
    pad = " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _literal(value: Any) -> str:
    """A value as Python writes it."""
    return pprint.pformat(value, width=110, sort_dicts=False)
