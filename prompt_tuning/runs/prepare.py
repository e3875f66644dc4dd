"""All that can be done, and can go wrong, before a model's weights are read: tokenizer, template, rows, token ids."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from peft import PeftConfig, PeftType
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from prompt_tuning.arguments.arguments import INITIALIZED, MULTITASK, PREFIX_PLACES
from prompt_tuning.data.leakage import count_leaks
from prompt_tuning.data.loading import SPLITS, column_names, load_splits, row_origin, split_origin
from prompt_tuning.encoding.batching import source_length
from prompt_tuning.encoding.dataset import EncodingReport, encode
from prompt_tuning.encoding.demonstrations import Demonstrations
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.streaming import StreamReport, encode_stream
from prompt_tuning.errors import DataError, ErrorList, PromptTuningError, RecipeError
from prompt_tuning.metrics.language import primary_language
from prompt_tuning.metrics.loading import TASK_METRICS, Score, load_metrics, metric_names, score_example_row
from prompt_tuning.models.initialization import initial_ids, initial_text, prompt_length
from prompt_tuning.models.loading import check_method, load_config, load_tokenizer
from prompt_tuning.models.prompts import check_adapter, load_adapter_config
from prompt_tuning.models.quantization import quantization_config
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.templates.languages import LANGUAGES
from prompt_tuning.templates.template import Template
from prompt_tuning.training.losses import SCALED_LOGITS

logger = logging.getLogger(__name__)

PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Prepared:
    """A recipe, ready for its model.

    Args:
        num_virtual_tokens: P; 0 for a method without a prompt.
        init_ids: the tokens of the text that the prompt starts from, if it starts from one.
        encoder: its template ends with the demonstrations that were chosen for all rows, if any were.
        taught: the training rows in teacher_template, if there is one.
        leakage: by split, which of its rows stand in the training split or in a demonstration too, for results.json.
    """

    recipe: Recipe
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    score: Score
    num_virtual_tokens: int
    init_ids: list[int] | None
    rows: DatasetDict
    encoded: dict[str, Dataset | IterableDataset]
    taught: Dataset | None
    reports: dict[str, EncodingReport | StreamReport]
    leakage: dict[str, dict[str, Any]]

    @property
    def template(self) -> Template:
        return self.encoder.template

    @property
    def last_split(self) -> str:
        """What a run is evaluated on in the end."""
        return "test" if "test" in self.encoded else "validation"


def score_of(recipe: Recipe) -> Score:
    """The recipe's metrics, or those of its task, in the language of its targets."""
    names = recipe.prompt.metrics or TASK_METRICS[recipe.data.task]
    return load_metrics(names, language=recipe.data.metric_language)


def prepare(recipe: Recipe, splits: tuple[str, ...]) -> Prepared:
    """Load and encode those of `splits` that the recipe has.

    Raises:
        PromptTuningError: with all that is wrong with model name, template, prompt, metrics and rows, a line each.
    """
    if recipe.prompt.method == MULTITASK:
        raise RecipeError(
            f"{recipe.path}: its rows are those of its tasks; name one of {', '.join(recipe.prompt.tasks)}"
        )
    if recipe.data.streaming and splits == ("train",):
        raise RecipeError(f"{recipe.path}: streaming is for training; add --streaming false to read the split whole")
    config, tokenizer, template, score, loaded = _read(recipe, splits)
    rows = DatasetDict({split: loaded[split] for split in splits if split in loaded})
    prompt, problems = recipe.prompt, ErrorList()
    encoder = Encoder.of_recipe(recipe, template, tokenizer, config.is_encoder_decoder)
    demonstrations = problems.attempt(_demonstrations, recipe, encoder, loaded) if prompt.num_demonstrations else None
    shown = demonstrations.encoder if demonstrations else encoder
    in_prompt = prompt.init == "template" and prompt.method in INITIALIZED
    start = problems.attempt(_start, recipe, config, shown if in_prompt else encoder, rows.get("train"))
    ids, length = start or (None, 0)
    problems += _budget_problems(recipe, config, length) + _choice_problems(recipe, encoder)
    # The prompt starts at the demonstrations, so that rows need not show them again.
    encoder = replace(shown, template=replace(shown.template, demonstrations=()), chosen=0) if in_prompt else shown
    encoded, reports = {}, {}
    for split in rows:
        if isinstance(rows[split], IterableDataset):
            streamed = problems.attempt(encode_stream, recipe, rows[split], encoder)
            encoded[split], reports[split] = streamed or (None, None)
            continue
        encoded[split], reports[split] = _encode(recipe, split, rows[split], encoder, demonstrations)
        problems += _row_problems(recipe, split, reports[split])
        problems += _reference_problems(recipe, split, encoded[split], score) if split != "train" else []
    taught = None
    if prompt.teacher_template and "train" in encoded and not problems:
        of_teacher = replace(encoder, max_source_tokens=prompt.max_teacher_tokens)
        taught = problems.attempt(_taught, recipe, config, of_teacher, rows)
        problems += _teacher_problems(recipe, encoded["train"], taught) if taught else []
    problems.raise_all()
    initial_text = prompt.init_text if prompt.method != "none" else None
    leakage = count_leaks(shown.template, shown.languages, rows, loaded, recipe.data, initial_text)
    return Prepared(recipe, config, tokenizer, encoder, score, length, ids, rows, encoded, taught, reports, leakage)


