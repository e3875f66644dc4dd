"""Delete, unload and merge prompts, and refuse a base model that has an adapter already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, PeftModelForSeq2SeqLM, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer

from prompt_tuning.engine.dispatch import check_one_device
from prompt_tuning.errors import AdapterError

TASK_TYPES = {PeftModelForCausalLM: TaskType.CAUSAL_LM, PeftModelForSeq2SeqLM: TaskType.SEQ_2_SEQ_LM}
"""The task type of the adapters that each class of PEFT takes."""


def check_task_type(cls: type[PeftModel], config: PeftConfig, folder: str | Path) -> None:
    """Raise an AdapterError if an adapter is for another kind of model than this class.

    Args:
        cls: a subclass of one of TASK_TYPES.
        config: the configuration of the adapter.
        folder: the adapter's folder, for the message.
    """
    (expected,) = [task for base, task in TASK_TYPES.items() if issubclass(cls, base)]
    if config.task_type != expected:
        raise AdapterError(
            f"{folder}: an adapter of task type {config.task_type}, and {cls.__name__} takes {expected.value}. Load "
            "it by prompt_tuning.load_adapter or PeftModel.from_pretrained."
        )


class PromptAdapters(PeftModel):
    """What models with prompts do differently from PEFT with their adapters; a base class of both of them.

    PEFT's other methods hold as they are: `add_adapter` and `load_adapter` refuse an adapter of another kind,
    `set_adapter` chooses one of several, and `disable_adapter` gives the base model.
    """

    def __init__(self, model: torch.nn.Module, peft_config: Any, adapter_name: str = "default", **kwargs: Any) -> None:
        """Add the adapter; the arguments are those of PEFT.

        Raises:
            AdapterError: the base model has an adapter already. ModelError: it is spread over several devices.
        """
        check_one_device(model)
        if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise AdapterError(
                "the base model has an adapter already, which the saved prompt could not name. Merge it "
                "(merge_and_unload), save the result with save_pretrained, and load that as the base model."
            )
        super().__init__(model, peft_config, adapter_name, **kwargs)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; unlike PEFT, refuse to delete the only prompt, without which PEFT's forward fails.

        Raises:
            AdapterError: it is the only prompt.
        """
        if self.active_peft_config.is_prompt_learning and list(self.peft_config) == [adapter_name]:
            raise AdapterError(f"{adapter_name} is the only adapter. Call unload(), which returns the base model.")
        super().delete_adapter(adapter_name)

    def unload(self) -> torch.nn.Module:
        """Return the base model without its adapters; unlike PEFT, also without a prompt."""
        return self.base_model if self.active_peft_config.is_prompt_learning else self.base_model.unload()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """Return the base model with its adapters merged into the weights; the arguments are those of PEFT.

        Raises:
            AdapterError: the adapter is a prompt, which is no change of weights.
        """
        if self.active_peft_config.is_prompt_learning:
            kind = self.active_peft_config.peft_type.value
            raise AdapterError(f"a {kind} adapter has no weights to merge. Call unload() for the base model alone.")
        return self.base_model.merge_and_unload(*args, **kwargs)
