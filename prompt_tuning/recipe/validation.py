"""What a recipe must not say: settings that exclude each other, miss each other, or have no effect."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.arguments.arguments import LOCAL_FORMATS, TASK_SETTINGS
from prompt_tuning.arguments.methods import METHODS, methods_of_setting
from prompt_tuning.hub.download import is_hub_id

if TYPE_CHECKING:
    from prompt_tuning.recipe.recipe import Recipe

# Settings that are at least 1 where they are given.
POSITIVE = (
    "num_virtual_tokens", "init_demonstrations", "lora_r", "num_ranks", "encoder_hidden_size", "max_source_tokens",
    "max_teacher_tokens", "max_target_tokens", "max_train_samples", "buffer_size", "max_eval_samples",
    "max_predict_samples", "per_device_train_batch_size", "per_device_eval_batch_size",
    "per_device_eval_batch_tokens", "gradient_accumulation_steps", "generation_max_length", "generation_num_beams",
    "early_stopping_patience", "preprocessing_num_workers",
)  # fmt: skip


def validation_errors(recipe: Recipe) -> list[str]:
    """All that is wrong with the recipe's settings, a line each; reads no row and no model."""
    problems = [] if recipe.model.model_name_or_path else ["model_name_or_path is missing"]
    several = METHODS[recipe.prompt.method].trains_several_tasks
    problems += _multitask_contradictions(recipe) if several else _task_contradictions(recipe)
    problems += _prompt_contradictions(recipe) + _precision_contradictions(recipe)
    problems += _range_contradictions(recipe)
    problems += _training_contradictions(recipe) + _hub_contradictions(recipe) + _stream_contradictions(recipe)
    return problems + _without_effect(recipe)


def _training_contradictions(recipe: Recipe) -> list[str]:
    """Settings of Trainer that nothing here could be trained or scored with."""
    prompt, training, problems = recipe.prompt, recipe.training, []
    if prompt.early_stopping_patience is not None and not training.load_best_model_at_end:
        problems.append("early_stopping_patience needs load_best_model_at_end: true and an eval_strategy")
    for name, asked in {
        "load_best_model_at_end": training.load_best_model_at_end,
        "save_strategy best": training.save_strategy == "best",
    }.items():
        if asked and training.eval_strategy == "no":
            problems.append(f"{name} needs evaluations to choose by; set eval_strategy: steps or epoch")
    for name in ("predict_with_generate", "remove_unused_columns"):
        if not getattr(training, name):
            problems.append(
                f"{name} is false; evaluation here is by generation, from rows with references: leave it out"
            )
    needed = {"prediction_loss_only": False, "batch_eval_metrics": False, "eval_do_concat_batches": True}
    for name, value in needed.items():
        if getattr(training, name) != value:
            problems.append(f"{name}: {str(not value).lower()} leaves nothing to score at the end; leave it out")
    if training.generation_config is not None:
        problems.append(
            "generation_config would not reach `predict`; set generation_max_length and generation_num_beams, or put "
            "a generation_config.json into the model's folder"
        )
    method = METHODS[prompt.method]
    if training.neftune_noise_alpha and not (method.trains_layers or method.trains_whole_model):
        problems.append(f"neftune_noise_alpha is for methods lora and full, not {prompt.method}; leave it out")
    for name in ("do_train", "do_eval", "do_predict"):
        if name in recipe.explicitly_set:
            problems.append(f"{name} has no effect here: `train` trains and then evaluates; leave it out")
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(training, name):
            problems.append(
                f"{name} would evaluate in other numbers than `predict` computes; set bf16: true or dtype: bfloat16"
            )
    if training.enable_jit_checkpoint:
        problems.append("enable_jit_checkpoint: SIGTERM saves a checkpoint here in any case; leave it out")
    if training.dataloader_persistent_workers and not training.dataloader_num_workers:
        problems.append("dataloader_persistent_workers needs dataloader_num_workers; set it to at least 1")
    if training.deepspeed_plugin is not None and training.deepspeed_plugin.zero_stage == 3:
        problems.append(
            "deepspeed ZeRO-3 splits weights in a way that evaluation and saving are not made for; launch it with "
            "recipes/accelerate/fsdp2.yaml"
        )
    if training.fsdp and training.world_size == 1:
        problems.append(
            "fsdp splits a model over several processes; start them by `accelerate launch`, as "
            "recipes/accelerate/fsdp2.yaml"
        )
    return problems + training.validation_errors()


