"""Prepare a recipe for its model: load tokenizer, template, metrics and rows, and encode the rows.

All of it comes before a model's weights are read, and everything that is wrong is reported at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from prompt_tuning.arguments.data_args import SPLITS
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.data.leakage import count_leaks
from prompt_tuning.data.loading import load_splits, row_origin, split_origin
from prompt_tuning.encoding.dataset import EncodingReport, encode
from prompt_tuning.encoding.decoding import check_stop
from prompt_tuning.encoding.demonstrations import Demonstrations
from prompt_tuning.encoding.embedded import check_embedded
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.streaming import StreamReport, encode_stream
from prompt_tuning.encoding.trained_text import TrainedText
from prompt_tuning.errors import DataError, ErrorList
from prompt_tuning.metrics.loading import load_metrics
from prompt_tuning.metrics.scores import MetricFunction
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.models.base_model import check_adapter, check_tokenizer
from prompt_tuning.models.initialization import initial_ids, initial_text, prompt_length
from prompt_tuning.models.loading import check_method, load_config, load_tokenizer
from prompt_tuning.models.quantization import quantization_config
from prompt_tuning.recipe.automatic import naming_choice
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs import checks
from prompt_tuning.runs.continued_adapter import check_adapter_settings
from prompt_tuning.runs.trained_text import needs_training_rows, text_of_run
from prompt_tuning.templates.template import Template

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A recipe, ready for its model.

    Args:
        recipe: the recipe.
        config: the model's configuration.
        tokenizer: the model's tokenizer.
        encoder: writes rows as token ids. Its template ends with the demonstrations that every row is shown.
        score: the recipe's metrics.
        num_virtual_tokens: P; 0 for a method without a prompt.
        init_ids: the tokens of the text that the prompt starts from; None if it starts from no text.
        rows: the rows of every split, as they were read.
        encoded: the rows of every split, as token ids.
        teacher_rows: the training rows, encoded with teacher_template; None without one.
        reports: what encoding did to every split.
        leakage: for every evaluated split, the rows that are also in the training split or in a demonstration.
    """

    recipe: Recipe
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    score: MetricFunction
    num_virtual_tokens: int
    init_ids: list[int] | None
    rows: DatasetDict
    encoded: dict[str, Dataset | IterableDataset]
    teacher_rows: Dataset | None
    reports: dict[str, EncodingReport | StreamReport]
    leakage: dict[str, dict[str, Any]]

    @property
    def template(self) -> Template:
        """The template, with the demonstrations that every row is shown."""
        return self.encoder.template

    @property
    def trained_text(self) -> TrainedText | None:
        """The tokens of the template that have trained ids in the encoded rows; None without trained text."""
        return self.encoder.trained_text

    def hard_prompt_rows(self, split: str) -> Dataset:
        """Return the encoded rows of a split with the ids of the ordinary hard prompt."""
        rows = self.encoded[split]
        return self.trained_text.ordinary_rows(rows) if self.trained_text else rows

    @property
    def last_split(self) -> str:
        """The split that a finished run is evaluated on."""
        return "test" if "test" in self.encoded else "validation"


