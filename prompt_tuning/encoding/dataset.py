"""Encode every row of a split and report what was cut or left out."""

from __future__ import annotations

import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from prompt_tuning import __version__
from prompt_tuning.encoding.batching import common_prefix
from prompt_tuning.encoding.row_checks import UNREACHABLE_SHOWN, RowCounts, shortest_reference
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import EmptyRowError, OverlongError, OverlongTargetError, TemplateError
from prompt_tuning.support.text import counted

COLUMNS = {
    "input_ids": List(Value("int32")),
    "labels": List(Value("int64")),
    "source": Value("string"),
    "references": List(Value("string")),
    "cut_tokens": Value("int64"),
    "untrained_tokens": Value("int64"),
    "shown_demonstrations": Value("int64"),
    "omitted_demonstrations": Value("int64"),
    "row": Value("int64"),
    "problem": Value("string"),
    "overlong": Value("string"),  # "source", "target" or ""
    "unreachable": Value("string"),
    "reference_tokens": Value("int64"),
    "answer_cut": Value("bool"),
    "empty": Value("bool"),
}
REPORTED_ONLY = [
    "problem", "overlong", "empty", "shown_demonstrations", "unreachable", "reference_tokens", "answer_cut",
    "untrained_tokens",
]  # fmt: skip
COUNTS = ("cut_tokens", "untrained_tokens", "shown_demonstrations", "omitted_demonstrations", "reference_tokens")
CHOICE_COLUMNS = {
    "choices": List(Value("string")),
    "choice_ids": List(List(Value("int64"))),
    "target_choice": Value("int64"),
}


@dataclass(kw_only=True)
class EncodingReport(RowCounts):
    """What encoding did to a split.

    Args:
        common_prefix_length: the number of tokens with which all sources start.
        problems: (row, message) of every row that cannot be encoded.
        held_out_rows: the number of rows that were left out because they are demonstrations.
        rows_with_fewer_demonstrations: the number of rows in which some of their demonstrations do not fit.
        omitted_demonstrations: the number of demonstrations that do not fit, of all rows together.
        rows_without_demonstrations: the number of rows in which not one of their demonstrations fits.
        rows_without_reference: the number of rows without a reference answer, or with empty ones only.
        overlong_problems: the number of problems of rows that are too long.
        long_references: the number of rows of which every reference is longer than a prediction may be.
        empty_problems: the number of empty rows that are among `problems`.
    """

    common_prefix_length: int
    problems: tuple[tuple[int, str], ...]
    held_out_rows: int
    rows_with_fewer_demonstrations: int
    omitted_demonstrations: int
    rows_without_demonstrations: int
    rows_without_reference: int
    overlong_problems: int
    long_references: int
    empty_problems: int

    def __str__(self) -> str:
        """Return one line for the log."""
        parts = [counted(self.rows, "row"), *self.losses()]
        if self.held_out_rows:
            parts.append(f"{self.held_out_rows} left out as they are demonstrations")
        if self.rows_with_fewer_demonstrations:
            without = counted(self.rows_without_demonstrations, "row", "have none")
            parts.append(
                f"{self.rows_with_fewer_demonstrations} with fewer demonstrations ({self.omitted_demonstrations} in "
                f"all did not fit, {without})"
            )
        if self.rows_without_reference:
            parts.append(f"{self.rows_without_reference} without a reference answer")
        if self.problems:
            row, message = self.problems[0]
            parts.append(f"{len(self.problems)} left out because they have problems (row {row}: {message})")
        if self.long_references:
            parts.append(f"{self.long_references} with references over generation_max_length")
        parts.append(f"longest {counted(self.longest, 'token')}")
        if self.common_prefix_length and self.rows > 1:
            parts.append(f"all start with the same {self.common_prefix_length}")
        return ", ".join(parts)


def encode(
    dataset: Dataset,
    encoder: Encoder,
    *,
    training: bool = False,
    drop_overlong: bool = False,
    drop_empty: bool = False,
    num_proc: int | None = None,
    candidates: Dataset | None = None,
    nearest: Sequence[Sequence[int]] | None = None,
    held_out: Set[int] = frozenset(),
    max_new_tokens: int | None = None,
) -> tuple[Dataset, EncodingReport]:
    """Encode every row of a split.

    Args:
        dataset: the rows, with the columns that the template reads.
        encoder: writes one row as token ids.
        training: report a target that is longer than the encoder's max_target_tokens as a problem; it is never cut.
        drop_overlong: leave out rows that do not fit and count them, instead of reporting each as a problem.
        drop_empty: the same for rows for which the template writes no source or no target.
        num_proc: the number of processes; None encodes in this one.
        candidates: the rows that `nearest` chooses demonstrations from.
        nearest: for every row the numbers of its own demonstrations in `candidates`, the nearest first.
        held_out: numbers of rows that are left out and counted, because they are demonstrations.
        max_new_tokens: the number of tokens of a prediction, to count longer references; None counts none.

    Returns:
        The encoded rows and the report. A row has `input_ids`, `labels`, `source`, `references`, `cut_tokens`,
        `omitted_demonstrations` (those that do not fit) and `row`, its number in the split; of a closed question also
        `choices`, `choice_ids` and `target_choice`; for a model behind an API also `prompt`, the JSON of what is
        sent. A row with a problem is only in the report.
    """
    encoded = dataset.map(
        _encode_row,
        # All arguments are part of the key of datasets' cache. The version is one because datasets sees no new code.
        fn_kwargs={
            "encoder": encoder,
            "training": training,
            "candidates": candidates,
            "nearest": nearest,
            "version": __version__,
        },
        with_indices=True,
        remove_columns=dataset.column_names,
        # Without features datasets infers them from the first rows, which may be empty lists.
        features=Features(_columns(encoder)),
        num_proc=num_proc,
        desc="encode",
    )
    return _select_rows(
        encoded,
        encoder,
        held_out,
        drop_overlong=drop_overlong,
        drop_empty=drop_empty,
        max_new_tokens=max_new_tokens or sys.maxsize,
    )


