"""Rows in, rows with their prediction out, in the order of the input."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from prompt_tuning.arguments.arguments import LOCAL_FORMATS, DataArguments
from prompt_tuning.data.files import load_file, utf8_lines
from prompt_tuning.data.loading import with_standard_columns
from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.target_language import target_language
from prompt_tuning.engine.dispatch import autocast_dtype, autocasting, get_base
from prompt_tuning.engine.generation import check_one_sequence
from prompt_tuning.engine.likelihood import choose
from prompt_tuning.engine.shared_prefix import compute_prompt_once
from prompt_tuning.engine.stop_texts import add_end_token, decode, stopping
from prompt_tuning.errors import AdapterError, DataError, RecipeError, TemplateError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.loading import load_base_model, load_config, load_tokenizer
from prompt_tuning.models.prompts import check_adapter, load_adapter, load_adapter_config
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.support.files import atomic_write
from prompt_tuning.support.yaml_files import read_yaml
from prompt_tuning.templates.template import Template

READ = LOCAL_FORMATS.keys()
READ_WHOLE = READ - {".jsonl"}  # as train does
NOT_READ = {".tsv", ".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc", ".gz", ".zip"}  # tables, and no plain text


_LOCK = threading.Lock()
_LOCKS: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()


@dataclass(frozen=True)
class Question:
    """A row's source, and for a closed question its choices as texts and as ids."""

    source: list[int]
    choices: Sequence[str] = ()
    choice_ids: Sequence[list[int]] = ()


