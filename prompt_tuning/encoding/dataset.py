"""Encode every row of a split and report what was cut or left out."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from prompt_tuning.encoding.batching import common_prefix
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import OverlongError, TemplateError

if TYPE_CHECKING:
    from prompt_tuning.encoding.demonstrations import Nearest

COLUMNS = {
    "input_ids": List(Value("int32")), "labels": List(Value("int64")), "source": Value("string"),
    "references": List(Value("string")), "cut": Value("int64"), "left_out": Value("int64"), "shown": Value("int64"),
    "row": Value("int64"), "problem": Value("string"), "overlong": Value("bool"),
}  # fmt: skip


OF_CHOICES = {"choices": List(Value("string")), "choice_ids": List(List(Value("int64")))}


@dataclass(frozen=True)
class EncodingReport:
    """What encoding did to a split, so that nothing is cut or left out unseen."""

    rows: int
    cut_rows: int
    cut_tokens: int
    dropped_rows: int
    longest: int
    opening: int
    problems: tuple[tuple[int, str], ...]
    held_out_rows: int = 0
    lacking_rows: int = 0
    lacking_demonstrations: int = 0
    bare_rows: int = 0

    def __str__(self) -> str:
        cut = f"{self.cut_rows} cut by {self.cut_tokens} tokens in all" if self.cut_rows else "none cut"
        dropped = f", {self.dropped_rows} left out" if self.dropped_rows else ""
        if self.held_out_rows:
            dropped += f", {self.held_out_rows} left out as they are demonstrations"
        if self.lacking_rows:
            counts = f"{self.lacking_demonstrations} in all did not fit, {self.bare_rows} rows have none"
            dropped += f", {self.lacking_rows} with fewer demonstrations ({counts})"
        if self.problems:
            row, message = self.problems[0]
            dropped += f", {len(self.problems)} left out for what is wrong with them (row {row}: {message})"
        opening = f", all open with the same {self.opening}" if self.opening and self.rows > 1 else ""
        return f"{self.rows} rows, {cut}{dropped}, longest {self.longest} tokens{opening}"


def encode(
    dataset: Dataset,
    encoder: Encoder,
    *,
    training: bool = False,
    drop_overlong: bool = False,
    num_proc: int | None = None,
    nearest: Nearest | None = None,
    held_out: Set[int] = frozenset(),
) -> tuple[Dataset, EncodingReport]:
    """Encode every row of a split.

    Args:
        training: a target longer than the encoder's max_target_tokens is then a problem (never cut).
        drop_overlong: leave rows that do not fit out, and count them, in place of reporting each as a problem.
        held_out: rows that are left out, and counted, since they are demonstrations.

    Returns:
        The rows with `input_ids`, `labels`, `source`, `references`, `cut`, the number of demonstrations `left_out`
        since they did not fit, their own number in the split as `row`, and for closed questions `choices` and
        `choice_ids`; and the report, whose `problems` are (row, message). A row with a problem is not among the rows.
    """
    encoded = dataset.map(
        _encode_row,
        # Part of the key of datasets' cache, which does not see that this module's code has changed: the version.
        fn_kwargs=dict(encoder=encoder, training=training, nearest=nearest, version=version("prompt_tuning")),
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(COLUMNS | OF_CHOICES if encoder.closed else COLUMNS),  # not as the first rows may look
        num_proc=num_proc,
        desc="encode",
    )
    columns = {name: encoded.data.column(name).to_numpy() for name in ("cut", "left_out", "shown", "overlong")}
    columns["length"] = pc.list_value_length(encoded.data.column("input_ids")).to_numpy()
    bad = pc.not_equal(encoded.data.column("problem"), "").to_numpy()
    held = np.isin(np.arange(len(bad)), list(held_out))
    dropped = columns["overlong"] & drop_overlong
    problems = tuple((row, encoded[row]["problem"]) for row in np.flatnonzero(bad & ~dropped).tolist())
    kept = ~(bad | held)
    cut, left_out, shown, lengths = (columns[name][kept] for name in ("cut", "left_out", "shown", "length"))
    if not kept.all():
        encoded = encoded.select(np.flatnonzero(kept))
    report = EncodingReport(
        rows=len(encoded),
        cut_rows=int((cut > 0).sum()),
        cut_tokens=int(cut.sum()),
        dropped_rows=int((dropped & ~held).sum()),
        longest=int(lengths.max(initial=0)),
        opening=len(common_prefix(encoded, encoder.is_encoder_decoder)),
        problems=problems,
        held_out_rows=len(held_out),
        lacking_rows=int((left_out > 0).sum()),
        lacking_demonstrations=int(left_out.sum()),
        bare_rows=int(((left_out > 0) & (shown == 0)).sum()),
    )
    return encoded.remove_columns(["problem", "overlong", "shown"]), report


def _encode_row(
    row: dict[str, Any], index: int, encoder: Encoder, training: bool, nearest: Nearest | None, version: str
) -> dict[str, Any]:
    try:
        encoded = (encoder.training_row if training else encoder.row)(row, nearest.of(index) if nearest else ())
        return encoded | {"row": index, "problem": "", "overlong": False}
    except TemplateError as error:
        blank = {"input_ids": [], "labels": [], "source": "", "references": [], "cut": 0, "left_out": 0, "shown": 0}
        blank |= {"choices": [], "choice_ids": []} if encoder.closed else {}
        return blank | {"row": index, "problem": str(error), "overlong": isinstance(error, OverlongError)}
