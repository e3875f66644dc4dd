"""The facts of a run, for results.json and the model card: origin of data and model, sizes, machine, versions."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import Trainer, TrainingArguments

from prompt_tuning import __version__
from prompt_tuning.arguments.model_args import API_PREFIX
from prompt_tuning.engine.dispatch import has_prompt
from prompt_tuning.engine.trained_config import SAVED_TYPE, TrainedTokensConfig
from prompt_tuning.errors import DataError
from prompt_tuning.hub.upload import public, public_name
from prompt_tuning.reports.run_files import (
    read_log_history,
    read_predictions,
    read_settings,
    read_trained,
)
from prompt_tuning.reports.run_types import CardSettings
from prompt_tuning.support.files import read_json
from prompt_tuning.support.json_types import Place, check_value
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted
from prompt_tuning.support.yaml_files import read_yaml

PACKAGES = ("transformers", "peft", "accelerate", "datasets", "torch")
# The settings on the card of a training without a recipe.
HYPERPARAMETERS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "bf16", "fp16",
)  # fmt: skip


def origin_facts(model_name_or_path: str, dataset_name: str | None, rows: Dataset) -> dict[str, str]:
    """Return the base model's hub id and the data set's commit, if they come from the hub."""
    facts = {}
    if not model_name_or_path.startswith(API_PREFIX) and not Path(model_name_or_path).is_dir():
        facts["base_model"] = model_name_or_path
    commit = dataset_commit(rows) if dataset_name else None
    if commit:
        facts["dataset_commit"] = commit
    return facts


def dataset_commit(rows: Dataset) -> str | None:
    """Return the commit of a hub data set, None if it is unknown.

    `datasets` names the folder of its cache by the commit.
    """
    folder = Path(rows.cache_files[0]["filename"]).parent.name if rows.cache_files else ""
    return folder if re.fullmatch("[0-9a-f]{40}", folder) else None


def machine_facts(args: TrainingArguments) -> dict[str, Any]:
    """Return the versions, the hardware, and the number of processes if there are several."""
    if args.device.type == "cuda":
        hardware = torch.cuda.get_device_name(args.device)
    elif args.device.type == "cpu":
        threads = torch.get_num_threads()
        hardware = f"CPU ({platform.machine()}), {counted(threads, 'thread')}"
    else:
        hardware = args.device.type
    versions = {"prompt_tuning": __version__} | {name: version(name) for name in PACKAGES}
    facts: dict[str, Any] = {"versions": versions, "hardware": hardware}
    if args.world_size > 1:
        facts["processes"] = args.world_size
    return facts


def training_facts(trainer: Trainer) -> dict[str, Any]:
    """Return what was trained: steps, parameters, virtual tokens, and the best checkpoint if it was loaded."""
    model = trainer.model
    if isinstance(model, PeftModel):
        # PEFT counts the parameters that are packed in four-bit weights.
        trainable, total = model.get_nb_trainable_parameters()
    else:
        trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    facts: dict[str, Any] = {
        "train_steps": trainer.state.global_step,
        "trainable_parameters": trainable,
        "total_parameters": total,
    }
    if has_prompt(model):
        facts |= _prompt_facts(model.active_peft_config)
    # Without load_best_model_at_end Trainer also notes the best checkpoint, but saves the last weights.
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        facts["best_checkpoint"] = Path(trainer.state.best_model_checkpoint).name
        if trainer.state.best_metric is not None:
            metric = str(trainer.args.metric_for_best_model).removeprefix("eval_")
            facts["best_metric"] = {metric: round(float(trainer.state.best_metric), 4)}
    return facts


def _prompt_facts(config: PeftConfig) -> dict[str, Any]:
    """Return the numbers of virtual tokens and of trained tokens inside the text, and whether they have vectors."""
    is_trained = isinstance(config, TrainedTokensConfig)
    facts = {
        "virtual_tokens": config.num_virtual_tokens,
        "text_tokens": len(config.text_token_ids) if is_trained else 0,
        "layer_vectors": is_trained and config.layer_vectors,
    }
    return {name: value for name, value in facts.items() if value}


def trainer_facts(trainer: Trainer) -> dict[str, Any]:
    """Return the facts of a card for a training without a recipe."""
    args, model = trainer.args, trainer.model
    adapter = isinstance(model, PeftModel)
    base = (model.get_base_model() if adapter else model).name_or_path
    results = training_facts(trainer) | machine_facts(args) | {"model": base, "seed": args.seed}
    results["method"] = model.active_peft_config.peft_type.value.lower() if adapter else "full"
    if base and not Path(base).is_dir():
        results["base_model"] = base
    settings = args.to_dict()
    return {
        "name": Path(args.output_dir).absolute().name,
        "results": public(results),
        "settings": {name: settings[name] for name in HYPERPARAMETERS},
        "log_history": trainer.state.log_history,
    }


def card_facts(folder: Path, own_example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return all that a card says. It has no path of this machine.

    Args:
        folder: the run's folder.
        own_example: `example` and `own_example`, which replace those of results.json.

    Raises:
        DataError: the folder holds no finished training of one task.
    """
    run = RunFolder(folder)
    results = read_trained(folder) | (own_example or {})
    predictions = run.predictions(results["split"])
    for file in (run.recipe, run.template, predictions):
        if not file.is_file() or not file.stat().st_size:
            raise DataError(f"{file}: no such file, or an empty one. A card needs all files that train writes.")
    run.check_links(run.results, run.recipe, run.template, predictions, run.log_history)
    settings = read_settings(run)
    check_value(settings, CardSettings, Place(str(run.recipe)))
    facts = {
        "name": folder.absolute().name,
        "folder": public_name(str(folder)),
        "results": public(results),
        "settings": public(settings),
        "template": _read_template(run.template),
    }
    if run.log_history.is_file():
        facts["log_history"] = read_log_history(run)
    facts |= _other_programs(run)
    example = facts["results"].pop("own_example", None)
    if example:
        return facts | {"example": example, "own_example": True}
    rows = read_predictions(run, results)
    row = next((row for row in rows if row["row"] == results.get("example_row")), rows[0])
    for name in ("columns", "scores"):
        row.pop(name, None)
    return facts | {"example": row}


def _other_programs(run: RunFolder) -> dict[str, Any]:
    """Return what generates text with the saved files without this package, as the facts of a card.

    `loader` is the class of PEFT or transformers that loads them. `exported` says that PEFT does not load them, and
    `export` makes a folder for any server.
    """
    if run.model_config.is_file():
        encoder_decoder = read_json(run.model_config, dict[str, Any]).get("is_encoder_decoder")
        return {} if encoder_decoder else {"loader": "AutoModelForCausalLM"}
    if not run.adapter_config.is_file():
        raise DataError(f"{run.adapter_config}: no such file. A card needs all files that train writes.")
    config = read_json(run.adapter_config, dict[str, Any])
    if config.get("task_type") != "CAUSAL_LM":
        return {}
    if config.get("peft_type") != SAVED_TYPE:
        return {"loader": "AutoPeftModelForCausalLM"}
    return {} if config.get("layer_vectors") else {"exported": True}


def _read_template(file: Path) -> dict[str, Any]:
    """Return the fields of template.yaml."""
    return read_yaml(file, DataError, dict[str, Any])