@dataclass(frozen=True)
class Predictor:
    """A model with its soft prompt, template and budget: what a run's folder describes. Threads may share one.

    Args:
        generation_kwargs: for `generate`, as `Recipe.decoding` gives them.
        choice_normalization: what a choice's log-likelihood is divided by, where questions are closed.
        data: whose column settings say what rows may call their columns, as in training.
        autocast: the numbers that are computed with, as the run's own evaluation did; None for those of the weights.
    """

    model: PeftModel | PreTrainedModel
    encoder: Encoder
    generation_kwargs: dict[str, Any]
    choice_normalization: str = "none"
    data: DataArguments = field(default_factory=DataArguments)
    autocast: torch.dtype | None = None

    @classmethod
    def load(cls, adapter: str | Path, model_name_or_path: str | None = None) -> Predictor:
        """From the folder that `prompt-tuning train` wrote, or its hub id.

        A recipe that was downloaded cannot ask for trust_remote_code: it is somebody else's.

        Raises:
            AdapterError: not such a folder, an adapter of another model, or a hub id that cannot be had.
            ModelError: the base model is not found.
        """
        downloaded, adapter = not Path(adapter).is_dir(), adapter_folder(adapter)
        full = (adapter / "config.json").is_file()  # a run that trained every weight is a model itself
        adapter_config = None if full else load_adapter_config(adapter)
        for name in ("recipe.yaml", "template.yaml"):
            if not (adapter / name).is_file():
                raise AdapterError(
                    f"{adapter}: no {name} there, so its template is unknown; use a folder that train wrote"
                )
        trained_on = adapter if full else adapter_config.base_model_name_or_path
        overrides = [f"--model_name_or_path={model_name_or_path or trained_on}"]
        overrides += ["--trust_remote_code=false"] if downloaded else []
        recipe = load_recipe(adapter / "recipe.yaml", overrides, for_prediction=True)
        template = Template.load(adapter / "template.yaml")
        if (count := recipe.prompt.num_demonstrations) and recipe.prompt.demonstration_selection == "bm25":
            raise AdapterError(
                f"{adapter}: its {count} demonstrations are the training rows nearest to each row (bm25), and a run's "
                "folder holds no training rows; use `prompt-tuning evaluate` with your rows as test_file, or "
                "train with demonstration_selection: random or balanced"
            )
        config = load_config(recipe.model)
        if not full:
            check_adapter(adapter_config, adapter, config, renamed=model_name_or_path is not None)
        tokenizer = load_tokenizer(recipe.model, recipe.data.source_lang, recipe.data.target_lang)
        encoder = Encoder.from_recipe(recipe, template, tokenizer, is_encoder_decoder=config.is_encoder_decoder)
        encoder = replace(encoder, num_chosen=min(count, len(template.demonstrations)))
        device = recipe.training.device
        base = load_base_model(recipe.model, config).to(device)
        add_end_token(base, tokenizer)
        model = base if full else load_adapter(base, adapter, config=adapter_config)
        decoding = recipe.decoding | target_language(tokenizer)
        autocast = _autocast(adapter / "recipe.yaml", device.type)
        return cls(model, encoder, decoding, recipe.prompt.choice_normalization, recipe.data, autocast)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """What the model writes for each row, or the choice that it takes; one batch.

        Raises:
            TemplateError: a row lacks a column or does not fit its budget.
        """
        return self.answer([self.read(row)[0] for row in rows])

    def read(self, row: dict[str, Any]) -> tuple[Question, int, int]:
        """A row as token ids, and how many tokens and demonstrations did not fit; raises as calling does."""
        row = with_standard_columns(row, self.data)
        encoder, left_out = self.encoder.fit_demonstrations(row)
        ids, cut, text = encoder.source(row)
        return Question(ids, *(encoder.choices(row, text, ids) if encoder.closed else ())), cut, left_out

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question]) -> list[str]:
        """What the model writes after each source, or the choice that it takes; one batch, in its order."""
        sources = [question.source for question in questions]
        if not self.encoder.closed or not sources:
            return self.write(sources)
        texts, ids = [each.choices for each in questions], [each.choice_ids for each in questions]
        with _lock_of(self.model), self.autocasting():
            best = choose(self.model, self.encoder.tokenizer, sources, texts, ids, self.choice_normalization)
        return [choices[number] for choices, number in zip(texts, best, strict=True)]

    @torch.inference_mode()
    def write(self, sources: Sequence[list[int]]) -> list[str]:
        """What the model writes after each source of token ids, without white space around it or what `stop` ends."""
        if not sources:
            return []
        tokenizer, stop = self.encoder.tokenizer, self.encoder.template.stop
        if self.encoder.is_encoder_decoder:
            batch = tokenizer.pad({"input_ids": list(sources)}, return_tensors="pt", padding_side="right")
        else:
            batch = pad_left(sources, tokenizer.pad_token_id)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        given = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id} | self.generation_kwargs
        check_one_sequence(get_base(self.model), given)
        with _lock_of(self.model), self.autocasting():
            generated = self.model.generate(**batch, **stopping(tokenizer, stop), **given)
        start = 1 if self.encoder.is_encoder_decoder else batch["input_ids"].shape[1]
        return decode(generated[:, start:].tolist(), tokenizer, stop)

    def autocasting(self) -> torch.autocast:
        """Within it the model computes in the run's own numbers."""
        return autocasting(self.model.device.type, self.autocast)


def _lock_of(model: torch.nn.Module) -> threading.RLock:
    """One for all that share a base model, which PEFT's `generate` changes while it runs."""
    with _LOCK:
        return _LOCKS.setdefault(get_base(model), threading.RLock())


def _autocast(recipe: Path, device: str) -> torch.dtype | None:
    """The numbers that a run was evaluated with; None on a CPU for a GPU's run, which predicts in float32."""
    settings = read_yaml(recipe, RecipeError)
    if device == "cpu" and not settings.get("use_cpu"):
        return None
    return autocast_dtype(settings)


def predict(
    adapter: str, source: str = "-", output: str = "-", batch_size: int = 8, model_name_or_path: str | None = None
) -> None:
    """Predict for every row of a file or of standard input, a batch at a time.

    Args:
        source: JSON Lines, plain text with one source a line, or a json, csv or parquet file as `train` reads it.

    Raises:
        DataError: a bad row, with its line. No output file is left then.
    """
    if source != "-" and not Path(source).exists():
        raise DataError(f"--input {source}: no such file")
    suffix, known = Path(source).suffix, ", ".join(sorted(READ))
    if suffix.lower() in NOT_READ or (suffix not in READ and suffix.lower() in READ_WHOLE):
        raise DataError(f"--input {source}: not read; save it as one of {known}, in small letters, or as plain text")
    for name, path in (("--input", source), ("--output", output)):
        if Path(path).is_dir():
            raise DataError(f"{name} {path}: a folder; name a file")
    transformers_logging.disable_progress_bar()
    predictor = Predictor.load(adapter, model_name_or_path)
    with ExitStack() as files:
        if Path(source).suffix in READ_WHOLE:
            rows = ((f"{source}, row {number}", row) for number, row in enumerate(load_file(Path(source)), 1))
        else:
            stream = sys.stdin.buffer if source == "-" else files.enter_context(Path(source).open("rb"))
            rows = _rows(utf8_lines(stream, _name(source)), predictor.encoder, source)
        file = sys.stdout if output == "-" else files.enter_context(atomic_write(Path(output)))
        files.enter_context(predictor.autocasting())
        files.enter_context(compute_prompt_once(predictor.model))
        _predict_rows(predictor, rows, file, batch_size, source)


