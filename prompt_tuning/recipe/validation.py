"""Check the settings of a recipe by its text: those that exclude each other, need each other, or have no effect.

Each function lists rules as (is broken, message) and returns the messages of the broken ones. Nothing large is
imported, so that a wrong recipe is refused at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.flags import read_flags
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.prompt_args import CHOICE_LOSSES
from prompt_tuning.recipe.api_validation import api_errors
from prompt_tuning.recipe.prompt_validation import multitask_errors, prompt_errors
from prompt_tuning.recipe.rules import Rules, broken_rules
from prompt_tuning.support.data_files import file_problem
from prompt_tuning.support.files import name_problem

if TYPE_CHECKING:
    from prompt_tuning.recipe.recipe import Draft

# No other value of these settings of Trainer fits an evaluation by generation, and why.
REQUIRED_VALUES = {
    "predict_with_generate": (True, "is false; evaluation here is by generation, from rows with references"),
    "remove_unused_columns": (True, "is false; evaluation here is by generation, from rows with references"),
    "prediction_loss_only": (False, ": true leaves nothing to score at the end"),
    "batch_eval_metrics": (False, ": true leaves nothing to score at the end"),
    "eval_do_concat_batches": (True, ": false leaves nothing to score at the end"),
    "include_for_metrics": ([], ": metrics get predicted texts and references, and nothing else"),
    "label_names": (None, ": targets are encoded into the column labels"),
    "enable_jit_checkpoint": (False, ": SIGTERM saves a checkpoint here in any case"),
}


def text_errors(recipe: Draft) -> list[str]:
    """Return all that the text of a recipe shows to be wrong, one message each. Reads no row and no model."""
    message = "model_name_or_path is missing. Set it to a folder or a hub id."
    errors = broken_rules([(not recipe.model.model_name_or_path, message)])
    if METHODS[recipe.prompt.method].trains_several_tasks:
        errors += multitask_errors(recipe)
    else:
        errors += _task_errors(recipe) + _split_errors(recipe.data) + _demonstration_errors(recipe)
    errors += api_errors(recipe) + prompt_errors(recipe) + _quantization_errors(recipe) + _training_errors(recipe)
    return errors + _hub_errors(recipe) + _stream_errors(recipe) + _dependency_errors(recipe)


def _training_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with the settings of Trainer."""
    training = recipe.training
    method = METHODS[recipe.prompt.method]
    name = str(training.output_dir)
    problem = name_problem(name)
    rules: Rules = [
        (problem, f"output_dir {name!r}: {problem}"),
        (
            recipe.prompt.early_stopping_patience is not None and not training.load_best_model_at_end,
            "early_stopping_patience needs load_best_model_at_end: true and an eval_strategy. Set both.",
        ),
        (
            training.load_best_model_at_end and training.eval_strategy == "no",
            "load_best_model_at_end needs evaluations to choose by. Set eval_strategy: steps or epoch.",
        ),
        (
            training.save_strategy == "best" and training.eval_strategy == "no",
            "save_strategy best needs evaluations to choose by. Set eval_strategy: steps or epoch.",
        ),
        (
            training.generation_config is not None,
            "generation_config would not reach `predict`. Set generation_max_length and generation_num_beams, or put "
            "a generation_config.json into the model's folder.",
        ),
        (
            training.neftune_noise_alpha and not (method.trains_layers or method.trains_whole_model),
            f"neftune_noise_alpha is for methods lora and full, not {recipe.prompt.method}. Leave it out.",
        ),
        (
            training.dataloader_persistent_workers and not training.dataloader_num_workers,
            "dataloader_persistent_workers needs dataloader_num_workers. Set it to at least 1.",
        ),
    ]
    for name, (value, reason) in REQUIRED_VALUES.items():
        separator = "" if reason.startswith(":") else " "
        rules.append((getattr(training, name) != value, f"{name}{separator}{reason}. Leave it out."))
    for name in ("do_train", "do_eval", "do_predict"):
        message = f"{name} has no effect here: `train` trains and then evaluates. Leave it out."
        rules.append((name in recipe.explicitly_set, message))
    for name in ("bf16_full_eval", "fp16_full_eval"):
        message = f"{name} would evaluate in other numbers than `predict` computes. Set bf16: true or dtype: bfloat16."
        rules.append((getattr(training, name), message))
    return broken_rules(rules)


