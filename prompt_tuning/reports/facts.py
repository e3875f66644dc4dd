"""What a run knows of itself, for results.json and the model card: where data and model are from, size, machine."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from prompt_tuning.engine.dispatch import has_prompt

PACKAGES = ("prompt_tuning", "transformers", "peft", "accelerate", "datasets", "torch")


def origin_facts(model_name_or_path: str, dataset_name: str | None, rows: Dataset) -> dict[str, str]:
    """Return the base model's hub id and the data set's commit, as far as they come from the hub."""
    facts = {}
    if not Path(model_name_or_path).is_dir():
        facts["base_model"] = model_name_or_path
    commit = dataset_commit(rows) if dataset_name else None
    if commit:
        facts["dataset_commit"] = commit
    return facts


def dataset_commit(rows: Dataset) -> str | None:
    """The commit of a hub data set, by which `datasets` names the folder of its cache; None if it is not there."""
    folder = Path(rows.cache_files[0]["filename"]).parent.name if rows.cache_files else ""
    return folder if re.fullmatch("[0-9a-f]{40}", folder) else None


def machine_facts(args: TrainingArguments) -> dict[str, Any]:
    """Versions and hardware, and the number of processes if there are several."""
    if args.device.type == "cuda":
        hardware = torch.cuda.get_device_name(args.device)
    elif args.device.type == "cpu":
        threads = torch.get_num_threads()
        hardware = f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"
    else:
        hardware = args.device.type
    facts: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}, "hardware": hardware}
    return facts | ({"processes": args.world_size} if args.world_size > 1 else {})


def training_facts(trainer: Trainer) -> dict[str, Any]:
    """What was trained: steps, numbers, the length of the prompt, and the best checkpoint, if one was looked for."""
    model = trainer.model
    if isinstance(model, PeftModel):
        trainable, total = model.get_nb_trainable_parameters()  # which knows how many numbers four-bit weights pack
    else:
        trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    facts: dict[str, Any] = {
        "train_steps": trainer.state.global_step,
        "trainable_parameters": trainable,
        "total_parameters": total,
    }
    if has_prompt(model):
        facts["virtual_tokens"] = model.active_peft_config.num_virtual_tokens
    # Without load_best_model_at_end Trainer looks for one, too, and then saves the last.
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        facts["best_checkpoint"] = Path(trainer.state.best_model_checkpoint).name
    return facts