def _predict_rows(
    predictor: Predictor, rows: Iterator[tuple[str, dict[str, Any]]], file: TextIO, batch_size: int, source: str
) -> None:
    count, cut_rows, lacking_rows, replaced = 0, 0, 0, 0
    while batch := list(islice(rows, batch_size)):
        questions = []
        for origin, row in batch:
            template, columns = predictor.encoder.template, with_standard_columns(row, predictor.data).keys()
            if missing := sorted(template.source_columns - columns):
                names = ", ".join(map(repr, row))
                raise DataError(
                    f"template {template.name} reads the column {missing[0]!r}, and {origin}, has {names}; "
                    "rename one, or train with the setting that names it"
                )
            try:
                question, cut, left_out = predictor.read(row)
            except TemplateError as error:
                raise DataError(f"{origin}: {error}") from error
            questions.append(question)
            cut_rows += cut > 0
            lacking_rows += left_out > 0
            replaced += "prediction" in row
        for (_, row), prediction in zip(batch, predictor.answer(questions), strict=True):
            file.write(json.dumps(row | {"prediction": prediction}, ensure_ascii=False, default=str) + "\n")
        file.flush()
        count += len(batch)
    if count == 0:
        raise DataError(f"{_name(source)}: no rows")
    if replaced:
        print(f"{replaced} of {count} rows had a column 'prediction', which is replaced", file=sys.stderr)
    if cut_rows:
        print(f"{cut_rows} of {count} rows were cut to fit max_source_tokens", file=sys.stderr)
    if lacking_rows:
        print(f"{lacking_rows} of {count} rows have fewer demonstrations, to fit max_source_tokens", file=sys.stderr)


def _rows(lines: Iterator[tuple[int, str]], encoder: Encoder, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of JSON Lines, or of plain text with one source a line, and where each stands; the first tells which."""
    is_json, empty = True if source.endswith(".jsonl") else None, None
    for number, line in lines:
        origin = f"{_name(source)}, line {number}"
        if not line.strip():
            empty = empty or origin
        elif is_json is None:
            if re.match(r"\s*\[\s*(\{|$)", line):
                raise DataError(f"{origin}: a JSON array; give an object a line, or name the file .json")
            is_json = line.lstrip().startswith("{")
        if is_json is False and empty:
            raise DataError(f"{empty}: empty; plain text needs one source on every line")
        if not line.strip():
            continue
        if not is_json:
            yield origin, _text_row(line.rstrip("\r\n"), encoder)
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise DataError(f"{origin}: not JSON: {error.msg} (column {error.colno})") from None
        except UnicodeEncodeError as error:
            raise DataError(f"{origin}: half a character, {error.object[error.start]!r}, is no text") from None
        if not isinstance(row, dict):
            raise DataError(f"{origin}: expected a JSON object, found {type(row).__name__}")
        yield origin, row


def _text_row(line: str, encoder: Encoder) -> dict[str, Any]:
    columns = sorted(encoder.template.source_columns)
    if len(columns) != 1:
        raise DataError(
            f"plain text has one column and template {encoder.template.name} reads {len(columns)} "
            f"({', '.join(columns)}); "
            f'give JSON Lines, as {{"{columns[0]}": "..."}}'
        )
    if columns == ["translation"]:
        return {"translation": {(encoder.languages or {})["source_lang"]: line}}
    return {columns[0]: line}


def _name(source: str) -> str:
    return "standard input" if source == "-" else source