def _range_contradictions(recipe: Recipe) -> list[str]:
    """Numbers that train nothing, or fail when they are used."""
    data, prompt, training = recipe.data, recipe.prompt, recipe.training
    settings = vars(data) | vars(prompt) | vars(training)
    problems = [
        f"{name} is {settings[name]}; it must be at least 1"
        for name in POSITIVE
        if settings[name] is not None and settings[name] < 1
    ]
    if training.max_steps == 0 or (training.max_steps < 0 and training.num_train_epochs <= 0):
        length = f"max_steps {training.max_steps} and num_train_epochs {training.num_train_epochs:g}"
        problems.append(f"{length} train nothing; set one of them, or method: none for the hard prompt alone")
    if training.seed < 0:
        problems.append(f"seed is {training.seed}; it must be at least 0")
    if not 0 <= prompt.lora_dropout < 1:
        problems.append(f"lora_dropout is {prompt.lora_dropout}; it must be at least 0 and below 1")
    return problems


def _without_effect(recipe: Recipe) -> list[str]:
    """Settings that need another one to do anything, but those at their default, which a run's recipe.yaml has too."""
    data, prompt = recipe.data, recipe.prompt
    method = METHODS[prompt.method]
    network = prompt.residual or prompt.prefix_projection or method.written_by_network or not method.trains
    needs = {
        "max_teacher_tokens": (prompt.teacher_template, "teacher_template"),
        "encoder_hidden_size": (network, "residual, prefix_projection or method: p_tuning"),
        "early_stopping_threshold": (prompt.early_stopping_patience is not None, "early_stopping_patience"),
        "greater_is_better": ("metric_for_best_model" in recipe.explicitly_set, "metric_for_best_model"),
        "data_seed": (recipe.training.train_sampling_strategy == "random", "train_sampling_strategy: random"),
        **dict.fromkeys(
            ("dataset_config_name", "dataset_revision", "train_split", "validation_split", "test_split"),
            (data.dataset_name, "dataset_name"),
        ),
    }
    blocks = (data, prompt, recipe.training)
    defaults = {each.name: getattr(block, each.name) == each.default for block in blocks for each in fields(block)}
    return [
        f"{name} has no effect without {wanted}; leave it out, or set that"
        for name, (met, wanted) in needs.items()
        if name in recipe.explicitly_set and not defaults[name] and not met
    ]


def _precision_contradictions(recipe: Recipe) -> list[str]:
    """What is wrong with the types that are computed in and that weights are kept in."""
    model, problems = recipe.model, []
    if recipe.training.fp16 and recipe.training.device.type == "cpu":
        problems.append("fp16 has no effect on a CPU: accelerate trains in float32; set bf16: true, or leave it out")
    quantization = model.quantization_config if isinstance(model.quantization_config, dict) else {}
    if quantization and METHODS[recipe.prompt.method].trains_whole_model:
        problems.append(
            "quantization_config: method full trains all weights, and quantized weights cannot be trained. Set "
            "method: lora."
        )
    for name in ("load_in_4bit", "load_in_8bit"):
        if not isinstance(quantization.get(name, False), bool):
            problems.append(f"quantization_config: {name} is {quantization[name]!r}. Set true or false.")
    if quantization.get("load_in_4bit") and quantization.get("load_in_8bit"):
        problems.append("quantization_config: load_in_4bit and load_in_8bit exclude each other. Leave one out.")
    if not quantization.get("load_in_4bit"):
        for name in quantization:
            if name.startswith("bnb_4bit_"):
                problems.append(f"quantization_config: {name} has no effect without load_in_4bit: true. Set that too.")
    return problems


