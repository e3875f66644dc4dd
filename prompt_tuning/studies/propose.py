"""Propose a recipe for a user's rows: what `init` writes."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from prompt_tuning.arguments.data_args import LIMITS, DataArguments
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.data.column_texts import texts_by_column
from prompt_tuning.data.loading import load_splits, split_origin
from prompt_tuning.data.recognition import SETTINGS_OF_ONE_TASK, Recognized, recognize
from prompt_tuning.data.sources import find_source
from prompt_tuning.data.splitting import group_column, passages
from prompt_tuning.encoding.dataset import encode
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.trained_text import check_fast
from prompt_tuning.engine.trained_tokens import check_trained_tokens
from prompt_tuning.errors import DataError, ModelError
from prompt_tuning.metrics.language import primary_language
from prompt_tuning.models.initialization import DEFAULT_VIRTUAL_TOKENS
from prompt_tuning.models.loading import load_config, load_tokenizer
from prompt_tuning.recipe.automatic import AUTO, STARTS
from prompt_tuning.recipe.drafts import build
from prompt_tuning.studies.template_choice import choose_template
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted, listed
from prompt_tuning.templates.languages import language_variables
from prompt_tuning.templates.loading import language_of_template
from prompt_tuning.templates.template import Template

SAMPLE = 200
"""The number of rows by which columns are recognised."""

MEASURED = 2000
"""The number of rows of a split of which tokens are counted."""

SHARES = {"test": 0.2, "validation": 0.1}
MOST_EVALUATED = {"test": 500, "validation": 200}
"""The most rows of a split that a proposal evaluates, since the model writes a text for each."""

BATCH_SIZE = 8
LEAST_STEPS, MOST_STEPS = 40, 120
EPOCHS = 3
DEMONSTRATIONS = PromptArguments.init_demonstrations
MOST_PROMPT_TOKENS = 512
ROUNDED = 8
"""Budgets of tokens are multiples of this number."""

LONGEST_KEPT = 1.5
"""No source is cut if the longest has at most so many times the tokens of nearly all."""

LOCAL_MODELS = Path("models")
MODELS = {"English": "HuggingFaceTB/SmolLM2-135M-Instruct", "others": "Qwen/Qwen3-0.6B"}
"""The models of this project's own recipes."""

LANGUAGE_EXAMPLES = ("en", "fr", "de", "zh")

Ask = Callable[[str, Sequence[str]], str]
"""Returns the answer to a question, of which the first of the given answers is proposed."""


@dataclass
class Proposal:
    """The settings of a recipe with the reason of each.

    Args:
        settings: the settings, by name.
        set_by_user: the settings that are not proposed but set; they win.
        reasons: comments, by the setting that each stands above.
        recognized: what is known of the rows.
    """

    settings: dict[str, Any]
    set_by_user: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str = "", **settings: Any) -> None:
        """Add settings with one reason. What the user has set stays."""
        names = [name for name in settings if name not in self.set_by_user]
        for name in names:
            self.settings[name] = settings[name]
        if names and reason:
            self.reasons[names[0]] = reason

    def data(self) -> DataArguments:
        """Return the settings of the rows."""
        settings = self.settings | self.set_by_user
        return build(DataArguments, settings, settings)

    def __getitem__(self, name: str) -> Any:
        """Return the value of a setting; None if it has none."""
        return (self.settings | self.set_by_user).get(name)


def propose(name: str, set_by_user: dict[str, Any], ask: Ask | None) -> Proposal:
    """Return a recipe for the rows of a file, a folder or a data set of the hub.

    Args:
        name: the file, the pattern, the folder or the hub id.
        set_by_user: typed settings that are not guessed.
        ask: asks what the rows do not tell. Without it what can be proposed is taken.

    Raises:
        PromptTuningError: the rows cannot be read, do not show their task, or the model cannot be loaded.
    """
    proposal = Proposal(find_source(name, set_by_user), set_by_user)
    origin = [name for name in set_by_user if name.endswith(("_file", "_split")) or name.startswith("data")]
    raw = load_splits(build(DataArguments, proposal.settings | set_by_user, [*proposal.settings, *origin]))
    if "train" not in raw:
        raise DataError(f"{name}: no training rows. Name a file or a folder that has them.")
    sizes = raw.num_rows
    columns = listed(raw["train"].column_names)
    proposal.reasons[next(iter(proposal.settings))] = f"{_counts(sizes)}, with the columns {columns}."
    rows = list(_some(raw["train"], SAMPLE))
    try:
        recognized = _recognize(rows, proposal, ask)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    standard = load_splits(proposal.data(), ("train",))["train"]
    _propose_splits(proposal, sizes, standard)
    _propose_model(proposal, ask)
    settings = proposal.settings | set_by_user
    model = build(ModelArguments, settings, settings)
    config = load_config(model)
    tokenizer = load_tokenizer(model, proposal["source_lang"], proposal["target_lang"])
    language = primary_language(proposal["lang"])
    template, reason = choose_template(recognized, rows, config, tokenizer, language)
    if language not in (language_of_template(template), None):
        reason += (
            f" Its words are English; `prompt-tuning templates {template} > mine.yaml` writes a file to translate."
        )
    proposal.add(reason, template=template)
    _propose_lengths(proposal, config, tokenizer)
    steps = min(max(math.ceil(EPOCHS * len(standard) / BATCH_SIZE), LEAST_STEPS), MOST_STEPS)
    proposal.add(per_device_train_batch_size=BATCH_SIZE)
    if "num_train_epochs" not in set_by_user:
        proposal.add(max_steps=steps)
    proposal.add(seed=42, output_dir=_free_folder(name))
    return proposal


