"""Check the settings of a recipe that belong to its prompt, by its text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.arguments.methods import METHODS, methods_of_setting
from prompt_tuning.arguments.prompt_args import CHOICE_LOSSES, PromptArguments
from prompt_tuning.arguments.task_settings import TASK_SETTINGS
from prompt_tuning.hub.ids import is_on_hub
from prompt_tuning.recipe.rules import Rules, broken_rules
from prompt_tuning.support.run_folder import RunFolder

if TYPE_CHECKING:
    from prompt_tuning.recipe.recipe import Draft

# The setting that each value of `init` reads.
INIT_SETTINGS = {"text": "init_text", "class_labels": "init_labels", "adapter": "init_adapter"}


def multitask_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with a recipe that trains on several tasks, except in the recipes of the tasks."""
    prompt = recipe.prompt
    count = len(prompt.tasks or ())
    best = recipe.training.metric_for_best_model or "loss"
    rules: Rules = []
    for name in sorted(recipe.explicitly_set & TASK_SETTINGS):
        message = f"{name} has no effect with method {prompt.method}. Set it in the recipes of the tasks."
        rules.append((True, message))
    rules += [
        (
            count < 2,
            f"tasks names {count or 'no'} recipe{'' if count == 1 else 's'}; {prompt.method} needs two or more. Set "
            "`tasks: [qa.yaml, summaries.yaml]`.",
        ),
        (
            prompt.init in ("demonstrations", "template"),
            f"init {prompt.init} is for one task, since each task has its own template. Set vocab, frequent or text.",
        ),
        (
            prompt.adapter,
            "adapter continues the prompt of one task. To start from it, set init: adapter and init_adapter: "
            f"{prompt.adapter}.",
        ),
        (
            best.removeprefix("eval_") != "loss",
            f"metric_for_best_model {best}: only the loss is taken over all tasks. Leave it out.",
        ),
    ]
    return broken_rules(rules)


def prompt_errors(recipe: Draft) -> list[str]:
    """Return the settings of the prompt that need each other, or have no effect."""
    prompt = recipe.prompt
    method = METHODS[prompt.method]
    if prompt.servable is not None:
        return [f"servable has no effect with method {prompt.method}; it belongs to auto"]
    if not method.trains:
        return []
    rules: Rules = []
    for name in sorted(recipe.explicitly_set):
        methods = ", ".join(methods_of_setting(name))
        message = f"{name} has no effect with method {prompt.method}; it belongs to {methods}"
        rules.append((not method.takes(name), message))
    rules += [
        (
            (prompt.layer_vectors or prompt.trained_text != "none") and (prompt.residual or prompt.prefix_projection),
            "layer_vectors and trained_text are trained beside the prompt itself, not beside a network that writes "
            "it. Leave residual and prefix_projection out.",
        ),
        (
            prompt.layer_vectors and method.trains_keys_and_values and prompt.trained_text == "none",
            "layer_vectors: the tokens of a prefix have keys and values instead. Set trained_text, or method: "
            "prompt_tuning.",
        ),
        (
            method.starts_from_text and not prompt.init_text,
            f"{prompt.method} starts from a text. Set init_text.",
        ),
    ]
    return [
        *_init_errors(recipe),
        *_length_errors(recipe),
        *_adapter_errors(recipe),
        *broken_rules(rules),
        *_loss_errors(recipe),
    ]