def _hub_contradictions(recipe: Recipe) -> list[str]:
    training, base, method, problems = (
        recipe.training,
        recipe.model.model_name_or_path,
        METHODS[recipe.prompt.method],
        [],
    )
    if training.hub_token:
        problems.append("hub_token would stand in every checkpoint; log in with `hf auth login`, or set HF_TOKEN")
    if not training.push_to_hub:
        return problems
    if "hub_strategy" in recipe.explicitly_set and training.hub_strategy != "end":
        problems.append(
            f"hub_strategy {training.hub_strategy.value} would upload unfinished runs or the optimiser's state; leave "
            "it out: the finished run is pushed"
        )
    if not method.trains:
        problems.append("push_to_hub has nothing to push with method none; leave it out")
    elif method.trains_several_tasks:
        problems.append(
            "push_to_hub is for one run; each task's folder is one: `prompt-tuning push RUN/TASK` afterwards"
        )
    elif base and not method.trains_whole_model and Path(base).is_dir():
        problems.append(
            f"push_to_hub: the adapter would name {base}, a folder that nobody else has; train without it, then "
            "`prompt-tuning push RUN --repo_id NAME --base_model USER/NAME`"
        )
    return problems


def _stream_contradictions(recipe: Recipe) -> list[str]:
    """What cannot be had of training rows that are read as they are needed."""
    data, prompt, training = recipe.data, recipe.prompt, recipe.training
    if not data.streaming:
        return []
    problems = []
    if training.max_steps <= 0:
        problems.append("streaming: a stream has no known length; set max_steps")
    wanted = {
        f"init {prompt.init}": prompt.init in ("frequent", "demonstrations") and METHODS[prompt.method].takes_init,
        f"num_demonstrations {prompt.num_demonstrations}": prompt.num_demonstrations > 0,
        f"teacher_template with loss {prompt.loss}": prompt.teacher_template is not None,
        f"train_sampling_strategy {training.train_sampling_strategy}": training.train_sampling_strategy
        != "sequential",
    }
    problems += [
        f"streaming: {name} needs all training rows before training; leave out one of the two"
        for name, asked in wanted.items()
        if asked
    ]
    for name, value in (
        ("preprocessing_num_workers", data.preprocessing_num_workers),
        ("dataloader_num_workers", training.dataloader_num_workers),
    ):
        if value:
            problems.append(
                f"streaming: {name} has no effect, since the training process reads the rows; leave it out"
            )
    return problems


def _task_contradictions(recipe: Recipe) -> list[str]:
    """What is wrong with the settings of a task and its data."""
    data, problems = recipe.data, []
    for name, value in (("task", data.task), ("template", recipe.prompt.template)):
        if value is None:
            problems.append(f"{name} is missing")
    files = [data.train_file, data.validation_file, data.test_file]
    if not data.dataset_name and not any(files):
        problems.append("no data: set dataset_name (a hub id), or train_file, validation_file and test_file")
    for file in filter(None, files):
        if Path(file).suffix not in LOCAL_FORMATS:
            problems.append(f"{file}: cannot tell its format; expected a name ending in {', '.join(LOCAL_FORMATS)}")
        elif not Path(file).is_file():
            problems.append(f"{file}: no such file (looked in {Path.cwd()})")
    count, selection = recipe.prompt.num_demonstrations, recipe.prompt.demonstration_selection
    if count < 0:
        problems.append(f"num_demonstrations is {count}; it must be at least 0")
    if count == 0 and selection != "random":
        problems.append(f"demonstration_selection is {selection} but num_demonstrations is 0; set it to at least 1")
    if count > 0 and not data.train_file and not data.dataset_name:
        problems.append(f"num_demonstrations is {count} but there are no training rows; set train_file")
    if data.lang and not re.fullmatch(r"[A-Za-z]{2,3}([-_]\w+)*", data.lang):
        problems.append(f"lang {data.lang}: expected a code, as zh, pt-BR or fra_Latn; metrics split texts by it")
    if data.task == "translation" and not (data.source_lang and data.target_lang):
        problems.append("translation needs source_lang and target_lang, as `source_lang: fr`")
    return problems


