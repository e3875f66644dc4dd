"""Load the prompts of several runs before one base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import AdapterError
from prompt_tuning.models.prompts import config_of_saved, load_adapter, prompt_config


def check_kinds(runs: Sequence[tuple[Path, PeftConfig | None]]) -> None:
    """Raise an AdapterError unless the runs have prompts of one kind.

    Args:
        runs: the folder of each run and the configuration of its adapter; None for a run that trained the model.
    """
    first, first_config = runs[0]
    for folder, config in runs:
        method = None if config is None else find_method(config.peft_type)
        if method is None or not method.has_prompt:
            name = "a whole model" if method is None else f"a run of {method.name}"
            raise AdapterError(
                f"{folder}: {name}, and several tasks stand behind prompts of one model. Load it alone."
            )
        kind = find_method(first_config.peft_type).trained_part if first_config is not None else ""
        if method.trained_part != kind:
            raise AdapterError(
                f"{folder}: it trained {method.trained_part}, and {first} {kind}. One model takes prompts of one "
                "kind: load them apart."
            )


def load_prompts(model: PreTrainedModel, runs: Sequence[tuple[Path, PeftConfig]]) -> tuple[PeftModel, list[str]]:
    """Return the base model with the prompts of runs, to predict, and the name of each run's adapter in it.

    Args:
        model: the frozen base model. It is changed.
        runs: the folder of each run and the configuration of its adapter, which `check_kinds` has passed.
    """
    # PEFT takes adapters of one type. What is saved of every type is a plain prompt, as continued training takes it.
    configs = [config_of_saved(model, config, is_trainable=True) for _, config in runs]
    if len({config.peft_type for config in configs}) > 1:  # Cartridges among prefixes are prefixes as well.
        prefix = PromptArguments(method="prefix_tuning")
        configs = [prompt_config(model, config.num_virtual_tokens, prefix) for config in configs]
    peft_model = load_adapter(model, runs[0][0], is_trainable=True, config=configs[0])
    names = ["default"]
    for (folder, _), config in zip(runs[1:], configs[1:], strict=True):
        names.append(str(len(names)))
        peft_model.add_adapter(names[-1], config)
        peft_model.load_adapter(str(folder), names[-1], is_trainable=True, torch_device=str(model.device))
    peft_model.prompt_encoder.float()
    peft_model.requires_grad_(requires_grad=False)
    return peft_model.eval(), names
