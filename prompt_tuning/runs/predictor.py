"""Predict with trained runs: their model, prompts, templates and decoding."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftConfig, PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.in_memory import Rows, plain_rows
from prompt_tuning.encoding.batching import streamed_batches
from prompt_tuning.encoding.embedded import check_embedded
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.target_language import target_language
from prompt_tuning.engine.dispatch import autocast_dtype, get_base, has_prompt
from prompt_tuning.engine.likelihood import ROWS_AT_ONCE, TOKENS_AT_ONCE, Normalization
from prompt_tuning.engine.stop_texts import add_end_tokens, text_settings
from prompt_tuning.errors import AdapterError, DataError, ErrorList, TemplateError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.models.base_model import check_adapter, check_tokenizer, find_base_model
from prompt_tuning.models.loading import load_base_model, load_config, load_tokenizer
from prompt_tuning.models.prompts import load_adapter
from prompt_tuning.models.several_prompts import check_kinds, load_prompts
from prompt_tuning.recipe.drafts import read_switches
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.answers import Answer, Question, Task, answer_batch, read_question
from prompt_tuning.runs.named_runs import named_runs
from prompt_tuning.runs.trained_text import saved_text
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.templates.template import Template

_LOCK = threading.Lock()
_LOCKS: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()


@dataclass(frozen=True)
class Predictor:
    """A model with its soft prompt, template and budget, as a run's folder describes them. Threads may share one.

    The keys and values of prompts are kept from call to call. They are computed again after weights, the device or the
    numbers of autocast have changed; a change in place of the `.data` of the base model's weights is not seen.

    Args:
        model: the base model with its adapters, or a whole trained model.
        encoder: writes rows as token ids.
        generation_kwargs: the arguments of `generate`, as `Recipe.decoding` gives them.
        choice_normalization: the number by which the log-likelihood of a closed question's choice is divided.
        data: its column settings say what rows may call their columns, as in training.
        autocast: the numbers to compute in, those of the run's own evaluation; None for those of the weights.
        tasks: the runs by their names if several were loaded. A row's column `task` chooses one. The fields above are
            those of the first.
    """

    model: PeftModel | PreTrainedModel
    encoder: Encoder
    generation_kwargs: dict[str, Any]
    choice_normalization: Normalization = "none"
    data: DataArguments = field(default_factory=DataArguments)
    autocast: torch.dtype | None = None
    tasks: Mapping[str, Task] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        adapter: str | Path | Sequence[str | Path],
        model_name_or_path: str | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> Predictor:
        """Load what `prompt-tuning train` wrote.

        Args:
            adapter: the run's folder or its hub id, or several of them, each also as NAME=RUN, whose prompts then
                stand before one base model. The name is that of the folder.
            model_name_or_path: the base model, if it is no longer where it was.
            trust_remote_code: run the Python code that is with the model. The run's recipe does not decide it, because
                a stranger may have written it.

        Raises:
            AdapterError: this is not such a folder, the adapter is of another model, several runs do not share a base
                model or a kind of prompt, or the hub does not have it.
            ModelError: the base model is not found, or its generation config does not hold for rows of a batch.
        """
        several = not isinstance(adapter, str | Path)
        if isinstance(adapter, str | Path):
            named = {"": RunFolder(adapter_folder(adapter))}
        else:
            named = named_runs(map(str, adapter))
        runs = _read_runs(list(named.values()), model_name_or_path, trust_remote_code=trust_remote_code)
        first = runs[0]
        adapted = [(run.folder.path, run.adapter) for run in runs]
        if several:
            check_kinds(adapted)
        model = load_base_model(first.recipe.model, first.config).to(first.recipe.training.device)
        for run in runs:
            add_end_tokens(model, run.encoder.tokenizer)
        adapters: Sequence[str | None] = [None]
        if several:
            model, adapters = load_prompts(model, adapted)
        elif first.adapter is not None:
            model = load_adapter(model, first.folder.path, config=first.adapter)
        tasks = [run.task(model, name) for run, name in zip(runs, adapters, strict=True)]
        task = tasks[0]
        return cls(
            model,
            task.encoder,
            dict(task.generation_kwargs),
            task.choice_normalization,
            task.data,
            task.autocast,
            dict(zip(named, tasks, strict=True)) if several else {},
        )

    def __call__(
        self,
        rows: Rows,
        batch_size: int = ROWS_AT_ONCE,
        batch_tokens: int = TOKENS_AT_ONCE,
    ) -> list[str]:
        """Return what the model writes for every row, or the choice that it takes; arguments as for `stream`.

        Raises:
            TemplateError: a row lacks a column or does not fit its budget; the message has its number, from 0.
        """
        return [answer.text for answer in self.stream(rows, batch_size, batch_tokens)]

    def stream(
        self,
        rows: Rows,
        batch_size: int = ROWS_AT_ONCE,
        batch_tokens: int = TOKENS_AT_ONCE,
        *,
        with_scores: bool = False,
    ) -> Iterator[Answer]:
        """Yield the answer to each row in their order, as soon as its batch is computed.

        Args:
            rows: the rows, of any number: dicts, a Dataset, or a data frame of pandas.
            batch_size: the most rows that are computed together.
            batch_tokens: the most tokens that are computed together, padding and new tokens included.
            with_scores: also compute the score of each answer.

        Raises:
            DataError: a row names no task, or another one than those that were loaded.
            TemplateError: a row lacks a column or does not fit its budget; the message has its number, from 0.
        """
        for batch in streamed_batches(self._questions(rows), self.length, batch_size, batch_tokens):
            yield from self.answers(batch, with_scores=with_scores)

    def _questions(self, rows: Rows) -> Iterator[Question]:
        for number, row in enumerate(plain_rows(rows)):
            try:
                yield self.read(row, f"row {number}")
            except TemplateError as error:
                raise type(error)(f"row {number}: {error}") from error

    @cached_property
    def all_tasks(self) -> Mapping[str, Task]:
        """The tasks by their names; the only one has the name ""."""
        if self.tasks:
            return self.tasks
        return {"": Task(self.encoder, self.generation_kwargs, self.choice_normalization, self.data, self.autocast)}

    def task_name(self, row: Mapping[str, Any], origin: str = "a row") -> str:
        """Return the name of a row's task.

        Args:
            row: the row.
            origin: what an error calls the row.

        Raises:
            DataError: several runs were loaded, and the row names none of them.
        """
        if not self.tasks:
            return ""
        name = row.get("task")
        if not isinstance(name, str) or name not in self.tasks:
            problem = "no column 'task'" if name is None else f"the task {name!r} is not loaded"
            raise DataError(f"{origin}: {problem}. Give it one of {', '.join(self.tasks)}.")
        return name

    def read(self, row: dict[str, Any], origin: str = "a row") -> Question:
        """Return a row as token ids.

        Args:
            row: the row.
            origin: what an error about its task calls the row.

        Raises:
            DataError: the row names no task of several.
            TemplateError: the row lacks a column or does not fit its budget.
        """
        name = self.task_name(row, origin)
        task = self.all_tasks[name]
        return read_question(task.encoder, task.data, row, name)

    def length(self, question: Question) -> int:
        """Return how many tokens a row takes in a batch, with its prompt and its new tokens or choices."""
        task = self.all_tasks[question.task]
        length = len(question.source)
        if has_prompt(self.model):
            length += self.model.peft_config[task.adapter or self.model.active_adapter].num_virtual_tokens
        if question.choice_ids:
            return length + sum(map(len, question.choice_ids)) + len(question.choice_ids)
        return (length + task.generation_kwargs.get("max_new_tokens", 0)) * task.generation_kwargs.get("num_beams", 1)

    def answer(self, questions: Sequence[Question]) -> list[str]:
        """Return what the model writes after every source, or the choice that it takes; they are one batch."""
        return [answer.text for answer in self.answers(questions)]

    @torch.inference_mode()
    def answers(self, questions: Sequence[Question], *, with_scores: bool = False) -> list[Answer]:
        """Return the answers to questions, which are one batch."""
        with _lock_of(self.model):
            return answer_batch(self.model, self.all_tasks, questions, with_scores=with_scores)


@dataclass(frozen=True)
class _Run:
    """What is read of a run before its base model."""

    folder: RunFolder
    adapter: PeftConfig | None
    recipe: Recipe
    config: PretrainedConfig
    encoder: Encoder

    @classmethod
    def read(cls, folder: RunFolder, base: str | None, *, trust_remote_code: bool, renamed: bool) -> _Run:
        """Read a run, and check that it is one of its base model; the arguments are those of `_read_runs`."""
        # A run that trained every weight is itself a model.
        adapter = None if folder.model_config.is_file() else load_adapter_config(folder.path)
        if base is None:
            base = str(folder.path) if adapter is None else find_base_model(adapter, folder.path)
        recipe, template = read_run(folder, base, trust_remote_code=trust_remote_code)
        config = load_config(recipe.model)
        tokenizer = load_tokenizer(recipe.model, recipe.data.source_lang, recipe.data.target_lang)
        if adapter is not None:
            check_adapter(adapter, folder.path, config, revision=recipe.model.model_revision, renamed=renamed)
            check_tokenizer(folder.path, tokenizer, renamed=renamed)
        encoder = run_encoder(recipe, template, tokenizer, config, adapter)
        check_embedded([tokenizer.pad_token_id, tokenizer.eos_token_id], tokenizer, encoder.num_embeddings)
        return cls(folder, adapter, recipe, config, encoder)

    def task(self, model: PeftModel | PreTrainedModel, adapter: str | None) -> Task:
        """Return how the rows of the run are answered, by an adapter of a model that has several."""
        tokenizer = self.encoder.tokenizer
        generation_kwargs = self.recipe.decoding | target_language(tokenizer)
        text_settings(model, tokenizer, self.encoder.template.stop, generation_kwargs)
        normalization = self.recipe.prompt.choice_normalization
        autocast = _autocast_dtype(self.folder, self.recipe.training.device)
        return Task(self.encoder, generation_kwargs, normalization, self.recipe.data, autocast, adapter)


def _read_runs(folders: Sequence[RunFolder], base: str | None, *, trust_remote_code: bool) -> list[_Run]:
    """Return what is read of runs that share a base model.

    Args:
        folders: the runs.
        base: the base model, if it is no longer where it was.
        trust_remote_code: run the Python code that is with the model.

    Raises:
        AdapterError: a run cannot be read, is of another base model than the first, or has no prompt of its kind.
    """
    switches = {"trust_remote_code": trust_remote_code, "renamed": bool(base)}
    runs = [_Run.read(folders[0], base, **switches)]
    errors = ErrorList()
    for folder in folders[1:]:
        model = runs[0].recipe.model
        with errors.collect():
            run = _Run.read(folder, str(model.model_name_or_path), **switches)
            loaded_as = run.recipe.model.dtype, run.recipe.model.quantization_config
            if loaded_as != (model.dtype, model.quantization_config):
                raise AdapterError(
                    f"{folder.path}: its model was loaded in other numbers than that of {folders[0].path} (dtype, "
                    "quantization_config). Load them apart."
                )
            runs.append(run)
    errors.raise_all()
    return runs


def read_run(run: RunFolder, model_name_or_path: str, *, trust_remote_code: bool) -> tuple[Recipe, Template]:
    """Return the recipe and the template of a run's folder, or raise an AdapterError."""
    missing = [file.name for file in (run.recipe, run.template) if not file.is_file()]
    if missing:
        raise AdapterError(
            f"{run.path}: no {' and no '.join(missing)} there, so its template is unknown; use a folder that train "
            "wrote, or copy recipe.yaml and template.yaml of such a folder to it"
        )
    overrides = [f"--model_name_or_path={model_name_or_path}", f"--trust_remote_code={trust_remote_code}"]
    recipe = load_recipe(run.recipe, overrides, for_prediction=True)
    template = Template.load(run.template)
    if recipe.prompt.num_demonstrations and recipe.prompt.demonstration_selection == "bm25":
        raise AdapterError(
            f"{run.path}: its demonstrations are the training rows nearest to each "
            "row (bm25), and a run's folder holds no training rows; use `prompt-tuning evaluate` with your rows as "
            "test_file, or train with demonstration_selection: random or balanced"
        )
    return recipe, template


