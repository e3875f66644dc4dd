"""Predict with a trained run: its model, soft prompt, template and decoding."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftConfig, PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prompt_tuning.arguments.arguments import DataArguments
from prompt_tuning.data.loading import with_standard_columns
from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.encoding.decoding import decode_to_limit
from prompt_tuning.encoding.embedded import check_embedded
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.target_language import target_language
from prompt_tuning.engine.dispatch import autocast_dtype, autocasting, get_base
from prompt_tuning.engine.generation import generate_padded
from prompt_tuning.engine.likelihood import Normalization, choose
from prompt_tuning.engine.shared_prefix import reuse_prompts
from prompt_tuning.engine.stop_texts import add_end_tokens, text_settings
from prompt_tuning.errors import AdapterError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.models.base_model import check_tokenizer, find_base_model
from prompt_tuning.models.loading import load_base_model, load_config, load_tokenizer
from prompt_tuning.models.prompts import check_adapter, load_adapter
from prompt_tuning.recipe.drafts import read_switches
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.trained_text import saved_text
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.templates.template import Template

_LOCK = threading.Lock()
_LOCKS: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()


@dataclass(frozen=True)
class Question:
    """A row as token ids.

    Args:
        source: the token ids of its source.
        choices: the texts that a closed question may be answered with.
        choice_ids: the token ids of every choice, as they follow the source.
        cut_tokens: the number of tokens that were cut to fit the budget.
        omitted_demonstrations: the number of demonstrations that do not fit the budget.
        untrained_tokens: the number of tokens of the trained text that no training row has.
    """

    source: list[int]
    choices: Sequence[str] = ()
    choice_ids: Sequence[list[int]] = ()
    cut_tokens: int = 0
    omitted_demonstrations: int = 0
    untrained_tokens: int = 0


def read_question(encoder: Encoder, data: DataArguments, row: dict[str, Any]) -> Question:
    """Return a row as token ids.

    Args:
        encoder: writes it.
        data: says what the row may call its columns.
        row: the row.

    Raises:
        TemplateError: the row lacks a column or does not fit its budget.
    """
    row = with_standard_columns(row, data)
    encoder, omitted = encoder.fit_demonstrations(row)
    source = encoder.cut_source(row)
    choices, choice_ids = encoder.choices(row, source.text, source.ids) if encoder.closed else ([], [])
    return Question(source.ids, choices, choice_ids, source.cut_tokens, omitted, source.untrained_tokens)


@dataclass(frozen=True)
class Predictor:
    """A model with its soft prompt, template and budget, as a run's folder describes them. Threads may share one.

    Args:
        model: the base model with its adapter, or a whole trained model.
        encoder: writes rows as token ids.
        generation_kwargs: the arguments of `generate`, as `Recipe.decoding` gives them.
        choice_normalization: the number by which the log-likelihood of a closed question's choice is divided.
        data: its column settings say what rows may call their columns, as in training.
        autocast: the numbers to compute in, those of the run's own evaluation; None for those of the weights.
    """

    model: PeftModel | PreTrainedModel
    encoder: Encoder
    generation_kwargs: dict[str, Any]
    choice_normalization: Normalization = "none"
    data: DataArguments = field(default_factory=DataArguments)
    autocast: torch.dtype | None = None

    @classmethod
    def load(
        cls, adapter: str | Path, model_name_or_path: str | None = None, *, trust_remote_code: bool = False
    ) -> Predictor:
        """Load what `prompt-tuning train` wrote.

        Args:
            adapter: the run's folder or its hub id.
            model_name_or_path: the base model, if it is no longer where it was.
            trust_remote_code: run the Python code that is with the model. The run's recipe does not decide it, because
                a stranger may have written it.

        Raises:
            AdapterError: this is not such a folder, the adapter is of another model, or the hub does not have it.
            ModelError: the base model is not found, or its generation config does not hold for rows of a batch.
        """
        run = RunFolder(adapter_folder(adapter))
        # A run that trained every weight is itself a model.
        adapter_config = None if run.model_config.is_file() else load_adapter_config(run.path)
        renamed = bool(model_name_or_path)
        if model_name_or_path:
            base = model_name_or_path
        elif adapter_config is None:
            base = str(run.path)
        else:
            base = find_base_model(adapter_config, run.path)
        recipe, template = read_run(run, base, trust_remote_code=trust_remote_code)
        config = load_config(recipe.model)
        tokenizer = load_tokenizer(recipe.model, recipe.data.source_lang, recipe.data.target_lang)
        if adapter_config is not None:
            check_adapter(adapter_config, run.path, config, revision=recipe.model.model_revision, renamed=renamed)
            check_tokenizer(run.path, tokenizer, renamed=renamed)
        encoder = run_encoder(recipe, template, tokenizer, config, adapter_config)
        check_embedded([tokenizer.pad_token_id, tokenizer.eos_token_id], tokenizer, encoder.num_embeddings)
        model = load_base_model(recipe.model, config).to(recipe.training.device)
        add_end_tokens(model, tokenizer)
        if adapter_config is not None:
            model = load_adapter(model, run.path, config=adapter_config)
        generation_kwargs = recipe.decoding | target_language(tokenizer)
        text_settings(model, tokenizer, template.stop, generation_kwargs)
        return cls(
            model,
            encoder,
            generation_kwargs,
            recipe.prompt.choice_normalization,
            recipe.data,
            _autocast_dtype(run, recipe.training.device),
        )

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Return what the model writes for every row, or the choice that it takes; the rows are one batch.

        Raises:
            TemplateError: a row lacks a column or does not fit its budget.
        """
        return self.answer([self.read(row) for row in rows])

    def read(self, row: dict[str, Any]) -> Question:
        """Return a row as token ids.

        Raises:
            TemplateError: the row lacks a column or does not fit its budget.
        """
        return read_question(self.encoder, self.data, row)

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question]) -> list[str]:
        """Return what the model writes after every source, or the choice that it takes; they are one batch."""
        return self.answer_to_limit(questions)[0]

    @torch.inference_mode()
    def answer_to_limit(self, questions: Sequence[Question]) -> tuple[list[str], list[bool]]:
        """Return what `answer` does, and for each text whether only the limit of new tokens ended it."""
        sources = [question.source for question in questions]
        if not self.encoder.closed or not sources:
            return self._write_to_limit(sources)
        texts = [question.choices for question in questions]
        ids = [question.choice_ids for question in questions]
        with self._computing():
            best = choose(
                self.model, self.encoder.tokenizer, sources, texts, ids, normalization=self.choice_normalization
            )
        return [choices[number] for choices, number in zip(texts, best, strict=True)], [False] * len(sources)

    @torch.inference_mode()
    def write(self, sources: Sequence[list[int]]) -> list[str]:
        """Return what the model writes after every source of token ids, stripped and cut at the template's `stop`."""
        return self._write_to_limit(sources)[0]

    def _write_to_limit(self, sources: Sequence[list[int]]) -> tuple[list[str], list[bool]]:
        if not sources:
            return [], []
        tokenizer = self.encoder.tokenizer
        settings = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id} | self.generation_kwargs
        with self._computing():
            return generate_texts(self.model, tokenizer, sources, self.encoder.template.stop, **settings)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Hold the model, compute in the run's own numbers, and keep the prompt's cache for further calls."""
        with _lock_of(self.model), self.autocasting(), reuse_prompts(self.model):
            yield

    def autocasting(self) -> torch.autocast:
        """Return the context in which the model computes in the run's own numbers."""
        return autocasting(self.model.device.type, self.autocast)


def generate_texts(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    stop: Sequence[str],
    **settings: Any,
) -> tuple[list[str], list[bool]]:
    """Generate one batch, and return the text after every source and whether only the limit of tokens ended it.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
        sources: the token ids of every source.
        stop: texts that a generated text ends before.
        settings: other arguments of `generate`.
    """
    if model.config.is_encoder_decoder:
        batch = tokenizer.pad({"input_ids": list(sources)}, return_tensors="pt", padding_side="right")
        start = 1
    else:
        batch = pad_left(sources, tokenizer.pad_token_id)
        start = batch["input_ids"].shape[1]
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    settings |= text_settings(model, tokenizer, stop, settings)
    generated = generate_padded(model, **batch, **settings)
    return decode_to_limit(generated[:, start:].tolist(), tokenizer, stop)


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
