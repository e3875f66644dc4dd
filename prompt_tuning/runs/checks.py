"""Check that a recipe, its model, its template and its rows fit together, before any weights are read.

Every function raises one PromptTuningError, whose message has a line for each problem.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping

from datasets import Dataset, IterableDataset
from transformers import PretrainedConfig

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.prompt_args import CHOICE_LOSSES, PREFIX_PLACES, PromptArguments
from prompt_tuning.data.loading import column_names, row_origin, split_origin
from prompt_tuning.encoding.batching import source_length
from prompt_tuning.encoding.dataset import EncodingReport
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.streaming import StreamReport
from prompt_tuning.engine.dispatch import PACKED_ARCHITECTURES, checkpointed_prefix
from prompt_tuning.engine.trained_tokens import check_trained_tokens
from prompt_tuning.errors import DataError, ErrorList, RecipeError
from prompt_tuning.metrics.language import UNSPACED, is_english, language_of_script, primary_language
from prompt_tuning.metrics.loading import LOWER_IS_BETTER, score_example_row, takes_language
from prompt_tuning.metrics.scores import MetricFunction
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.support.text import agreed, counted
from prompt_tuning.templates.languages import LANGUAGES
from prompt_tuning.templates.template import Template
from prompt_tuning.training.losses import SCALED_LOGITS

logger = logging.getLogger(__name__)

PROBLEMS_SHOWN = 5
"""The number of problems of a split's rows that are reported one by one."""


def check_preparable(recipe: Recipe, splits: tuple[str, ...]) -> None:
    """Raise a RecipeError if a recipe has no rows of its own, or would read only a stream."""
    if METHODS[recipe.prompt.method].trains_several_tasks:
        tasks = ", ".join(recipe.prompt.tasks or ())
        raise RecipeError(f"{recipe.path}: its rows are those of its tasks; name one of {tasks}")
    if recipe.data.streaming and splits == ("train",):
        raise RecipeError(f"{recipe.path}: streaming is for training; add --streaming false to read the split whole")


def check_architecture(recipe: Recipe, config: PretrainedConfig) -> None:
    """Raise an error for settings of a prompt that do nothing, or cannot be trained, in this kind of model."""
    prompt = recipe.prompt
    architecture = config.get_text_config().model_type
    trains_text = METHODS[prompt.method].takes("trained_text") and prompt.trained_text != "none"
    if prompt.layer_vectors or trains_text:
        check_trained_tokens(config, layer_vectors=prompt.layer_vectors)
    if config.is_encoder_decoder:
        if METHODS[prompt.method].trains_keys_and_values and prompt.init not in ("random", "vocab"):
            raise RecipeError(
                f"init {prompt.init} has no effect: an encoder-decoder's prefix starts from noise; leave it out, or "
                "take method: prompt_tuning"
            )
        return
    errors = ErrorList()
    is_checkpointed_prefix = METHODS[prompt.method].trains_keys_and_values and recipe.training.activation_checkpointing
    if is_checkpointed_prefix and architecture not in PACKED_ARCHITECTURES:
        errors.append(RecipeError(checkpointed_prefix(f"rows of a {architecture} model are not packed")))
    for name in PREFIX_PLACES:
        if not vars(prompt)[name]:
            errors.append(
                RecipeError(f"{name} false has no effect: {config.model_type} has no encoder. Leave it out.")
            )
    errors.raise_all()


def warn_of_unknown_language(language: str | None) -> None:
    """Warn of a language code whose texts the metrics can only split at spaces."""
    code = primary_language(language)
    if code and code not in LANGUAGES:
        logger.warning(
            "language %s: not a known code such as en, zh or deu; metrics split its texts at spaces", language
        )


def warn_of_trimmed_lines(template: Template) -> None:
    """Warn of a template's lines that hold more than tags and lose a line break or spaces beside a tag."""
    lines = template.trimmed_lines
    if lines:
        more = f", and so in {len(lines) - 1} more lines" if len(lines) > 1 else ""
        logger.warning(
            "template %s: %r is written without the line break after its tag, or the spaces before it%s. "
            "Write +%%} or {%%+ to keep them, -%%} or {%%- to leave them out.",
            template.name,
            lines[0],
            more,
        )