def _read(
    recipe: Recipe, splits: tuple[str, ...]
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, Template, Score, DatasetDict]:
    """What a recipe names: the model's configuration, its tokenizer, template, metrics, and rows of these splits.

    Raises:
        PromptTuningError: with all that is wrong with any of them, or with two of them together.
    """
    data, prompt, problems = recipe.data, recipe.prompt, ErrorList()
    config = problems.attempt(load_config, recipe.model)
    if config:
        problems.attempt(check_method, config, prompt.method)
        problems += _architecture_problems(recipe, config)
    problems.attempt(quantization_config, recipe.model)
    tokenizer = config and problems.attempt(load_tokenizer, recipe.model, data.source_lang, data.target_lang)
    template = problems.attempt(Template.load, prompt.template)
    score = problems.attempt(score_of, recipe)
    language = primary_language(data.metric_language)
    if language and language not in LANGUAGES:
        logger.warning(
            "language %s is no code that is known here, as en, zh or deu are; metrics split its texts at spaces",
            data.metric_language,
        )
    if score:
        problems += _metric_problems(recipe, problems.attempt(score_example_row, score))
    to_choose_from = ("train",) if prompt.num_demonstrations and "train" not in splits else ()
    loaded = problems.attempt(load_splits, data, (*to_choose_from, *splits))
    if loaded is not None and not loaded.keys() & set(splits):
        problems.append(DataError(f"{recipe.path}: no {' or '.join(splits)} rows; set {splits[-1]}_file"))
    if template:
        problems.attempt(template.check_truncate, prompt.truncate or ())
        for split in loaded or ():
            problems.attempt(template.check_columns, column_names(loaded[split]), split_origin(data, split))
    problems.raise_all()
    return config, tokenizer, template, score, loaded


def _architecture_problems(recipe: Recipe, config: PretrainedConfig) -> list[PromptTuningError]:
    """Settings of a prefix that this kind of model has no place for."""
    prompt = recipe.prompt
    if not config.is_encoder_decoder:
        left_out = [name for name in PREFIX_PLACES if not vars(prompt)[name]]
        return [RecipeError(f"{name} false has no effect: {config.model_type} has no encoder") for name in left_out]
    if prompt.method == "prefix_tuning" and prompt.init not in ("random", "vocab"):
        return [
            RecipeError(
                f"init {prompt.init} has no effect: an encoder-decoder's prefix starts from noise; leave it out, or "
                "take method: prompt_tuning"
            )
        ]
    return []


def prepare_run(recipe: Recipe) -> Prepared:
    """The rows that `train` needs.

    Raises:
        PromptTuningError: as `prepare`, and a split is missing.
    """
    prepared = prepare(recipe, SPLITS if recipe.prompt.method != "none" else SPLITS[1:])
    check_splits(prepared)
    return prepared


def check_splits(prepared: Prepared) -> None:
    """Raise a DataError if a training lacks a split."""
    recipe, found = prepared.recipe, set(prepared.encoded)
    if recipe.prompt.method != "none" and "train" not in found:
        raise DataError(f"{recipe.path}: no training rows; set train_file")
    if recipe.training.eval_strategy != "no" and "validation" not in found:
        raise DataError(
            f"{recipe.path}: eval_strategy is {recipe.training.eval_strategy.value} but there are no "
            "validation rows; set validation_file, or eval_strategy: 'no'"
        )
    training, rows = recipe.training, prepared.encoded.get("train")
    a_step = training.per_device_train_batch_size * training.world_size
    if training.dataloader_drop_last and isinstance(rows, Dataset) and len(rows) < a_step:
        raise DataError(
            f"{recipe.path}: dataloader_drop_last leaves out all {len(rows)} training rows, as a batch has {a_step}; "
            "set it to false, or lower per_device_train_batch_size"
        )
    if not found & {"validation", "test"}:
        raise DataError(f"{recipe.path}: no rows to evaluate on; set test_file or validation_file")