def _counts(sizes: Mapping[str, int]) -> str:
    return ", ".join(counted(size, f"{split} row") for split, size in sizes.items())


def _some(rows: Dataset, most: int) -> Dataset:
    """Return at most so many rows, evenly from all of them."""
    return rows.select(range(0, len(rows), math.ceil(len(rows) / most)))


def _ask_columns(rows: Sequence[Mapping[str, Any]], set_by_user: Mapping[str, Any], ask: Ask) -> dict[str, str]:
    """Return the task and its columns as the user names them, except those that are set.

    Raises:
        DataError: the rows have no text, or there is no such task.
    """
    columns = [*texts_by_column(rows)]
    if not columns:
        raise DataError("none of the columns holds text. Name a file whose rows have texts.")
    task = set_by_user.get("task") or ask("The columns do not show the task. Which is it?", [*SETTINGS_OF_ONE_TASK])
    if task not in SETTINGS_OF_ONE_TASK:
        raise DataError(f"task {task}: there is no such task. Name one of {listed([*SETTINGS_OF_ONE_TASK])}.")
    answers = {"task": task}
    for setting in SETTINGS_OF_ONE_TASK[task]:
        if setting not in set_by_user:
            is_language = setting.endswith("_lang")
            question = "which language, by its code?" if is_language else "which column?"
            answers[setting] = ask(f"{setting}: {question}", LANGUAGE_EXAMPLES if is_language else columns)
    return answers


def _recognize(rows: Sequence[Mapping[str, Any]], proposal: Proposal, ask: Ask | None) -> Recognized:
    """Recognise the rows, add their settings, and ask for the columns or the direction of a translation.

    Raises:
        DataError: the rows do not show their task, and nobody is asked; or an answer is not a column.
    """
    try:
        recognized = recognize(rows, proposal.set_by_user)
    except DataError:
        if ask is None:
            raise
        proposal.set_by_user |= _ask_columns(rows, proposal.set_by_user, ask)
        recognized = recognize(rows, proposal.set_by_user)
    choices = recognized.choices.get("source_lang", [])
    if ask and choices and not {"source_lang", "source_column"} & proposal.set_by_user.keys():
        source = ask("Which language do you translate from?", choices)
        if source != choices[0]:
            recognized = recognize(rows, proposal.set_by_user | {"source_lang": source})
    for name, value in recognized.settings.items():
        proposal.add(recognized.reasons.get(name, ""), **{name: value})
    return recognized


def _propose_splits(proposal: Proposal, sizes: Mapping[str, int], rows: Dataset) -> None:
    """Add the splits that are cut from the training rows, and the limits of those that are there.

    Raises:
        DataError: all rows are of one passage, so that none are left to evaluate.
    """
    groups = passages(rows, proposal.data())
    column = group_column(rows, proposal.data())
    passage = "text to translate" if column == "translation" else column or "row"
    missing = [split for split in ("test", "validation") if split not in sizes]
    if missing and len(groups) < 2:
        have = "there is only one row" if len(rows) == 1 else f"all rows have the same {passage}"
        origin = split_origin(proposal.data(), "train")
        raise DataError(f"{origin}: {have}, so that none can be kept for a test. Add rows, or set --test_file.")
    reason = f"Evaluated rows are cut from the {len(rows):,} rows."
    if len(groups) < len(rows):
        reason = f"{reason} They have {len(groups):,} different values of {passage}, and equal ones stay together."
    usual = np.median(list(map(len, groups.values())))
    for split in missing[: len(groups) - 1]:
        size = min(round(SHARES[split] * len(rows)), MOST_EVALUATED[split])
        proposal.add(reason, **{f"{split}_size": int(max(size, usual))})
        reason = ""
    for split, limit in LIMITS.items():
        most = MOST_EVALUATED.get(split, 0)
        if 0 < most < sizes.get(split, 0):
            proposal.add(f"The first {most} of {sizes[split]:,} {split} rows, since each is written.", **{limit: most})


def _propose_model(proposal: Proposal, ask: Ask | None) -> None:
    """Add the base model: one in the folder models, or a small one of the hub."""
    if proposal["model_name_or_path"]:
        return
    is_english = {proposal["lang"], proposal["source_lang"], proposal["target_lang"]} <= {"en", None}
    names = [str(config.parent) for config in sorted(LOCAL_MODELS.glob(f"*/{RunFolder.MODEL_CONFIG}"))]
    names.append(MODELS["English" if is_english else "others"])
    model = ask("Which base model, a folder or a hub id?", names) if ask else names[0]
    reason = "The frozen base model. Any other causal model may take its place."
    if not is_english:
        reason += f" Not all rows are English: take one that reads their language, such as {MODELS['others']}."
    proposal.add(reason, model_name_or_path=model)