def _dependency_errors(recipe: Draft) -> list[str]:
    """Return the settings that have no effect without another one.

    Settings at their default pass, since the recipe.yaml of a run has those too.
    """
    data = recipe.data
    prompt = recipe.prompt
    method = METHODS[prompt.method]
    has_network = prompt.residual or prompt.prefix_projection or method.written_by_network or not method.trains
    groups_rows = recipe.training.train_sampling_strategy == "group_by_length"
    needs: dict[str, tuple[object, str]] = {
        "max_teacher_tokens": (prompt.teacher_template, "teacher_template"),
        "encoder_hidden_size": (has_network, "residual, prefix_projection or method: p_tuning"),
        "layer_vectors_learning_rate": (prompt.layer_vectors, "layer_vectors: true"),
        "early_stopping_threshold": (prompt.early_stopping_patience is not None, "early_stopping_patience"),
        "group_shared": (method.has_prompt and groups_rows, "a prompt and train_sampling_strategy: group_by_length"),
        "greater_is_better": ("metric_for_best_model" in recipe.explicitly_set, "metric_for_best_model"),
        "data_seed": (recipe.training.train_sampling_strategy == "random", "train_sampling_strategy: random"),
    }
    for name in ("dataset_config_name", "dataset_revision", "train_split", "validation_split", "test_split"):
        needs[name] = (data.dataset_name, "dataset_name")
    for name in ("source_column", "target_column"):
        needs[name] = (data.task == "translation", "task: translation")
    values = vars(recipe.training) | vars(data) | vars(prompt)
    flags = [flag for flag in read_flags() if "type" in flag]  # --no_bf16 has the default of a switch, not of bf16.
    at_default = {flag["dest"] for flag in flags if values.get(flag["dest"]) == flag["default"]}
    rules: Rules = []
    for name, (is_met, needed) in needs.items():
        is_set = name in recipe.explicitly_set and name not in at_default
        rules.append((is_set and not is_met, f"{name} has no effect without {needed}. Leave it out, or set that."))
    return broken_rules(rules)


def _quantization_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with the mapping of fewer bits, whatever the machine is."""
    settings = recipe.model.quantization_config
    quantization = settings if isinstance(settings, dict) else {}
    rules: Rules = [
        (
            quantization and METHODS[recipe.prompt.method].trains_whole_model,
            "quantization_config: method full trains all weights, and quantized weights cannot be trained. Set "
            "method: lora.",
        ),
        (
            quantization.get("load_in_4bit") and quantization.get("load_in_8bit"),
            "quantization_config: load_in_4bit and load_in_8bit exclude each other. Leave one out.",
        ),
    ]
    for name, value in quantization.items():
        rules += [
            (
                name in ("load_in_4bit", "load_in_8bit") and not isinstance(value, bool),
                f"quantization_config: {name} is {value!r}. Set true or false.",
            ),
            (
                name.startswith("bnb_4bit_") and not quantization.get("load_in_4bit"),
                f"quantization_config: {name} has no effect without load_in_4bit: true. Set that too.",
            ),
        ]
    return broken_rules(rules)


def _hub_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with the settings of a push to the hub."""
    training = recipe.training
    base = recipe.model.model_name_or_path
    method = METHODS[recipe.prompt.method]
    pushes_adapter = training.push_to_hub and not method.trains_whole_model
    token_message = "hub_token would be saved in every checkpoint. Log in with `hf auth login`, or set HF_TOKEN."
    return broken_rules(
        [
            (training.hub_token, token_message),
            (
                training.push_to_hub and "hub_strategy" in recipe.explicitly_set and training.hub_strategy != "end",
                f"hub_strategy {training.hub_strategy} would upload unfinished runs or the optimiser's state. "
                "Leave it out: the finished run is pushed.",
            ),
            (
                pushes_adapter and not method.trains,
                f"push_to_hub has nothing to push with method {recipe.prompt.method}. Leave it out.",
            ),
            (
                pushes_adapter and method.trains_several_tasks,
                "push_to_hub is for one run. Push each task's folder afterwards: `prompt-tuning push RUN/TASK`.",
            ),
            (
                pushes_adapter and method.trains and not method.trains_several_tasks and base and Path(base).is_dir(),
                f"push_to_hub: the adapter would name {base}, a folder that nobody else has. Train without it, then "
                "run `prompt-tuning push RUN --repo_id NAME --base_model USER/NAME`.",
            ),
        ]
    )