def _demonstrations(recipe: Recipe, encoder: Encoder, loaded: DatasetDict) -> Demonstrations:
    prompt, train = recipe.prompt, loaded["train"]
    chosen = Demonstrations.choose(
        encoder, train, prompt.num_demonstrations, prompt.demonstration_selection, recipe.training.seed
    )
    if chosen.fixed:
        origins = [row_origin(recipe.data, "train", number) for number in chosen.fixed]
        logger.info("demonstrations, which a run saves in its template.yaml: %s", "; ".join(origins))
    return chosen


def _encode(
    recipe: Recipe, split: str, rows: Dataset, encoder: Encoder, demonstrations: Demonstrations | None
) -> tuple[Dataset, EncodingReport]:
    training = split == "train"
    encoded, report = encode(
        rows,
        encoder,
        training=training,
        drop_overlong=recipe.prompt.drop_overlong and training,
        num_proc=recipe.data.preprocessing_num_workers,
        nearest=demonstrations.nearest(rows) if demonstrations else None,
        held_out=demonstrations.held_out() if demonstrations and training else frozenset(),
    )
    logger.info("%s: %s", split, report)
    return encoded, report


def _start(
    recipe: Recipe, model_config: PretrainedConfig, encoder: Encoder, train_rows: Dataset | None
) -> tuple[list[int] | None, int]:
    """The tokens that the prompt starts from, if any, and its length."""
    prompt = recipe.prompt
    if prompt.adapter:
        config = load_adapter_config(prompt.adapter)
        _check_method_of(prompt.adapter, config, prompt.method)
        check_adapter(config, prompt.adapter, model_config)
        return None, config.num_virtual_tokens if config.is_prompt_learning else 0
    if prompt.method in ("none", "lora", "full"):
        return None, 0
    text = initial_text(prompt, encoder, train_rows, recipe.training.seed)
    ids = initial_ids(text, encoder.tokenizer, prompt.init)
    return ids, prompt_length(prompt, ids)


def _check_method_of(adapter: str, config: PeftConfig, method: str) -> None:
    own = str(PeftType(config.peft_type).value).lower()
    # What a network or a bound held in training goes on as the soft prompt that it is.
    goes_on = "prompt_tuning" if own in ("p_tuning", "cpt") else own
    if method != goes_on:
        raise RecipeError(f"adapter {adapter} is of method {own}, and goes on as {goes_on}; set method: {goes_on}")


def _taught(recipe: Recipe, config: PretrainedConfig, encoder: Encoder, rows: DatasetDict) -> Dataset:
    """The training rows as the teacher reads them."""
    if config.is_encoder_decoder or config.get_text_config().model_type in SCALED_LOGITS:
        raise RecipeError(
            f"loss {recipe.prompt.loss}: {config.model_type} cannot be its own teacher here; causal models whose "
            "logits are their output layer's product can"
        )
    template = Template.load(recipe.prompt.teacher_template)
    template.check_columns(rows["train"].column_names, split_origin(recipe.data, "train"))
    taught, report = encode(
        rows["train"],
        replace(encoder, template=template, truncate=None, chosen=0),
        training=True,
        drop_overlong=recipe.prompt.drop_overlong,
        num_proc=recipe.data.preprocessing_num_workers,
    )
    logger.info("train, as the teacher reads it: %s", report)
    problems = ErrorList(_row_problems(recipe, "train", report))
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and report.longest > positions:
        longest = f"the longest row in teacher_template has {report.longest} tokens, the model {positions} positions"
        problems.append(DataError(f"{longest}; lower max_teacher_tokens"))
    problems.raise_all()
    return taught