def _propose_lengths(proposal: Proposal, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the token budgets and the method, whose prompt has to fit beside them.

    Raises:
        PromptTuningError: the template does not fit the rows.
    """
    data = proposal.data()
    template = Template.load(str(proposal["template"]))
    loaded = load_splits(data)
    template.check_columns(loaded["train"].column_names, split_origin(data, "train"), template.training_columns)
    languages = language_variables(data.source_lang, data.target_lang)
    encoder = Encoder(
        template,
        tokenizer,
        is_encoder_decoder=config.is_encoder_decoder,
        max_source_tokens=sys.maxsize,
        max_target_tokens=sys.maxsize,
        languages=languages,
    )
    sources, targets = _lengths(loaded, encoder, data)
    positions = getattr(config, "max_position_embeddings", None) or sys.maxsize
    target = _rounded(max(targets) if encoder.closed else np.percentile(targets, 99))
    cut = proposal["truncate"] or template.truncate
    most, fate = _source_budget(sources, cut)
    source = min(_rounded(most), positions - target - DEFAULT_VIRTUAL_TOKENS)
    proposal.add(f"Tokens of a source: {_spread(sources, 95)}. {fate}", max_source_tokens=source)
    proposal.add(
        f"Tokens of a target: {_spread(targets, 99)}. Training rows that do not fit are left out and counted.",
        max_target_tokens=target,
        drop_overlong=True,
    )
    usual = DEMONSTRATIONS * float(np.median(sources) + np.median(targets))
    shown = min(source, max(sources)) + target + ROUNDED
    fits = DEMONSTRATIONS * shown + source + target + ROUNDED <= positions
    can_start_from_rows = fits and usual <= MOST_PROMPT_TOKENS and len(loaded["train"]) >= BATCH_SIZE
    _propose_method(proposal, config, tokenizer, can_start_from_rows=can_start_from_rows)


def _propose_method(
    proposal: Proposal, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, *, can_start_from_rows: bool
) -> None:
    """Add `method: auto`, except for the choices of it that these rows or this model do not allow."""
    proposal.add("The prompt that docs/how-to/choose-a-method.md advises. `train` names its settings.", method=AUTO)
    if proposal["method"] != AUTO:
        return
    if not can_start_from_rows and not STARTS & proposal.set_by_user.keys():
        proposal.add(
            "Training rows are too long or too few to start from. It starts from sampled tokens.", init="vocab"
        )
    try:
        check_trained_tokens(config, layer_vectors=False)
        check_fast(tokenizer)
    except ModelError:
        proposal.add("Trained text is not possible with this model.", trained_text="none")


def _source_budget(sources: Sequence[int], cut: Sequence[str]) -> tuple[float, str]:
    """Return the tokens that a source may have, and what becomes of longer ones.

    Args:
        sources: the numbers of tokens of some sources.
        cut: the columns whose end may be cut.
    """
    if not cut:
        return 2 * max(sources), "Nothing may be cut, so that new rows may be twice as long as these."
    usual = float(np.percentile(sources, 95))
    most = max(sources) if max(sources) <= LONGEST_KEPT * usual else usual
    return most, f"Longer ones lose the end of {' or '.join(cut)}."


def _lengths(loaded: DatasetDict, encoder: Encoder, data: DataArguments) -> tuple[list[int], list[int]]:
    """Return the numbers of tokens of the sources and of the targets of some rows of every split.

    Raises:
        DataError: not one row can be encoded.
    """
    sources: list[int] = []
    targets: list[int] = []
    problems = []
    for split, rows in loaded.items():
        encoded, report = encode(_some(rows, MEASURED), encoder)
        problems += [f"{split_origin(data, split)}: {message}" for _, message in report.problems[:1]]
        for row in encoded:
            target = sum(label != -100 for label in row["labels"])
            targets.append(target)
            sources.append(len(row["input_ids"]) - (0 if encoder.is_encoder_decoder else target))
    if not sources:
        raise DataError(f"no row can be encoded. The first problem: {problems[0]}")
    return sources, targets


def _spread(lengths: Sequence[int], percent: int) -> str:
    usual, most = np.percentile(lengths, [50, percent])
    return f"{usual:.0f} in the median, at most {most:.0f} in {percent} % of the rows, {max(lengths)} in the longest"


def _rounded(tokens: float) -> int:
    return math.ceil(tokens / ROUNDED) * ROUNDED


def _free_folder(name: str) -> str:
    """Return a folder of runs/ that is not there yet, named after the data."""
    stem = re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.") or "mine"
    numbers = itertools.count(2)
    folder = Path("runs") / stem
    while folder.exists():
        folder = Path("runs") / f"{stem}-{next(numbers)}"
    return str(folder)