def run_encoder(
    recipe: Recipe,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    adapter: PeftConfig | None = None,
) -> Encoder:
    """Return the encoder of a finished run, whose template has the demonstrations that were chosen.

    Args:
        recipe: the run's recipe.
        template: the run's template.
        tokenizer: the tokenizer of its base model.
        config: the configuration of its base model.
        adapter: the configuration of its adapter, which may hold trained text.
    """
    num_chosen = min(recipe.prompt.num_demonstrations, len(template.demonstrations))
    encoder = replace(Encoder.from_recipe(recipe, template, tokenizer, config), num_chosen=num_chosen)
    return encoder if adapter is None else with_saved_text(encoder, adapter, recipe.path.parent)


def with_saved_text(encoder: Encoder, adapter: PeftConfig, name: Path) -> Encoder:
    """Return an encoder that writes the trained text of an adapter, whose folder messages name, by its trained ids."""
    return replace(encoder, trained_text=saved_text(adapter, name, encoder))


def _lock_of(model: torch.nn.Module) -> threading.RLock:
    """Return the lock of all adapters of a base model, which PEFT's `generate` changes while it runs."""
    with _LOCK:
        return _LOCKS.setdefault(get_base(model), threading.RLock())


def _autocast_dtype(run: RunFolder, device: torch.device) -> torch.dtype | None:
    """Return the numbers that a run was evaluated in; None on a CPU for a GPU's run, which predicts in float32."""
    settings = read_switches(run.recipe, ("use_cpu", "bf16", "fp16"))
    if device.type == "cpu" and not settings["use_cpu"]:
        return None
    return autocast_dtype(settings)