def _stream_errors(recipe: Draft) -> list[str]:
    """Return the settings that need all training rows before training."""
    data = recipe.data
    prompt = recipe.prompt
    training = recipe.training
    if not data.streaming:
        return []
    needs_rows = {
        f"init {prompt.init}": prompt.init in ("frequent", "demonstrations") and METHODS[prompt.method].takes_init,
        f"num_demonstrations {prompt.num_demonstrations}": prompt.num_demonstrations > 0,
        f"teacher_template with loss {prompt.loss}": prompt.teacher_template is not None,
        f"loss {prompt.loss}": prompt.loss in CHOICE_LOSSES,
        f"train_sampling_strategy {training.train_sampling_strategy}": training.train_sampling_strategy
        != "sequential",
    }
    workers = {
        "preprocessing_num_workers": data.preprocessing_num_workers,
        "dataloader_num_workers": training.dataloader_num_workers,
    }
    rules: Rules = [(training.max_steps <= 0, "streaming: a stream has no known length. Set max_steps.")]
    for name, is_set in needs_rows.items():
        message = f"streaming: {name} needs all training rows before training. Leave out one of the two."
        rules.append((is_set, message))
    for name, number in workers.items():
        message = f"streaming: {name} has no effect, since the training process reads the rows. Leave it out."
        rules.append((number, message))
    return broken_rules(rules)


def _task_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with the settings of a task and its data."""
    data = recipe.data
    files = list(filter(None, (data.train_file, data.validation_file, data.test_file)))
    rules: Rules = [
        (data.task is None, "task is missing. Set question_answering, summarization or translation."),
        (recipe.prompt.template is None, "template is missing. Set one that `prompt-tuning templates` lists."),
        (
            not data.dataset_name and not files,
            "no data: set dataset_name (a hub id), or train_file, validation_file and test_file",
        ),
        (
            data.lang and not re.fullmatch(r"[A-Za-z]{2,3}([-_]\w+)*", data.lang),
            f"lang {data.lang}: expected a code, such as zh, pt-BR or fra_Latn. Metrics split texts by it.",
        ),
        (
            data.task == "translation" and not (data.source_lang and data.target_lang),
            "translation needs source_lang and target_lang, such as `source_lang: fr`. Set both.",
        ),
    ]
    return broken_rules(rules) + list(filter(None, map(file_problem, files)))


def _split_errors(data: DataArguments) -> list[str]:
    """Return what is wrong with the splits that are cut from the training rows."""
    sizes = {"validation_size": data.validation_size, "test_size": data.test_size}
    cut = {name: size for name, size in sizes.items() if size is not None}
    has_rows = data.train_file or data.dataset_name
    rules: Rules = [
        (
            data.split_seed is not None and not cut,
            "split_seed has no effect without validation_size or test_size. Leave it out, or set one of them.",
        ),
        (
            cut and not has_rows,
            f"{' and '.join(cut)}: there are no training rows to cut. Set train_file.",
        ),
        (
            cut and data.streaming,
            f"streaming: {' and '.join(cut)} needs all training rows before training. Leave out one of the two.",
        ),
        (
            len(cut) == 2 and max(cut.values()) < 1 and sum(cut.values()) >= 1,
            f"{' and '.join(cut)} take all rows, and leave none for training. Lower one of them.",
        ),
    ]
    for name, size in cut.items():
        split = name.removesuffix("_size")
        is_named = getattr(data, f"{split}_file") or getattr(data, f"{split}_split") != split
        rules += [
            (
                not (0 < size < 1 or (size >= 1 and size % 1 == 0)),
                f"{name} is {size}; it must be a share between 0 and 1, or a whole number of rows",
            ),
            (is_named, f"{name} and {split}_file or {split}_split both give the {split} rows. Leave out one."),
        ]
    return broken_rules(rules)


def _demonstration_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with the demonstrations that are chosen from the training rows."""
    count = recipe.prompt.num_demonstrations
    selection = recipe.prompt.demonstration_selection
    has_rows = recipe.data.train_file or recipe.data.dataset_name
    return broken_rules(
        [
            (
                count == 0 and selection != "random",
                f"demonstration_selection is {selection} but num_demonstrations is 0. Set it to at least 1.",
            ),
            (
                count > 0 and not has_rows,
                f"num_demonstrations is {count} but there are no training rows. Set train_file.",
            ),
        ]
    )
