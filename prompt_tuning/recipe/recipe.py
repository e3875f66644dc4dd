"""The parsed recipe: four blocks of typed settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.model_args import SETTINGS_OF_CALL, ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.arguments.task_settings import TASK_SETTINGS
from prompt_tuning.metrics.loading import TASK_METRICS
from prompt_tuning.support.files import unmistakable

if TYPE_CHECKING:
    from prompt_tuning.arguments.training_args import PromptTuningArguments


RecipeSource = str | Path | Mapping[str, Any]
"""A recipe: its file, or its settings by name."""

HALF_PRECISION = ("bf16", "fp16")
# A token is a secret, and a repeated run should not overwrite the pushed one.
HUB_PREFIXES = ("hub_", "push_to_hub")
HUB_OR_FOLDER = ("model_name_or_path", "tokenizer_name", "adapter", "init_adapter", "dataset_name")
"""The settings that name a folder or a hub id."""
DEFAULTS = vars(ModelArguments()) | vars(DataArguments()) | vars(PromptArguments())
"""The defaults of the settings of this package. The recipe of a run of an older version may lack a setting."""


@dataclass(frozen=True)
class Draft:
    """A recipe as its text says it, before the libraries that train are imported.

    Args:
        path: the file that it was read from.
        model: the settings of the base model.
        data: the settings of the rows.
        prompt: the settings of the prompt.
        training: the settings of Trainer as they are written, with its defaults.
        explicitly_set: the names of the settings that the file or the command line sets.
        choice: what `method: auto` is here and why, in one line; empty with another method.
    """

    path: Path
    model: ModelArguments
    data: DataArguments
    prompt: PromptArguments
    training: Any
    explicitly_set: frozenset[str]
    choice: str = ""


@dataclass(frozen=True)
class Recipe(Draft):
    """A parsed recipe, whose settings of Trainer are completed by Trainer's own class."""

    training: PromptTuningArguments

    @property
    def metrics(self) -> Sequence[str]:
        """The names of the metrics, by default those of the task."""
        return self.prompt.metrics or TASK_METRICS[str(self.data.task)]

    @property
    def decoding(self) -> dict[str, int]:
        """The arguments of `generate` for predictions."""
        return {
            "max_new_tokens": self.training.generation_max_length or self.prompt.max_target_tokens,
            "num_beams": self.training.generation_num_beams or 1,
        }

    @property
    def computing_type(self) -> str:
        """The name of the type that the training computes in, as far as the recipe says it."""
        if self.training.bf16 or self.training.fp16:
            return "bfloat16" if self.training.bf16 else "float16"
        return "float32" if self.model.dtype == "auto" else self.model.dtype

    def resolved(self) -> dict[str, object]:
        """Return the settings that repeat the run: all of this package, and those of Trainer that are set."""
        method = METHODS[self.prompt.method]
        left_out = frozenset(SETTINGS_OF_CALL)
        if method.trains_several_tasks:
            left_out |= TASK_SETTINGS
        values: dict[str, object] = {}
        for block in (self.model, self.data, self.prompt):
            for key, value in dataclasses.asdict(block).items():
                if value is not None and key not in left_out and method.takes(key):
                    values[key] = value
        trainer_values = self._trainer_values()
        for name in sorted(self._trainer_names()):
            if trainer_values.get(name) is not None:
                values[name] = trainer_values[name]
        return values

    def _trainer_values(self) -> dict[str, Any]:
        """Return the settings of Trainer in the form that its flags take."""
        values = self.training.to_dict() | {"output_dir": self.training.output_dir, "seed": self.training.seed}
        # Trainer holds report_to as a list and the other one as a text. Its flags take a text and a truth value.
        reporters = self.training.report_to
        values["report_to"] = reporters[0] if len(reporters) == 1 else "all" if reporters else "none"
        values["include_num_input_tokens_seen"] = self.training.include_num_input_tokens_seen != "no"
        if self._is_half_precision_on_cpu():
            values["use_cpu"] = True
        return values

    def _trainer_names(self) -> set[str]:
        """Return the names of Trainer's settings that repeat the run."""
        names = self.explicitly_set | set(type(self.training).DEFAULTS) | {"output_dir", "seed"}
        names |= {name for name in HALF_PRECISION if getattr(self.training, name)}
        if self._is_half_precision_on_cpu():
            names |= {"use_cpu"}
        return {name for name in names if not name.startswith(HUB_PREFIXES)}

    def _is_half_precision_on_cpu(self) -> bool:
        """Return whether Trainer would refuse the number format of the run without use_cpu."""
        is_half = any(getattr(self.training, name) for name in HALF_PRECISION)
        return is_half and self.training.device.type == "cpu"


def unmistakable_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings for a saved file, in which no folder of this machine looks like a hub id."""
    folders = {name: unmistakable(str(settings[name])) for name in HUB_OR_FOLDER if settings.get(name)}
    return settings | folders


def changed_settings(saved: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return the names of the settings that differ. A missing setting has its default."""
    saved, settings = unmistakable_settings(saved), unmistakable_settings(settings)
    changed = []
    for key in saved.keys() | settings.keys():
        default = DEFAULTS.get(key)
        if saved.get(key, default) != settings.get(key, default):
            changed.append(key)
    return sorted(changed)