def check_metrics(recipe: Recipe, score: MetricFunction) -> None:
    """Score one made-up row, so that a bad choice of metrics shows before training.

    Raises:
        RecipeError: two metrics contradict each other, or metric_for_best_model is not one of them.
    """
    names = list(score_example_row(score).values)
    best = (recipe.training.metric_for_best_model or "loss").removeprefix("eval_")
    if best == "loss":
        return
    if best not in names:
        raise RecipeError(f"metric_for_best_model {best}: the metrics give {', '.join(names)}; name one, or loss")
    if best in LOWER_IS_BETTER and recipe.training.greater_is_better:
        raise RecipeError(f"metric_for_best_model {best} is better when it is lower; set greater_is_better: false")


def check_template_columns(recipe: Recipe, template: Template, rows: Mapping[str, Dataset | IterableDataset]) -> None:
    """Raise a TemplateError if the template reads, or the recipe's `truncate` names, a column that a split lacks."""
    errors = ErrorList()
    with errors.collect():
        template.check_truncate(recipe.prompt.truncate or ())
    for split in rows:
        with errors.collect():
            needed = template.training_columns if split == "train" else template.columns
            template.check_columns(column_names(rows[split]), split_origin(recipe.data, split), needed)
    errors.raise_all()


def check_positions(recipe: Recipe, config: PretrainedConfig, num_virtual_tokens: int) -> None:
    """Raise a DataError if the token budgets together are longer than the model has positions.

    An encoder and a decoder count their positions separately. A trained prefix of keys and values takes none there.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    prompt = recipe.prompt
    source = prompt.max_source_tokens
    target, name = max(
        (recipe.decoding["max_new_tokens"], "generation_max_length"), (prompt.max_target_tokens, "max_target_tokens")
    )
    virtual = num_virtual_tokens
    prefix = counted(virtual, "virtual token")
    if not config.is_encoder_decoder:
        budgets = {f"{prefix}, max_source_tokens {source} and {name} {target}": virtual + source + target}
    elif METHODS[prompt.method].trains_keys_and_values:
        budgets = {f"max_source_tokens {source}": source, f"{name} {target}": target}
    else:
        budgets = {
            f"{prefix} and max_source_tokens {source}": virtual + source,
            f"{name} {target}": target,
        }
    errors = ErrorList()
    for budget, length in budgets.items():
        if length > positions:
            errors.append(DataError(f"{budget} make {length} positions, the model has {positions}; lower one of them"))
    errors.raise_all()


def check_frozen_tokens(prompt: PromptArguments, num_virtual_tokens: int) -> None:
    """Raise a RecipeError if all tokens of a prompt are frozen, so that nothing is trained."""
    frozen = prompt.num_frozen_tokens
    if METHODS[prompt.method].takes("num_frozen_tokens") and frozen >= num_virtual_tokens and not prompt.adapter:
        raise RecipeError(
            f"num_frozen_tokens {frozen} leaves nothing to train, since the prompt has "
            f"{counted(num_virtual_tokens, 'virtual token')}. Lower it, or raise num_virtual_tokens."
        )


def check_choice_normalization(recipe: Recipe, encoder: Encoder) -> None:
    """Raise a RecipeError if choice_normalization is set and no choices are scored."""
    normalization = recipe.prompt.choice_normalization
    if encoder.closed or normalization == "none":
        return
    reason = f"template {encoder.template.name} has no answer_choices"
    if encoder.template.answer_choices is not None:
        reason = "score_choices is false"
    raise RecipeError(f"choice_normalization {normalization} would have no effect, since {reason}; leave it out")


def check_choice_loss(recipe: Recipe, encoder: Encoder) -> None:
    """Raise a RecipeError if training rows have no choices to learn from, or their model has a decoder of its own."""
    loss = recipe.prompt.loss
    if loss not in CHOICE_LOSSES:
        return
    if encoder.is_encoder_decoder:
        raise RecipeError(f"loss {loss}: choices are learned by causal models only. Set loss: cross_entropy.")
    if not encoder.closed:
        raise RecipeError(
            f"loss {loss}: template {encoder.template.name} has no answer_choices. Add them to it, or set loss: "
            "cross_entropy."
        )


def check_encoding(recipe: Recipe, split: str, report: EncodingReport) -> None:
    """Raise a DataError for the rows of a split that could not be encoded, or if none is left."""
    errors = ErrorList()
    origin = split_origin(recipe.data, split)
    if split != "train" and report.overlong_problems and recipe.prompt.drop_overlong:
        errors.append(
            DataError(
                f"{origin}: drop_overlong leaves out training rows only, and here "
                f"{counted(report.overlong_problems, 'row', 'are too long')}; raise max_source_tokens, or name a "
                "column in truncate"
            )
        )
    rows_by_message = defaultdict(list)
    for row, message in report.problems:
        rows_by_message[message].append(row)
    for message, rows in list(rows_by_message.items())[:PROBLEMS_SHOWN]:
        # A mistake in a template is the same in every row.
        more = f" (the same in {counted(len(rows) - 1, 'more row')})" if len(rows) > 1 else ""
        errors.append(DataError(f"{row_origin(recipe.data, split, rows[0])}: {message}{more}"))
    num_hidden = sum(map(len, list(rows_by_message.values())[PROBLEMS_SHOWN:]))
    if num_hidden:
        errors.append(DataError(f"{origin}: {counted(num_hidden, 'more row', 'have problems')}"))
    if report.empty_problems:
        count = counted(report.empty_problems, "row")
        advice = "Correct the rows or the template, or set drop_empty: true to leave them out and count them."
        errors.append(DataError(f"{origin}: the template writes no source or no target for {count}. {advice}"))
    if not report.rows and not report.problems:
        reason = "too long; raise max_source_tokens or max_target_tokens, or name a column in truncate"
        if report.held_out_rows:
            reason = "demonstrations; add rows, or lower num_demonstrations"
        if report.empty_rows:
            reason = "empty; correct the rows or the template"
        errors.append(DataError(f"{origin}: all rows were left out as {reason}"))
    if report.rows and report.rows_without_demonstrations == report.rows:
        errors.append(
            DataError(
                f"{origin}: not one of {recipe.prompt.num_demonstrations} demonstrations fits beside any row; raise "
                f"max_source_tokens, which is {recipe.prompt.max_source_tokens}"
            )
        )
    errors.raise_all()


def check_targets(recipe: Recipe, split: str, report: EncodingReport | StreamReport) -> None:
    """Report the targets that no prediction can be: an error if they are all rows of a split, else a warning.

    Raises:
        DataError: no row has a target that a prediction can be.
    """
    if not report.unreachable:
        return
    origins = [f"{row_origin(recipe.data, split, row)}: {reason}" for row, reason in report.unreachable]
    problem = f"{report.unreachable_targets} of {report.rows} targets are texts that no prediction can be"
    if report.unreachable_targets == report.rows:
        raise DataError(f"{split_origin(recipe.data, split)}: {problem}. The first: {origins[0]}")
    logger.warning("%s: %s. The first: %s", split, problem, "; ".join(origins))


def check_references(recipe: Recipe, split: str, encoded: Dataset, score: MetricFunction) -> None:
    """Raise a DataError for rows without a reference answer, unless the metrics score them.

    Most metrics refuse such a row, and only after all predictions are made.
    """
    without = [row for row, texts in zip(encoded["row"], encoded["references"], strict=True) if not texts]
    if not without:
        return
    try:
        score(["The a."], [[]])
    except ValueError:
        more = f"; {counted(len(without) - 1, 'more row', 'have none either')}" if len(without) > 1 else ""
        origin = row_origin(recipe.data, split, without[0])
        raise DataError(f"{origin}: row has no reference answer{more}. Give it one, or leave it out.") from None


def check_language(recipe: Recipe, split: str, encoded: Dataset) -> None:
    """Raise a RecipeError if metrics would split most references by the rules for another script.

    Fewer such rows, or a known language that is set, are reported.
    """
    language = primary_language(recipe.data.metric_language)
    if not takes_language(recipe.metrics):
        return
    codes = Counter(map(language_of_script, encoded["references"]))
    for code in list(codes):
        if code is None or (not is_english(language) and (language in UNSPACED or code not in UNSPACED)):
            del codes[code]
    if not codes:
        return
    code = max(codes, key=codes.__getitem__)
    name = "English" if is_english(language) else language
    origin = split_origin(recipe.data, split)
    predicate = agreed(codes.total(), f"have references in another script than {name}")
    count = f"{codes.total()} of {counted(len(encoded), 'row')} {predicate}"
    if language not in LANGUAGES and 2 * codes.total() > len(encoded):
        example = "" if code == "und" else f", such as lang: {code}"
        raise RecipeError(f"{origin}: {count}, and metrics split them by `lang`. Set it to their code{example}.")
    logger.warning("%s: %s, by whose rules metrics split them", origin, count)


def check_teacher_model(recipe: Recipe, config: PretrainedConfig) -> None:
    """Raise a RecipeError unless a model's logits are the plain product of its hidden states and output layer."""
    if config.is_encoder_decoder:
        raise RecipeError(
            f"loss {recipe.prompt.loss}: distillation needs a causal model, and {config.model_type} is an "
            "encoder-decoder. Leave loss and teacher_template out."
        )
    if config.get_text_config().model_type in SCALED_LOGITS:
        raise RecipeError(
            f"loss {recipe.prompt.loss}: distillation needs a causal model with unscaled logits, and "
            f"{config.model_type} rescales them. Leave loss and teacher_template out."
        )


