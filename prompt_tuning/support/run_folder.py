"""The file names of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from prompt_tuning.errors import AdapterError, DataError
from prompt_tuning.support.files import is_plain_name, read_json


@dataclass(frozen=True)
class RunFolder:
    """The folder that `train` or `evaluate` writes, and the name of every file in it.

    Args:
        path: the folder. A multitask run has one such folder for each task in it.
    """

    path: Path

    ADAPTER_CONFIG: ClassVar[str] = "adapter_config.json"
    ADAPTER_WEIGHTS: ClassVar[str] = "adapter_model.safetensors"
    BASE_MODEL: ClassVar[str] = "base_model.json"
    CARD: ClassVar[str] = "README.md"
    INITIAL_PROMPT: ClassVar[str] = "initial_prompt.safetensors"
    INPUT_ROWS: ClassVar[str] = "input_rows"
    LOCK: ClassVar[str] = ".prompt_tuning.lock"
    LOG_HISTORY: ClassVar[str] = "log_history.json"
    MODEL_CONFIG: ClassVar[str] = "config.json"
    MODEL_INDEX: ClassVar[str] = "model.safetensors.index.json"
    MODEL_WEIGHTS: ClassVar[str] = "model.safetensors"
    PREDICTIONS: ClassVar[str] = "predictions"
    PROMPTS: ClassVar[str] = "prompts.json"
    RECIPE: ClassVar[str] = "recipe.yaml"
    REPORT: ClassVar[str] = "report.html"
    RESULTS: ClassVar[str] = "results.json"
    TEMPLATE: ClassVar[str] = "template.yaml"

    # What `evaluate` and `train` write. Others may have files of these names.
    EVALUATED: ClassVar[tuple[str, ...]] = (RESULTS, PREDICTIONS, TEMPLATE, REPORT)
    TRAINED: ClassVar[tuple[str, ...]] = (CARD, RECIPE, *EVALUATED, BASE_MODEL, INITIAL_PROMPT, LOG_HISTORY)
    # The patterns of the files that a run is downloaded and uploaded by.
    RUN_FILES: ClassVar[tuple[str, ...]] = (RECIPE, TEMPLATE, RESULTS)
    ADAPTER_FILES: ClassVar[tuple[str, ...]] = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    MODEL_FILES: ClassVar[tuple[str, ...]] = (
        MODEL_CONFIG, "generation_config.json", MODEL_WEIGHTS, "model-*.safetensors", MODEL_INDEX, "tokenizer*",
        "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template.jinja",
    )  # fmt: skip
    # What `export` writes beside a model's files.
    EXPORT_FILES: ClassVar[tuple[str, ...]] = (
        PROMPTS, f"tasks/*/{RECIPE}", f"tasks/*/{TEMPLATE}", f"tasks/*/{ADAPTER_CONFIG}", "model-*.gguf",
    )  # fmt: skip

    def check_adapter(self) -> None:
        """Raise an AdapterError if a file of an adapter is missing."""
        for name in self.ADAPTER_FILES:
            if (self.path / name).is_file():
                continue
            if self.model_config.is_file():
                raise AdapterError(
                    f"{self.path}: it is a whole model, as method: full trains. Write it as --model_name_or_path, "
                    "without --adapter."
                )
            raise AdapterError(f"{self.path}: no {name} there. Name the folder that `prompt-tuning train` wrote.")

    @property
    def adapter_config(self) -> Path:
        """PEFT's configuration of the adapter."""
        return self.path / self.ADAPTER_CONFIG

    @property
    def adapter_weights(self) -> Path:
        """The adapter's tensors."""
        return self.path / self.ADAPTER_WEIGHTS

    @property
    def base_model(self) -> Path:
        """The digests of the base model's weights and tokenizer."""
        return self.path / self.BASE_MODEL

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / self.CARD

    @property
    def initial_prompt(self) -> Path:
        """The embeddings that a soft prompt started from, for `inspect`."""
        return self.path / self.INITIAL_PROMPT

    @property
    def lock(self) -> Path:
        """The file that a command locks while it writes the folder, and that marks the folder as written by one."""
        return self.path / self.LOCK

    @property
    def log_history(self) -> Path:
        """Trainer's log, a list of dictionaries."""
        return self.path / self.LOG_HISTORY

    @property
    def model_config(self) -> Path:
        """The configuration of a whole model, which `method: full` trains."""
        return self.path / self.MODEL_CONFIG

    @property
    def prompts(self) -> Path:
        """The token ids of the tasks of an exported model."""
        return self.path / self.PROMPTS

    def exported_task(self, name: str) -> RunFolder:
        """Return the folder of a task of an exported model."""
        return RunFolder(self.path / "tasks" / name)

    @property
    def recipe(self) -> Path:
        """The resolved recipe, by which the run can be made again."""
        return self.path / self.RECIPE

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / self.REPORT

    @property
    def results(self) -> Path:
        """Scores and facts. It is written last, so that a run with it is finished."""
        return self.path / self.RESULTS

    @property
    def template(self) -> Path:
        """The template, with the demonstrations that were chosen."""
        return self.path / self.TEMPLATE

    def is_run(self) -> bool:
        """Return whether a command of this package has written the folder, also one of version 0.1.0."""
        if self.lock.is_file():
            return True
        checkpoints = self.path.glob("checkpoint-*/trainer_state.json")
        if self.recipe.is_file() and (self.base_model.is_file() or self.adapter_config.is_file() or any(checkpoints)):
            return True
        try:
            results = read_json(self.results, dict[str, Any])
        except (OSError, DataError):
            return False
        return "seed" in results and ("task" in results or "tasks" in results)

    def is_held(self) -> bool:
        """Return whether a command writes the folder now, or was killed: it empties the lock's file at its end."""
        return self.lock.is_file() and self.lock.stat().st_size > 0

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints of the run, the newest first."""
        steps = {}
        for path in self.path.glob("checkpoint-*"):
            number = path.name.rpartition("-")[2]
            if number.isdecimal() and path.is_dir():
                steps[int(number)] = path
        return [steps[step] for step in sorted(steps, reverse=True)]

    @classmethod
    def is_reserved(cls, name: str) -> bool:
        """Return whether a run has a file or a folder of this name, so that no task in it can have the name."""
        names = (*cls.TRAINED, *cls.ADAPTER_FILES)
        return name.startswith((".", "checkpoint-")) or name.lower() in map(str.lower, names)

    def predictions(self, split: str) -> Path:
        """Return the file of the predictions of a split, one JSON object a row.

        Raises:
            DataError: the name of the split leads out of the folder.
        """
        return self._inside(self.path / self.PREDICTIONS, "split", split) / f"{split}.jsonl"

    def task(self, name: str) -> RunFolder:
        """Return the folder of one task of a multitask run.

        Raises:
            DataError: the name of the task leads out of the folder.
        """
        return RunFolder(self._inside(self.path / str(name), "task", name))

    def check_links(self, *files: Path) -> None:
        """Raise a DataError if a link leads a file of the run out of its folder.

        A stranger may have written the folder, and what such a file shows or uploads would be the user's.
        """
        folder = os.path.realpath(self.path)
        for file in files:
            target = os.path.realpath(file)
            if not Path(target).is_relative_to(folder):
                raise DataError(f"{file}: a link to {target}, out of the run's folder. Remove it, or copy the file.")

    def _inside(self, folder: Path, kind: str, name: str) -> Path:
        """Return a folder of the run; raise a DataError if its name or a link leads out of the run's folder."""
        if not is_plain_name(name):
            raise DataError(
                f"{self.results}: {name!r} is not the name of a {kind}. Get the folder again from where it was made."
            )
        self.check_links(folder)
        return folder
