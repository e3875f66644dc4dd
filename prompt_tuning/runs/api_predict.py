"""Predict the rows of a file or of standard input by a model behind an API."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from prompt_tuning.data.writing import is_table
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import DataError, ModelError, RecipeError
from prompt_tuning.models.loading import load_config, load_tokenizer
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.answers import Question
from prompt_tuning.runs.api_client import in_order
from prompt_tuning.runs.api_model import ApiAnswer, ApiModel, api_counts
from prompt_tuning.runs.input_rows import input_name, no_rows, open_input, read_row, stream_input
from prompt_tuning.runs.predict import AskedRow, ask_rows, report_counts, write_row
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.runs.shares import Share
from prompt_tuning.runs.teacher import Targets, fault
from prompt_tuning.support.data_files import checked_path
from prompt_tuning.support.text import print_text
from prompt_tuning.templates.template import Template


def predict_by_api(
    recipe: Recipe,
    source: str = "-",
    output: str = "-",
    *,
    with_truncated: bool = False,
    targets: Targets | None = None,
) -> dict[str, int]:
    """Predict for every row by the hard prompt of a recipe, whose model is behind an API.

    Args:
        recipe: the recipe. Its own rows are read only if demonstrations are chosen from them.
        source: the rows, as for `predict`.
        output: the file to write, as for `predict`.
        with_truncated: write the columns `truncated` and `at_limit`.
        targets: write the rows as training rows, with the answers as their targets, and leave out the others.

    Returns:
        What `predict` returns, and how many answers are refused or none of a row's choices; with `targets` also how
        many rows were `left_out`, and how many of them for answers that `disagree`.

    Raises:
        RecipeError: the recipe's model is loaded here, or its demonstrations are chosen for each row.
        DataError: a row is bad. No output file is written then.
        ModelError: the server does not answer a row. No output file is written, and the answers are kept.
    """
    if recipe.model.api_name is None:
        raise RecipeError(
            f"{recipe.path}: its model is loaded here. Predict with --adapter, or set model_name_or_path: openai:NAME."
        )
    path = checked_path(source, output)
    is_table(output)
    share = Share(0, 1)
    counts: Counter[str] = Counter()
    with ExitStack() as files:
        file = files.enter_context(share.output(output))
        model = ApiModel.load(recipe.model)
        encoders = _encoders(recipe, targets.templates if targets else ())
        questions: dict[str, list[Question]] = {}
        rows = open_input(source, path) or stream_input(source, path, encoders[0], files)
        bar = files.enter_context(tqdm(desc=model.name, unit="row", disable=True if output == "-" else None))

        def read(origin: str, row: dict[str, Any]) -> Question:
            questions[origin] = [read_row(encoder, recipe.data, origin, row) for encoder in encoders]
            for encoder, question in zip(encoders, questions[origin], strict=True):
                model.prepare_choices(encoder, question.prompt)
            return questions[origin][0]

        def answer(asked: AskedRow) -> list[ApiAnswer]:
            try:
                return _answers(model, recipe, encoders, questions.pop(asked.origin))
            except ModelError as error:
                raise ModelError(f"{asked.origin}: {error}") from None

        for asked, answers in in_order(ask_rows(rows, read, counts), answer, model.concurrency):
            counts.update(api_counts(answers[-1:]))
            row = targets.row(asked.row, answers, counts) if targets else asked.row
            columns: dict[str, Any] = {} if targets else {"prediction": answers[0].text}
            if with_truncated:
                columns |= {"truncated": asked.question.cut_tokens > 0, "at_limit": answers[0].at_limit}
            if row is not None:
                write_row(file, row, columns, counts)
                file.flush()
            bar.update()
            bar.set_postfix_str(str(model.send.bill), refresh=False)
        _check_written(counts, source)
        share.write(file, output)
    print_text(str(model.send.bill), file=sys.stderr)
    report_counts(counts)
    return dict(counts)


def _answers(
    model: ApiModel, recipe: Recipe, encoders: Sequence[Encoder], questions: Sequence[Question]
) -> list[ApiAnswer]:
    """Return the answer to a row by each template, up to one that cannot be a target."""
    answers = []
    for encoder, question in zip(encoders, questions, strict=True):
        answers.append(model.answer_question(encoder, question.prompt, question.choices, recipe))
        if fault(answers[-1]):
            break
    return answers


def _encoders(recipe: Recipe, templates: Sequence[str]) -> list[Encoder]:
    """Return the encoder of a recipe, and those with other templates in the place of its own.

    Each has the demonstrations that the recipe chooses from its training rows.

    Raises:
        RecipeError: each row would have demonstrations of its own.
    """
    prompt, data = recipe.prompt, recipe.data
    if prompt.num_demonstrations and prompt.demonstration_selection == "bm25":
        raise RecipeError("demonstration_selection bm25: it is for `evaluate`. Set random or balanced.")
    names = [str(prompt.template), *templates]
    encoders = []
    if prompt.num_demonstrations:
        for name in names:
            encoders.append(prepare(replace(recipe, prompt=replace(prompt, template=name)), ("train",)).encoder)
        return encoders
    tokenizer = load_tokenizer(recipe.model, data.source_lang, data.target_lang)
    config = load_config(recipe.model)
    for name in names:
        encoders.append(Encoder.from_recipe(recipe, Template.load(name), tokenizer, config))
    return encoders


def _check_written(counts: Counter[str], source: str) -> None:
    """Raise a DataError if no row is written."""
    if not counts["rows"]:
        raise no_rows(source)
    if counts["left_out"] == counts["rows"]:
        report_counts(counts)
        raise DataError(f"{input_name(source)}: no answer can be a target. Lower --agreement, or change templates.")
