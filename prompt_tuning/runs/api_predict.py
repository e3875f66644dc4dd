"""Predict the rows of a file or of standard input by a model behind an API."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
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
from prompt_tuning.runs.input_rows import input_name, open_input, read_row, stream_input
from prompt_tuning.runs.predict import AskedRow, ask_rows, report_counts, write_prediction
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.runs.shares import Share
from prompt_tuning.support.data_files import checked_path
from prompt_tuning.support.text import print_text
from prompt_tuning.templates.template import Template


def predict_by_api(
    recipe: Recipe, source: str = "-", output: str = "-", *, with_truncated: bool = False
) -> dict[str, int]:
    """Predict for every row by the hard prompt of a recipe, whose model is behind an API.

    Args:
        recipe: the recipe. Its own rows are read only if demonstrations are chosen from them.
        source: the rows, as for `predict`.
        output: the file to write, as for `predict`.
        with_truncated: write the columns `truncated` and `at_limit`.

    Returns:
        What `predict` returns, and how many answers are refused or none of a row's choices.

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
        encoder = _encoder(recipe)
        rows = open_input(source, path) or stream_input(source, path, encoder, files)
        bar = files.enter_context(tqdm(desc=model.name, unit="row", disable=True if output == "-" else None))

        def read(origin: str, row: dict[str, Any]) -> Question:
            question = read_row(encoder, recipe.data, origin, row)
            if not counts["rows"]:
                model.prepare_choices(encoder, question.prompt)
            return question

        def answer(asked: AskedRow) -> ApiAnswer:
            try:
                question = asked.question
                return model.answer_question(encoder, question.prompt, question.choices, recipe)
            except ModelError as error:
                raise ModelError(f"{asked.origin}: {error}") from None

        for asked, of_row in in_order(ask_rows(rows, read, counts), answer, model.concurrency):
            columns: dict[str, Any] = {"prediction": of_row.text}
            if with_truncated:
                columns |= {"truncated": asked.question.cut_tokens > 0, "at_limit": of_row.at_limit}
            write_prediction(file, asked.row, columns)
            file.flush()
            counts.update(api_counts([of_row]))
            bar.update()
            bar.set_postfix_str(str(model.send.bill), refresh=False)
        if not counts["rows"]:
            raise DataError(f"{input_name(source)}: no rows")
        share.write(file, output)
    print_text(str(model.send.bill), file=sys.stderr)
    report_counts(counts)
    return dict(counts)


def _encoder(recipe: Recipe) -> Encoder:
    """Return the encoder of a recipe, with the demonstrations that it chooses from its training rows.

    Raises:
        RecipeError: each row would have demonstrations of its own.
    """
    prompt, data = recipe.prompt, recipe.data
    if prompt.num_demonstrations and prompt.demonstration_selection == "bm25":
        raise RecipeError("demonstration_selection bm25: it is for `evaluate`. Set random or balanced.")
    if prompt.num_demonstrations:
        return prepare(recipe, ("train",)).encoder
    tokenizer = load_tokenizer(recipe.model, data.source_lang, data.target_lang)
    return Encoder.from_recipe(recipe, Template.load(str(prompt.template)), tokenizer, load_config(recipe.model))