def check_teacher_encoding(recipe: Recipe, config: PretrainedConfig, report: EncodingReport) -> None:
    """Raise a DataError for rows that teacher_template cannot write, or that have more tokens than positions."""
    errors = ErrorList()
    with errors.collect():
        check_encoding(recipe, "train", report)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and report.longest > positions:
        errors.append(
            DataError(
                f"the longest row in teacher_template has {report.longest} tokens, the model {positions} positions; "
                "lower max_teacher_tokens"
            )
        )
    errors.raise_all()


def check_teacher_targets(recipe: Recipe, rows: Dataset, teacher_rows: Dataset) -> None:
    """Raise a RecipeError unless both templates write the same target tokens for every training row."""
    targets = _targets(teacher_rows)
    unlike: list[int] = []
    missing = 0
    for row, target in _targets(rows).items():
        if row not in targets:
            missing += 1
        elif targets[row] != target:
            unlike.append(row)
    errors = ErrorList()
    if unlike:
        errors.append(
            RecipeError(
                f"{row_origin(recipe.data, 'train', unlike[0])}: its target has other tokens in teacher_template than "
                f"in template, and so in {counted(len(unlike), 'row')}; let both write the same target after the "
                "same space"
            )
        )
    if missing:
        unfit = counted(missing, "training row", "do not fit max_teacher_tokens")
        errors.append(RecipeError(f"{unfit}, or empty in teacher_template; raise the first, or correct the second"))
    errors.raise_all()


