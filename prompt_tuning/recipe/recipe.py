"""The parsed recipe: four blocks of typed settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.arguments.arguments import (
    TASK_SETTINGS,
    DataArguments,
    ModelArguments,
    PromptArguments,
)
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.errors import RecipeError
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.yaml_files import read_yaml

if TYPE_CHECKING:
    from prompt_tuning.arguments.training_args import PromptTuningArguments


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe: four blocks of typed settings, and the names of those that were given."""

    path: Path
    model: ModelArguments
    data: DataArguments
    prompt: PromptArguments
    training: PromptTuningArguments
    explicitly_set: frozenset[str]

    @property
    def decoding(self) -> dict[str, int]:
        """How predictions are made, as `generate` takes it."""
        return {
            "max_new_tokens": self.training.generation_max_length or self.prompt.max_target_tokens,
            "num_beams": self.training.generation_num_beams or 1,
        }

    def resolved(self) -> dict[str, object]:
        """All that is needed to run the recipe again: our own settings, and the Trainer's that were given."""
        method = METHODS[self.prompt.method]
        elsewhere = TASK_SETTINGS if method.trains_several_tasks else ()
        values: dict[str, object] = {
            key: value
            for block in (self.model, self.data, self.prompt)
            for key, value in dataclasses.asdict(block).items()
            if value is not None and key not in elsewhere and method.takes(key)
        }
        # A token is a secret, and a run that is made again is not to be pushed over the first one.
        secret = {name for name in self.explicitly_set if name.startswith(("hub_", "push_to_hub"))}
        ours = self.training.to_dict() | {"output_dir": self.training.output_dir, "seed": self.training.seed}
        # Which Trainer makes a list of, and a text, as its own flags would not take them.
        reporters = self.training.report_to
        ours["report_to"] = reporters[0] if len(reporters) == 1 else "all" if reporters else "none"
        ours["include_num_input_tokens_seen"] = self.training.include_num_input_tokens_seen != "no"
        names = self.explicitly_set | set(type(self.training).DEFAULTS) | {"output_dir", "seed"}
        half = {name for name in ("bf16", "fp16") if ours[name]}
        if half and self.training.device.type == "cpu":  # without which half precision on a CPU is refused
            ours["use_cpu"], half = True, half | {"use_cpu"}
        names |= half
        return values | {key: ours[key] for key in sorted(names - secret) if ours.get(key) is not None}

    def changed_since(self, run: Path) -> list[str]:
        """Names of the settings in which this recipe differs from that of a run; what it resumed from is none."""
        saved = read_yaml(RunFolder(run).recipe, RecipeError)
        wanted = self.resolved()
        return [name for name in changed_settings(saved, wanted) if name != "resume_from_checkpoint"]


def changed_settings(saved: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """Names of those that differ, or that only one of the two has."""
    return sorted(key for key in saved.keys() | wanted.keys() if saved.get(key) != wanted.get(key))