def _columns(encoder: Encoder) -> dict[str, Any]:
    """Return the types of the columns that an encoder writes."""
    columns = COLUMNS | CHOICE_COLUMNS if encoder.closed else COLUMNS
    return columns if encoder.endpoint is None else columns | {"prompt": Value("string")}


def _select_rows(
    encoded: Dataset,
    encoder: Encoder,
    held_out: Set[int],
    *,
    drop_overlong: bool,
    drop_empty: bool,
    max_new_tokens: int,
) -> tuple[Dataset, EncodingReport]:
    """Return the rows without problems that are not held out, and the report of all rows."""
    overlong_part = encoded.data.column("overlong")
    overlong = pc.not_equal(overlong_part, "").to_numpy()
    empty = _numbers(encoded, "empty")
    failed = pc.not_equal(encoded.data.column("problem"), "").to_numpy()
    held = np.isin(np.arange(len(failed)), list(held_out))
    dropped = overlong & drop_overlong
    problems = []
    for row in np.flatnonzero(failed & ~dropped & ~(empty & drop_empty)).tolist():
        problems.append((row, encoded[row]["problem"]))
    kept = ~(failed | held)
    cut = _numbers(encoded, "cut_tokens")[kept]
    omitted = _numbers(encoded, "omitted_demonstrations")[kept]
    shown = _numbers(encoded, "shown_demonstrations")[kept]
    untrained = _numbers(encoded, "untrained_tokens")[kept]
    lengths = pc.list_value_length(encoded.data.column("input_ids")).to_numpy()[kept]
    too_long = _numbers(encoded, "reference_tokens")[kept] > max_new_tokens
    cut_answers = _numbers(encoded, "answer_cut")[kept]
    unreachable = np.flatnonzero(pc.not_equal(encoded.data.column("unreachable"), "").to_numpy() & kept)
    first_unreachable = [(row, encoded[row]["unreachable"]) for row in unreachable[:UNREACHABLE_SHOWN].tolist()]
    if not kept.all():
        encoded = encoded.select(np.flatnonzero(kept))
    report = EncodingReport(
        rows=len(encoded),
        cut_rows=int((cut > 0).sum()),
        cut_tokens=int(cut.sum()),
        dropped_rows=int((dropped & ~held).sum()),
        longest=int(lengths.max(initial=0)),
        common_prefix_length=len(common_prefix(encoded, is_encoder_decoder=encoder.is_encoder_decoder)),
        problems=tuple(problems),
        held_out_rows=len(held_out),
        rows_with_fewer_demonstrations=int((omitted > 0).sum()),
        omitted_demonstrations=int(omitted.sum()),
        rows_without_demonstrations=int(((omitted > 0) & (shown == 0)).sum()),
        rows_without_reference=sum(not any(map(str.strip, texts)) for texts in encoded["references"]),
        dropped_targets=int((pc.equal(overlong_part, "target").to_numpy() & dropped & ~held).sum()),
        overlong_problems=int((overlong & ~dropped).sum()),
        cut_answers=int(cut_answers.sum()),
        long_references=int(too_long.sum()),
        unreachable_targets=len(unreachable),
        unreachable=tuple(first_unreachable),
        empty_rows=int((empty & ~held).sum()) if drop_empty else 0,
        empty_problems=0 if drop_empty else int(empty.sum()),
        untrained_rows=int((untrained > 0).sum()),
        untrained_tokens=int(untrained.sum()),
    )
    return encoded.remove_columns(REPORTED_ONLY), report


def _numbers(encoded: Dataset, column: str) -> np.ndarray:
    return encoded.data.column(column).to_numpy()


def _encode_row(
    row: dict[str, Any],
    index: int,
    *,
    encoder: Encoder,
    training: bool,
    candidates: Dataset | None,
    nearest: Sequence[Sequence[int]] | None,
    version: str,
) -> dict[str, Any]:
    """Return the columns of one row; empty ones, with the problem, if it cannot be encoded."""
    demonstrations = []
    if candidates is not None and nearest is not None:
        demonstrations = [candidates[number] for number in nearest[index]]
    try:
        encoded = (encoder.training_row if training else encoder.row)(row, demonstrations)
        # A closed question is answered by a choice, of any length.
        shortest = 0 if encoder.closed else shortest_reference(encoded["references"], encoder.tokenizer)
        facts = {"row": index, "problem": "", "overlong": "", "empty": False, "reference_tokens": shortest}
        return encoded | facts
    except TemplateError as error:
        encoded = {"input_ids": [], "labels": [], "source": "", "references": []}
        if encoder.closed:
            encoded |= {"choices": [], "choice_ids": [], "target_choice": 0}
        if encoder.endpoint is not None:
            encoded["prompt"] = ""
        counts = dict.fromkeys(COUNTS, 0)
        overlong = isinstance(error, OverlongError)
        part = "target" if isinstance(error, OverlongTargetError) else "source"
        problem = {"problem": str(error), "overlong": part if overlong else "", "unreachable": "", "answer_cut": False}
        problem["empty"] = isinstance(error, EmptyRowError)
        return encoded | counts | {"row": index} | problem