def score_of(recipe: Recipe) -> MetricFunction:
    """Load the recipe's metrics, or those of its task, for the language of its targets."""
    return load_metrics(
        recipe.metrics,
        language=recipe.data.metric_language,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def prepare_run(recipe: Recipe) -> Prepared:
    """Prepare the splits that `train` needs.

    Raises:
        PromptTuningError: as `prepare` does; or a split is missing.
    """
    if recipe.choice:
        logger.info(recipe.choice)
    prepared = prepare(recipe, SPLITS if METHODS[recipe.prompt.method].trains else SPLITS[1:])
    checks.check_splits(recipe, prepared.encoded)
    return prepared


def prepare(recipe: Recipe, splits: tuple[str, ...], adapter: str | None = None) -> Prepared:
    """Load and encode the splits that the recipe has, out of `splits`.

    Args:
        recipe: the recipe of one task.
        splits: train, validation, test, or some of them.
        adapter: the folder or hub id of a saved adapter to evaluate, whose trained text the rows get.

    Raises:
        PromptTuningError: everything that is wrong with model name, template, prompt, metrics and rows, a line each.
    """
    with naming_choice(recipe):
        return _prepare(recipe, splits, adapter)


def _prepare(recipe: Recipe, splits: tuple[str, ...], adapter: str | None) -> Prepared:
    checks.check_preparable(recipe, splits)
    config, tokenizer, template, score, loaded = _load(recipe, splits)
    rows = DatasetDict({split: loaded[split] for split in splits if split in loaded})
    prompt = recipe.prompt
    errors = ErrorList()

    encoder = Encoder.from_recipe(recipe, template, tokenizer, config)
    demonstrations = None
    with errors.collect():
        demonstrations = _choose_demonstrations(recipe, encoder, loaded)
    few_shot = demonstrations.encoder if demonstrations else encoder
    # A prompt that starts from the demonstrations replaces them, so that rows need not show them again.
    replaces_demonstrations = prompt.init == "template" and METHODS[prompt.method].takes_init
    with errors.collect():
        source = few_shot if replaces_demonstrations else encoder
        init_ids, num_virtual_tokens = _initial_prompt(recipe, config, source, rows.get("train"))
        _check_prompt(recipe, config, encoder, init_ids, num_virtual_tokens)

    encoder = few_shot
    if replaces_demonstrations:
        encoder = replace(few_shot, template=replace(few_shot.template, demonstrations=()), num_chosen=0)
    with errors.collect():
        encoder = replace(encoder, trained_text=text_of_run(recipe, encoder, loaded, demonstrations, adapter))
        encoded, reports = _encode_splits(recipe, rows, encoder, demonstrations, score)
    teacher_rows = None
    if prompt.teacher_template and "train" in rows and not errors:
        with errors.collect():
            teacher_rows = _encode_for_teacher(recipe, config, encoder, rows["train"])
            checks.check_teacher_targets(recipe, encoded["train"], teacher_rows)
    errors.raise_all()

    text = prompt.init_text if METHODS[prompt.method].trains else None
    leakage = count_leaks(few_shot.template, few_shot.languages, rows, loaded, recipe.data, initial_text=text)
    return Prepared(
        recipe=recipe,
        config=config,
        tokenizer=tokenizer,
        encoder=encoder,
        score=score,
        num_virtual_tokens=num_virtual_tokens,
        init_ids=init_ids,
        rows=rows,
        encoded=encoded,
        teacher_rows=teacher_rows,
        reports=reports,
        leakage=leakage,
    )


def _load(
    recipe: Recipe, splits: tuple[str, ...]
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, Template, MetricFunction, DatasetDict]:
    """Load what a recipe names: the model's configuration, its tokenizer, the template, the metrics and the rows.

    Training rows are also loaded if demonstrations are chosen from them, or the tokens of trained text found in them.

    Raises:
        PromptTuningError: everything that is wrong with any of them, or with two of them together.
    """
    data, prompt = recipe.data, recipe.prompt
    errors = ErrorList()
    with errors.collect():
        config = load_config(recipe.model)
        with errors.collect():
            check_method(config, prompt.method)
        with errors.collect():
            checks.check_architecture(recipe, config)
        with errors.collect():
            tokenizer = load_tokenizer(recipe.model, data.source_lang, data.target_lang)
    with errors.collect():
        quantization_config(recipe.model)
    template = None
    with errors.collect():
        template = Template.load(str(prompt.template))
        checks.warn_of_trimmed_lines(template)
    checks.warn_of_unknown_language(data.metric_language)
    with errors.collect():
        score = score_of(recipe)
        checks.check_metrics(recipe, score)
    loaded = DatasetDict()
    with errors.collect():
        reads_training_rows = prompt.num_demonstrations or needs_training_rows(recipe)
        training_rows = ("train",) if reads_training_rows and "train" not in splits else ()
        loaded = load_splits(data, (*training_rows, *splits))
        if not loaded.keys() & set(splits):
            raise DataError(f"{recipe.path}: no {' or '.join(splits)} rows; set {splits[-1]}_file")
    if template is not None:
        with errors.collect():
            checks.check_template_columns(recipe, template, loaded)
    errors.raise_all()
    return config, tokenizer, template, score, loaded


def _choose_demonstrations(recipe: Recipe, encoder: Encoder, loaded: DatasetDict) -> Demonstrations | None:
    """Return the training rows that the recipe shows, and log their origin; None if it shows none."""
    prompt = recipe.prompt
    if not prompt.num_demonstrations:
        return None
    demonstrations = Demonstrations.choose(
        encoder, loaded["train"], prompt.num_demonstrations, prompt.demonstration_selection, recipe.training.seed
    )
    if demonstrations.fixed:
        origins = [row_origin(recipe.data, "train", number) for number in demonstrations.fixed]
        logger.info("demonstrations, which a run saves in its template.yaml: %s", "; ".join(origins))
    return demonstrations


def _initial_prompt(
    recipe: Recipe, model_config: PretrainedConfig, encoder: Encoder, train_rows: Dataset | None
) -> tuple[list[int] | None, int]:
    """Return the tokens that the prompt starts from, if it starts from a text, and the number of virtual tokens."""
    prompt = recipe.prompt
    if prompt.adapter:
        config = load_adapter_config(prompt.adapter)
        check_adapter_settings(recipe, config)
        check_adapter(config, prompt.adapter, model_config, revision=recipe.model.model_revision)
        check_tokenizer(prompt.adapter, encoder.tokenizer)
        return None, config.num_virtual_tokens if config.is_prompt_learning else 0
    if not METHODS[prompt.method].has_prompt:
        return None, 0
    text = initial_text(prompt, encoder, train_rows, recipe.training.seed)
    ids = initial_ids(text, encoder.tokenizer, prompt.init)
    length = prompt_length(prompt, ids)
    if prompt.init == "adapter":
        folder = str(prompt.init_adapter)
        revision = recipe.model.model_revision
        check_adapter(load_adapter_config(folder), folder, model_config, revision=revision, renamed=True)
    return ids, length


def _check_prompt(
    recipe: Recipe, config: PretrainedConfig, encoder: Encoder, init_ids: list[int] | None, num_virtual_tokens: int
) -> None:
    """Check that the model embeds the prompt's tokens and has the positions, and that choices are scored if set.

    Raises:
        PromptTuningError: everything that is wrong with them.
    """
    tokenizer = encoder.tokenizer
    errors = ErrorList()
    with errors.collect():
        special = [tokenizer.pad_token_id, tokenizer.eos_token_id]
        check_embedded([*special, *(init_ids or ())], tokenizer, encoder.num_embeddings)
    with errors.collect():
        checks.check_positions(recipe, config, num_virtual_tokens)
    with errors.collect():
        checks.check_frozen_tokens(recipe.prompt, num_virtual_tokens)
    with errors.collect():
        checks.check_choice_normalization(recipe, encoder)
    errors.raise_all()


def _encode_splits(
    recipe: Recipe, rows: DatasetDict, encoder: Encoder, demonstrations: Demonstrations | None, score: MetricFunction
) -> tuple[dict[str, Dataset | IterableDataset], dict[str, EncodingReport | StreamReport]]:
    """Return the encoded rows and the report of every split.

    Raises:
        PromptTuningError: everything that is wrong with the rows of any split.
    """
    encoded: dict[str, Dataset | IterableDataset] = {}
    reports: dict[str, EncodingReport | StreamReport] = {}
    errors = ErrorList()
    if "train" in rows:
        with errors.collect():
            checks.check_choice_loss(recipe, encoder)
    with errors.collect():
        check_stop(encoder.tokenizer, encoder.template.stop, encoder.template.name)
    for split in rows:
        with errors.collect():
            if isinstance(rows[split], IterableDataset):
                encoded[split], reports[split], first_rows = encode_stream(recipe, rows[split], encoder)
                checks.check_targets(recipe, split, first_rows)
                continue
            encoded[split], report = _encode_split(recipe, split, rows[split], encoder, demonstrations)
            reports[split] = report
            with errors.collect():
                checks.check_encoding(recipe, split, report)
            with errors.collect():
                checks.check_targets(recipe, split, report)
            if split != "train":
                checks.check_references(recipe, split, encoded[split], score)
                checks.check_language(recipe, split, encoded[split])
    errors.raise_all()
    return encoded, reports


def _encode_split(
    recipe: Recipe, split: str, rows: Dataset, encoder: Encoder, demonstrations: Demonstrations | None
) -> tuple[Dataset, EncodingReport]:
    training = split == "train"
    encoded, report = encode(
        rows,
        encoder,
        training=training,
        drop_overlong=recipe.prompt.drop_overlong and training,
        drop_empty=recipe.prompt.drop_empty,
        num_proc=recipe.data.preprocessing_num_workers,
        candidates=demonstrations.train if demonstrations else None,
        nearest=demonstrations.nearest(rows) if demonstrations else None,
        held_out=demonstrations.held_out() if demonstrations and training else frozenset(),
        max_new_tokens=recipe.decoding["max_new_tokens"],
    )
    if not report.problems:  # Otherwise they are reported as errors.
        logger.info("%s: %s", split, report)
    return encoded, report


def _encode_for_teacher(recipe: Recipe, config: PretrainedConfig, encoder: Encoder, rows: Dataset) -> Dataset:
    """Encode the training rows with teacher_template, which keeps only its own demonstrations.

    Raises:
        PromptTuningError: the model cannot be its own teacher, or the template does not fit the rows.
    """
    checks.check_teacher_model(recipe, config)
    template = Template.load(str(recipe.prompt.teacher_template))
    template.check_columns(rows.column_names, split_origin(recipe.data, "train"), template.training_columns)
    teacher = replace(
        encoder,
        template=template,
        max_source_tokens=recipe.prompt.max_teacher_tokens,
        source_setting="max_teacher_tokens",
        truncate=None,
        num_chosen=0,
        trained_text=None,
    )
    teacher_rows, report = encode(
        rows,
        teacher,
        training=True,
        drop_overlong=recipe.prompt.drop_overlong,
        drop_empty=recipe.prompt.drop_empty,
        num_proc=recipe.data.preprocessing_num_workers,
    )
    logger.info("train, as the teacher reads it: %s", report)
    checks.check_teacher_encoding(recipe, config, report)
    return teacher_rows