def _init_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with the settings of the prompt's start."""
    prompt = recipe.prompt
    method = METHODS[prompt.method]
    rules: Rules = []
    for init, name in INIT_SETTINGS.items():
        value = getattr(prompt, name)
        is_read = prompt.init == init or (method.starts_from_text and name == "init_text")
        rules += [
            (
                prompt.init == init and not value and method.takes_init,
                f"init is {init} but {name} is missing. Set it, or another init.",
            ),
            (
                value and not is_read,
                f"{name} is set but init is {prompt.init}, so it would have no effect. Set init: {init}.",
            ),
        ]
    rules += [
        (
            method.trains_keys_and_values and prompt.prefix_projection and prompt.init not in ("random", "vocab"),
            "prefix_projection starts from its network's own noise. Leave init or prefix_projection out.",
        ),
        (
            prompt.init in method.refused_inits,
            f"init {prompt.init} is for soft prompts. Set random, text, demonstrations or template for a prefix.",
        ),
        (
            prompt.init == "template" and prompt.num_demonstrations and prompt.demonstration_selection == "bm25",
            "init template: bm25 chooses other demonstrations for each row, so the prompt could not start at them. "
            "Set demonstration_selection: random or balanced.",
        ),
    ]
    return broken_rules(rules)


def _length_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with a prompt of no virtual tokens, beside which text of the template is trained."""
    prompt = recipe.prompt
    method = METHODS[prompt.method]
    if prompt.num_virtual_tokens != 0:
        return []
    rules: Rules = [
        (
            method.takes("trained_text") and prompt.trained_text == "none",
            "num_virtual_tokens 0 trains nothing. Set trained_text: ending, or leave num_virtual_tokens out.",
        ),
        (
            not method.takes("trained_text"),
            f"num_virtual_tokens is 0; with method {prompt.method} it must be at least 1. Leave it out.",
        ),
        (
            method.trains_keys_and_values,
            "num_virtual_tokens 0 leaves no prefix. Set method: prompt_tuning to train text of the template alone.",
        ),
    ]
    for name in ("init", "residual", "init_demonstrations", "init_demonstration_tokens"):
        message = f"{name} has no effect with num_virtual_tokens 0. Leave one of them out."
        # The recipe.yaml of a run names the defaults too.
        is_changed = name in recipe.explicitly_set and getattr(prompt, name) != getattr(PromptArguments(), name)
        rules.append((is_changed and method.takes(name), message))
    return broken_rules(rules)


def _adapter_errors(recipe: Draft) -> list[str]:
    """Return the settings that name an adapter and are neither a run's folder nor a hub id."""
    rules: Rules = []
    for name in ("adapter", "init_adapter"):
        folder = getattr(recipe.prompt, name)
        if folder:
            message = (
                f"{name} {folder}: no {RunFolder.ADAPTER_CONFIG} there. Name a folder that train wrote or a hub id."
            )
            rules.append((not is_on_hub(folder) and not RunFolder(Path(folder)).adapter_config.is_file(), message))
    return broken_rules(rules)


def _loss_errors(recipe: Draft) -> list[str]:
    """Return what is wrong with the settings of context distillation, and of a loss over choices."""
    prompt = recipe.prompt
    chooses = prompt.loss in CHOICE_LOSSES
    distills = prompt.loss != "cross_entropy" and not chooses
    return broken_rules(
        [
            (
                distills and not prompt.teacher_template,
                f"loss {prompt.loss} needs a teacher. Set teacher_template to the prompt to be replaced.",
            ),
            (
                prompt.teacher_template and not distills,
                f"teacher_template is set but loss is {prompt.loss}, so it would have no effect. Set loss: kl.",
            ),
            (
                chooses and METHODS[prompt.method].trains_several_tasks,
                f"loss {prompt.loss} is for one task; {prompt.method} learns the targets. Leave loss out.",
            ),
            (
                chooses and not prompt.score_choices,
                f"loss {prompt.loss} scores choices, and score_choices is false. Leave out one of them.",
            ),
            (
                chooses and prompt.choice_normalization == "unconditional",
                f"loss {prompt.loss} divides likelihoods, and unconditional subtracts from them. Set "
                "choice_normalization to none, tokens, characters or bytes.",
            ),
            (
                prompt.class_weights != "none" and not chooses,
                f"class_weights has no effect with loss {prompt.loss}. Set loss: choices, or leave it out.",
            ),
            (
                prompt.loss != "cross_entropy" and recipe.training.label_smoothing_factor,
                f"label_smoothing_factor has no effect with loss {prompt.loss}. Leave it out.",
            ),
        ]
    )