def _targets(rows: Dataset) -> dict[int, list[int]]:
    """Return the target tokens of every row by the row's number."""
    targets = {}
    for row, labels in zip(rows["row"], rows["labels"], strict=True):
        targets[row] = labels[source_length(labels) :]
    return targets


def check_splits(recipe: Recipe, encoded: Mapping[str, Dataset | IterableDataset]) -> None:
    """Raise a DataError if a training lacks a split, or has fewer rows than a batch."""
    training = recipe.training
    if METHODS[recipe.prompt.method].trains and "train" not in encoded:
        raise DataError(f"{recipe.path}: no training rows; set train_file")
    if training.eval_strategy != "no" and "validation" not in encoded:
        raise DataError(
            f"{recipe.path}: eval_strategy is {training.eval_strategy.value} but there are no "
            "validation rows; set validation_file or validation_size, or eval_strategy: 'no'"
        )
    rows = encoded.get("train")
    rows_per_step = training.per_device_train_batch_size * training.world_size
    if training.dataloader_drop_last and isinstance(rows, Dataset) and len(rows) < rows_per_step:
        raise DataError(
            f"{recipe.path}: dataloader_drop_last leaves out all {counted(len(rows), 'training row')}, as a batch has "
            f"{rows_per_step}; set it to false, or lower per_device_train_batch_size"
        )
    if "validation" not in encoded and "test" not in encoded:
        raise DataError(f"{recipe.path}: no rows to evaluate on; set test_file or validation_file, or test_size")