def _teacher_problems(recipe: Recipe, rows: Dataset, taught: Dataset) -> list[PromptTuningError]:
    """Rows whose target has other tokens in the two templates, or that the teacher lacks."""
    targets = {row: _target(labels) for row, labels in zip(taught["row"], taught["labels"], strict=True)}
    unlike = [
        row
        for row, labels in zip(rows["row"], rows["labels"], strict=True)
        if row in targets and targets[row] != _target(labels)
    ]
    missing = len(set(rows["row"]) - set(targets))
    problems: list[PromptTuningError] = []
    if unlike:
        problems.append(
            RecipeError(
                f"{row_origin(recipe.data, 'train', unlike[0])}: its target has other tokens in teacher_template than "
                f"in template, and so in {len(unlike)} rows; let both write the same target behind the same space"
            )
        )
    if missing:
        problems.append(RecipeError(f"{missing} training rows do not fit max_teacher_tokens; raise it"))
    return problems


def _target(labels: list[int]) -> list[int]:
    return labels[source_length(labels) :]


def _metric_problems(recipe: Recipe, tried: dict[str, float | str] | None) -> list[PromptTuningError]:
    """What would otherwise show at the first evaluation. `tried`: the metrics of a made-up row, None if they clash."""
    wanted = (recipe.training.metric_for_best_model or "loss").removeprefix("eval_")
    if tried is None or wanted == "loss":
        return []
    numbers = metric_names(tried)
    if wanted not in numbers:
        return [
            RecipeError(f"metric_for_best_model {wanted}: the metrics give {', '.join(numbers)}; name one, or loss")
        ]
    if wanted == "ter" and recipe.training.greater_is_better:
        return [RecipeError("metric_for_best_model ter is better when it is lower; set greater_is_better: false")]
    return []


def _budget_problems(recipe: Recipe, config: PretrainedConfig, length: int) -> list[PromptTuningError]:
    prompt, positions = recipe.prompt, getattr(config, "max_position_embeddings", None)
    written = recipe.decoding["max_new_tokens"]
    targets, name = max((written, "generation_max_length"), (prompt.max_target_tokens, "max_target_tokens"))
    source = prompt.max_source_tokens
    if not config.is_encoder_decoder:
        of_all = f"{length} virtual tokens, max_source_tokens {source} and {name} {targets}"
        wanted = {of_all: length + source + targets}
    elif prompt.method == "prefix_tuning":  # which takes no position; and encoder and decoder count their own
        wanted = {f"max_source_tokens {source}": source, f"{name} {targets}": targets}
    else:
        wanted = {f"{length} virtual tokens and max_source_tokens {source}": length + source}
        wanted |= {f"{name} {targets}": targets}
    return [
        DataError(f"{what} make {places} positions, the model has {positions}; lower one of them")
        for what, places in wanted.items()
        if positions is not None and places > positions
    ]


def _choice_problems(recipe: Recipe, encoder: Encoder) -> list[PromptTuningError]:
    normalization = recipe.prompt.choice_normalization
    if encoder.closed or normalization == "none":
        return []
    reason = f"template {encoder.template.name} has no answer_choices"
    if encoder.template.answer_choices is not None:
        reason = "score_choices is false"
    return [RecipeError(f"choice_normalization {normalization} would have no effect, since {reason}; leave it out")]


def _reference_problems(recipe: Recipe, split: str, encoded: Dataset, score: Score) -> list[PromptTuningError]:
    """Rows without a reference, if the metrics would refuse them, as most do, after generation."""
    bare = [row for row, texts in zip(encoded["row"], encoded["references"], strict=True) if not texts]
    if not bare:
        return []
    try:
        score(["The a."], [[]])
    except ValueError:
        more = f"; {len(bare) - 1} more rows have none either" if len(bare) > 1 else ""
        where = row_origin(recipe.data, split, bare[0])
        return [DataError(f"{where}: no reference to hold a prediction against{more}")]
    return []


def _row_problems(recipe: Recipe, split: str, report: EncodingReport) -> list[PromptTuningError]:
    shown = [
        DataError(f"{row_origin(recipe.data, split, row)}: {message}")
        for row, message in report.problems[:PROBLEMS_SHOWN]
    ]
    origin = split_origin(recipe.data, split)
    if (more := len(report.problems) - len(shown)) > 0:
        shown.append(DataError(f"{origin}: {more} more rows have problems"))
    if not report.rows and not report.problems:
        left_out = "they are all demonstrations" if report.held_out_rows else "too long"
        shown.append(DataError(f"{origin}: all rows were left out as {left_out}"))
    if report.rows and report.bare_rows == report.rows:
        shown.append(
            DataError(
                f"{origin}: not one of {recipe.prompt.num_demonstrations} demonstrations fits beside any row; raise "
                f"max_source_tokens, which is {recipe.prompt.max_source_tokens}"
            )
        )
    return shown
