"""Train, evaluate, save: the whole data flow in its order."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from peft import PeftModel
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from prompt_tuning.arguments import MULTITASK
from prompt_tuning.checkpoints import remove_partial
from prompt_tuning.config import Recipe
from prompt_tuning.distillation import teacher_states
from prompt_tuning.errors import HubError, RecipeError
from prompt_tuning.evaluation import describe, evaluate_and_write, trainer_for, tuned_name, write_pages
from prompt_tuning.facts import training_facts
from prompt_tuning.files import whole_file, whole_folder, write_json
from prompt_tuning.hub import create_repository, push
from prompt_tuning.initialization import frequent_ids, initial_prefix, initial_prompt
from prompt_tuning.memory import IN_TRAINING, memory_told
from prompt_tuning.model import add_adapter, add_soft_prompt, load_adapter, load_base_model, prompt_config
from prompt_tuning.prepare import Prepared, check_splits, prepare
from prompt_tuning.processes import check_split, whole_weights
from prompt_tuning.stopping import EarlyStopping, stopping_on_signals
from prompt_tuning.streaming import StreamReport
from prompt_tuning.template import Template
from prompt_tuning.trainer import PromptTuningTrainer
from prompt_tuning.ways import EMBEDDED_METHODS

logger = logging.getLogger(__name__)

# Of other values of these a checkpoint's weights do not fit, or mean something else.
OF_THE_MODEL = (
    "method", "num_virtual_tokens", "num_ranks", "tasks", "residual", "encoder_hidden_size", "prefix_projection",
    "encoder_reparameterization_type", "prefix_encoder", "prefix_decoder", "prefix_cross", "lora_r", "lora_alpha",
    "lora_target_modules",
)  # fmt: skip


def train(recipe: Recipe, evaluate_hard_prompt: bool = True, base: PreTrainedModel | None = None) -> Path:
    """Run a recipe.

    Args:
        evaluate_hard_prompt: also without what was trained; False where another run of the same template has done so.
        base: the recipe's frozen model, where it is in memory already; the run may add to it and hook into it.

    Returns:
        The run's folder: the adapter as PEFT saves it, recipe.yaml, template.yaml, results.json, log_history.json,
        predictions/, report.html, README.md and the checkpoints.
    """
    if recipe.prompt.method == MULTITASK:
        from prompt_tuning.multitask import train_tasks  # which takes its helpers from here

        return train_tasks(recipe, evaluate_hard_prompt)
    check_split(recipe)
    folder = Path(recipe.training.output_dir)
    checkpoint = checkpoint_to_resume(recipe, folder)
    prepared = prepare(
        recipe, ("train", "validation", "test") if recipe.prompt.method != "none" else ("validation", "test")
    )
    check_splits(prepared)
    split = prepared.last_split
    if recipe.training.push_to_hub and PartialState().is_main_process:
        create_repository(_repository(recipe), recipe.training.hub_private_repo)  # a refusal now, not after training

    set_seed(recipe.training.seed)
    base = base or load_base_model(recipe.model, prepared.config)
    facts, model = {}, None
    if recipe.prompt.method != "none":
        model = _with_trainable(base, prepared)
        facts = _train(model, prepared, checkpoint, folder)
    elif PartialState().is_main_process:
        save_recipe(recipe, folder, prepared.template)
    models = _evaluated(model, base, prepared, evaluate_hard_prompt)
    evaluate_and_write(models, prepared, split, folder, describe(prepared, split) | facts)
    write_pages(folder, *(["card"] if model is not None else []), "report")
    if recipe.training.push_to_hub and PartialState().is_main_process:
        _push(recipe, folder)
    PartialState().wait_for_everyone()  # until the folder is whole
    return folder


def _evaluated(
    model: PeftModel | PreTrainedModel | None, base: PreTrainedModel, prepared: Prepared, evaluate_hard_prompt: bool
) -> Iterator[tuple[str, PeftModel | PreTrainedModel]]:
    """By its name in results.json what was trained, if anything was, and the base model."""
    method = prepared.recipe.prompt.method
    if model is not None:
        yield tuned_name(method), model
    if evaluate_hard_prompt and method == "full":
        base = load_base_model(prepared.recipe.model, prepared.config)
    split = isinstance(model, FSDPModule) and isinstance(model, PeftModel)
    if evaluate_hard_prompt:
        # A prompt changes nothing of the base model, and LoRA's layers can be switched off.
        with model.disable_adapter() if method == "lora" or split else nullcontext():
            yield "hard_prompt", model if split else base


def _repository(recipe: Recipe) -> str:
    """Where a run is pushed to, as Trainer names it."""
    return recipe.training.hub_model_id or Path(recipe.training.output_dir).absolute().name


def _push(recipe: Recipe, folder: Path) -> None:
    args, repo_id = recipe.training, _repository(recipe)
    try:
        url = push(folder, repo_id, private=args.hub_private_repo, revision=args.hub_revision)
    except HubError as error:
        again = f"{folder} is complete; `prompt-tuning push {folder} --repo_id {repo_id}` pushes it again"
        raise HubError(f"{error}\n{again}") from error
    logger.info("pushed: %s", url)


def _with_trainable(base: PreTrainedModel, prepared: Prepared) -> PeftModel | PreTrainedModel:
    """The base model with what the recipe trains."""
    args, length, seed = prepared.recipe.prompt, prepared.num_virtual_tokens, prepared.recipe.training.seed
    if args.adapter:
        return load_adapter(base, args.adapter, is_trainable=True)
    if args.method == "full":
        return base.requires_grad_(True)
    config = prompt_config(base, length, args, prepared.init_ids or ())
    if args.method == "lora":
        return add_adapter(base, config)
    initial, ids = None, prepared.init_ids
    if args.init == "frequent":
        ids = frequent_ids(prepared.encoded["train"]["labels"], prepared.tokenizer, length)
    if args.method == "prompt_tuning":
        initial = initial_prompt(base, prepared.tokenizer, args, length, seed, ids)
    elif args.method == "prefix_tuning" and not (args.prefix_projection or base.config.is_encoder_decoder):
        initial = initial_prefix(base, prepared.tokenizer, args, length, seed, ids)
    residual = args.encoder_hidden_size or base.config.get_text_config().hidden_size if args.residual else None
    return add_soft_prompt(base, config, initial, residual)


def _train(
    model: PeftModel | PreTrainedModel, prepared: Prepared, checkpoint: str | None, folder: Path
) -> dict[str, Any]:
    """Train and save; returns the facts for results.json."""
    initial = _prompt_of(model)
    started = time.perf_counter()
    trainer = trainer_for(model, prepared, callbacks(prepared.recipe))
    if prepared.taught is not None:
        base, args = model.get_base_model(), prepared.recipe.training  # which the trainer put on its device
        with model.eagerly():
            trainer.teacher = teacher_states(
                base, prepared.taught, args.per_device_eval_batch_tokens, args.disable_tqdm
            )
        logger.info("the teacher read %s rows in %.0f s", len(trainer.teacher), time.perf_counter() - started)
    facts = fit(trainer, prepared.recipe, checkpoint)
    report = prepared.reports["train"]
    if isinstance(report, StreamReport):
        logger.info("train: %s", report)
        facts["stream"] = asdict(report)  # of rows read, which is more than were trained on
    else:
        facts["train_rows"] = report.rows
    facts["train_seconds"] = round(time.perf_counter() - started, 1)  # the teacher's too
    tokenizer = prepared.tokenizer if facts["method"] == "full" else None
    with whole_weights(model, trainer.accelerator) as state_dict:
        if trainer.is_world_process_zero():
            save_adapter(model, folder, initial, tokenizer, state_dict)
    if trainer.is_world_process_zero():
        save_recipe(prepared.recipe, folder, prepared.template)
        write_json(folder / "log_history.json", trainer.state.log_history)
    return facts


def fit(trainer: PromptTuningTrainer, recipe: Recipe, checkpoint: str | None) -> dict[str, Any]:
    """Train; returns the facts for results.json.

    Raises:
        Stopped: by SIGINT or SIGTERM, once a checkpoint is saved.
    """
    facts = training_facts(trainer)
    trainable, total = facts["trainable_parameters"], facts["total_parameters"]
    logger.info("training %s of %s parameters (%.3f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)
    started = time.perf_counter()
    if trainer.is_world_process_zero():
        remove_partial(Path(recipe.training.output_dir))
        save_recipe(recipe, Path(recipe.training.output_dir))  # by which a run that stops is known
    with memory_told(IN_TRAINING), stopping_on_signals(trainer.accelerator) as callback:
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=checkpoint)
    seconds = round(time.perf_counter() - started, 1)
    facts = {"method": recipe.prompt.method, "train_seconds": seconds}
    if checkpoint:
        facts["resumed_from"] = Path(checkpoint).name  # the seconds are those since then
    return facts | training_facts(trainer)


def checkpoint_to_resume(recipe: Recipe, folder: Path) -> str | None:
    """What to resume from; nothing that an earlier run left is written over unasked."""
    wanted = recipe.training.resume_from_checkpoint
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if wanted and wanted.lower() in ("true", "auto"):
        wanted = wanted.lower()
    elif wanted:
        if not Path(wanted).is_dir():
            raise RecipeError(f"resume_from_checkpoint {wanted}: no such folder; true and auto take the last one")
        _check_resumable(recipe, wanted)
        return wanted
    if last is None and wanted == "true":
        raise RecipeError(f"resume_from_checkpoint: no checkpoint in {folder}; `auto` starts from the beginning then")
    if (last and not wanted) or (last is None and (folder / "results.json").exists()):
        raise RecipeError(
            f"{folder} holds {Path(last).name if last else 'a finished run'} already; "
            f"{'continue it with --resume_from_checkpoint true, ' if last else ''}name another --output_dir, "
            "or remove the folder"
        )
    if last:
        _check_resumable(recipe, last)
    return last


def _check_resumable(recipe: Recipe, checkpoint: str) -> None:
    """Warn of settings that differ from those of the run that saved a checkpoint.

    Raises:
        RecipeError: with them the checkpoint is of another model, or it holds no optimiser's state.
    """
    if not Path(checkpoint, TRAINER_STATE_NAME).is_file():
        last = get_last_checkpoint(checkpoint)
        raise RecipeError(
            f"resume_from_checkpoint {checkpoint}: no checkpoint; "
            f"{f'name {last}, which is in it' if last else 'name a folder checkpoint-N, or true for the last one'}"
        )
    if not any(Path(checkpoint).glob("optimizer*")):
        raise RecipeError(
            f"{checkpoint}: no state of the optimiser there, which save_only_model leaves out, so that no training "
            "can go on from it; name another --output_dir"
        )
    run = Path(checkpoint).parent
    changed = recipe.changed_since(run) if (run / "recipe.yaml").is_file() else []
    if of_model := [name for name in changed if name in OF_THE_MODEL]:
        raise RecipeError(f"{checkpoint} is of a run with another {' and '.join(of_model)}; name another --output_dir")
    if changed:
        names = ", ".join(changed)
        logger.warning("%s goes on with other settings than the run in its folder had: %s", checkpoint, names)


def callbacks(recipe: Recipe) -> list[EarlyStopping]:
    if recipe.prompt.early_stopping_patience is None:
        return []
    return [EarlyStopping(recipe.prompt.early_stopping_patience, recipe.prompt.early_stopping_threshold)]


def _prompt_of(model: PeftModel | PreTrainedModel) -> torch.Tensor | None:
    """`[P, H]` embeddings of a soft prompt; None for other methods."""
    if not isinstance(model, PeftModel) or model.active_peft_config.peft_type.value not in EMBEDDED_METHODS:
        return None
    return model.get_prompt_embedding_to_save("default")


def save_adapter(
    model: PeftModel | PreTrainedModel,
    folder: Path,
    initial: torch.Tensor | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """The adapter, and what `inspect` compares it with; a whole model with its tokenizer.

    Args:
        state_dict: as `whole_weights` gives it.
    """
    with whole_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=state_dict)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's placeholder card; ours follows the evaluation
        if initial is not None:
            save_file({"initial_prompt": initial}, partial / "initial_prompt.safetensors")
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def save_recipe(recipe: Recipe, folder: Path, template: Template | None = None, comment: str = "") -> None:
    """What `predict` needs to build the same prompt again."""
    with whole_file(folder / "recipe.yaml") as file:
        file.write(comment)
        yaml.safe_dump(recipe.resolved(), file, sort_keys=False, allow_unicode=True, width=120)
    if template:
        with whole_file(folder / "template.yaml") as file:
            file.write(template.to_yaml())
