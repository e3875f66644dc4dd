"""Find the tokens of a template's literals in training rows, before the rows are encoded with their trained ids."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value

from prompt_tuning import __version__
from prompt_tuning.data.loading import row_origin, streamed_rows
from prompt_tuning.encoding.demonstrations import Demonstrations
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.streaming import FIRST_ROWS
from prompt_tuning.encoding.text_tokens import TextToken
from prompt_tuning.encoding.trained_text import TrainedText, check_fast
from prompt_tuning.errors import TemplateError
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.support.text import counted, listed
from prompt_tuning.templates.literals import Part, literals

logger = logging.getLogger(__name__)

NUMBERS = "numbers"
TOKENS_SHOWN = 20


def find_trained_text(
    recipe: Recipe,
    part: Part,
    encoder: Encoder,
    rows: Dataset | IterableDataset,
    demonstrations: Demonstrations | None,
) -> TrainedText | None:
    """Return the tokens of a template's literals that the training rows have; of a stream, its first rows.

    It returns None if no row can be encoded, whose reason `encode` reports.

    Args:
        recipe: says how rows are read.
        part: the literals that are trained.
        encoder: writes the rows as ordinary hard prompts.
        rows: the training rows.
        demonstrations: the training rows that are shown before others.

    Raises:
        ModelError: the tokenizer is slow.
        TemplateError: as `TrainedText.of_rows` does.
    """
    check_fast(encoder.tokenizer)
    located: Iterable[list[TextToken] | None]
    most: int | None = None
    if isinstance(rows, IterableDataset):
        most = FIRST_ROWS
        located = (_tokens_of(encoder, row, (), part) for row in streamed_rows(rows, recipe.data))
        # Rows that are not dropped are errors, and no further rows are read for those.
        drops = recipe.prompt.drop_overlong or recipe.prompt.drop_empty
        located = located if drops else islice(located, most)
    else:
        located = _tokens_of_rows(recipe, part, encoder, rows, demonstrations)
    held_out = demonstrations.held_out() if demonstrations else frozenset()
    numbered = (
        (number, tokens) for number, tokens in enumerate(located) if tokens is not None and number not in held_out
    )
    encodable = islice(numbered, most)
    first = next(encodable, None)
    if first is None:
        return None
    first_id = encoder.num_embeddings or len(encoder.tokenizer)
    name_row = functools.partial(row_origin, recipe.data, "train")
    texts = literals(encoder.template, encoder.languages, part)
    text = TrainedText.of_rows(part, texts, first_id, chain([first], encodable), name_row)
    tokens = encoder.tokenizer.convert_ids_to_tokens(text.start_ids)
    logger.info("trained text (%s): %s, %s", part, counted(len(tokens), "token"), listed(tokens, most=TOKENS_SHOWN))
    return text


def _tokens_of(
    encoder: Encoder, row: dict[str, Any], nearest: Sequence[dict[str, Any]], part: Part
) -> list[TextToken] | None:
    """Return the tokens of the literals in a row's source, in their order; None if it cannot be encoded."""
    try:
        fitted, _ = encoder.fit_demonstrations(row, nearest)
        source = fitted.cut_source(row)
    except TemplateError:
        return None
    return [token for token in fitted.text_tokens(source, part) if token]


def _tokens_of_rows(
    recipe: Recipe, part: Part, encoder: Encoder, rows: Dataset, demonstrations: Demonstrations | None
) -> Iterable[list[TextToken] | None]:
    """Yield what `_tokens_of` returns for every row, computed by as many processes as encode rows."""
    located = rows.map(
        _row_numbers,
        fn_kwargs={
            "encoder": encoder,
            "part": part,
            "candidates": demonstrations.train if demonstrations else None,
            "nearest": demonstrations.nearest(rows) if demonstrations else None,
            "version": __version__,  # datasets keeps the result under a key of these arguments, not of the code.
        },
        with_indices=True,
        remove_columns=rows.column_names,
        features=Features({NUMBERS: List(List(Value("int64")))}),
        num_proc=recipe.data.preprocessing_num_workers,
        desc="trained text",
    )
    for row in located:
        numbers = row[NUMBERS]
        yield None if numbers is None else [TextToken(*token) for token in numbers]


def _row_numbers(
    row: dict[str, Any],
    index: int,
    *,
    encoder: Encoder,
    part: Part,
    candidates: Dataset | None,
    nearest: Sequence[Sequence[int]] | None,
    version: str,
) -> dict[str, Any]:
    of_row = []
    if candidates is not None and nearest is not None:
        of_row = [candidates[number] for number in nearest[index]]
    return {NUMBERS: _tokens_of(encoder, row, of_row, part)}