def _multitask_contradictions(recipe: Recipe) -> list[str]:
    """What is wrong with a recipe that trains on several tasks at once, but for theirs."""
    prompt, count = recipe.prompt, len(recipe.prompt.tasks or ())
    problems = [
        f"{name} is each task's own and has no effect with method {prompt.method}; set it in the recipes of tasks"
        for name in sorted(recipe.explicitly_set & TASK_SETTINGS)
    ]
    if count < 2:
        problems.append(
            f"tasks names {count or 'no'} recipe{'' if count == 1 else 's'}; {prompt.method} needs two or more, as "
            "`tasks: [qa.yaml, summaries.yaml]`"
        )
    if prompt.init in ("demonstrations", "template"):
        problems.append(
            f"init {prompt.init} is for one task: each has a template of its own; take vocab, frequent or text"
        )
    if prompt.adapter:
        problems.append(
            f"adapter goes on training the prompt of one task; to start from it set init: adapter and init_adapter: "
            f"{prompt.adapter}"
        )
    best = recipe.training.metric_for_best_model or "loss"
    if best.removeprefix("eval_") != "loss":
        problems.append(f"metric_for_best_model {best}: only the loss is taken over all tasks; leave it out")
    return problems


def _prompt_contradictions(recipe: Recipe) -> list[str]:
    """Settings of the prompt that need each other, or would have no effect."""
    prompt, given, problems = recipe.prompt, recipe.explicitly_set, []
    method = METHODS[prompt.method]
    if not method.trains:
        return []
    for init, name in (("text", "init_text"), ("class_labels", "init_labels"), ("adapter", "init_adapter")):
        value = vars(prompt)[name]
        if prompt.init == init and not value and method.takes_init:
            problems.append(f"init is {init} but {name} is missing; set it, or another init")
        if value and prompt.init != init and not (method.starts_from_text and name == "init_text"):
            problems.append(f"{name} is set but init is {prompt.init}, so it would have no effect; set init: {init}")
    for name in ("adapter", "init_adapter"):
        folder = vars(prompt)[name]
        on_hub = folder and is_hub_id(folder) and not Path(folder).is_dir()
        if folder and not on_hub and not Path(folder, "adapter_config.json").is_file():
            problems.append(
                f"{name} {folder}: no adapter_config.json there; name a folder that train wrote or a hub id"
            )
    for name in sorted(given):
        if not method.takes(name):
            owners = " and ".join(methods_of_setting(name))
            problems.append(f"{name} has no effect with method {prompt.method}; it belongs to {owners}")
    if method.trains_keys_and_values and prompt.prefix_projection and prompt.init not in ("random", "vocab"):
        problems.append("prefix_projection starts from its network's own noise; leave init out, or the projection")
    if prompt.init in method.refused_inits:
        problems.append(
            f"init {prompt.init} is for soft prompts; prefix_tuning takes random, text, demonstrations and template"
        )
    if prompt.init == "template" and prompt.num_demonstrations and prompt.demonstration_selection == "bm25":
        problems.append(
            "init template: bm25 shows each row demonstrations of its own, so the prompt could not start at them; set "
            "demonstration_selection: random or balanced"
        )
    if prompt.loss != "cross_entropy" and not prompt.teacher_template:
        problems.append(f"loss {prompt.loss} needs a teacher; set teacher_template to the prompt to be replaced")
    if prompt.teacher_template and prompt.loss == "cross_entropy":
        problems.append("teacher_template is set but loss is cross_entropy, so it would have no effect; set loss: kl")
    if prompt.loss != "cross_entropy" and recipe.training.label_smoothing_factor:
        problems.append(f"label_smoothing_factor has no effect with loss {prompt.loss}; leave it out")
    checkpointing = recipe.training.activation_checkpointing_kwargs or {}
    if method.trains_keys_and_values and checkpointing.get("use_reentrant"):
        problems.append(
            "activation_checkpointing_kwargs: use_reentrant takes no gradient through the cache that a prefix stands "
            "in; leave it out"
        )
    if method.starts_from_text and not prompt.init_text:
        problems.append(f"{prompt.method} starts from a text; set init_text")
    return problems
