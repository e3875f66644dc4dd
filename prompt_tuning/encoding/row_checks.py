"""Say and count what a row loses on its way to the model and back: a target, a reference, an answer."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from unicodedata import normalize

from transformers import PreTrainedTokenizerBase

from prompt_tuning.encoding.decoding import decode, special_stop_ids, special_tokens
from prompt_tuning.support.text import counted, normalised

DIFFERENCE_SHOWN = 12  # characters
UNREACHABLE_SHOWN = 3  # targets of a split that are named with their reason


@dataclass
class RowCounts:
    """What encoding did to rows, so that nothing is cut or left out without being reported.

    Args:
        rows: the number of encoded rows.
        cut_rows: the number of rows of which tokens were cut.
        cut_tokens: the number of tokens that were cut, of all rows together.
        dropped_rows: the number of rows that were left out because they do not fit their budget.
        empty_rows: the number of rows that were left out because the template writes no source or no target for them.
        longest: the number of tokens of the longest encoded row.
        dropped_targets: the number of dropped_rows whose target is too long, not their source.
        cut_answers: the number of rows in which the answer was in the cut columns, and is not after the cut.
        unreachable_targets: the number of rows whose target no prediction can be.
        unreachable: (row, reason) of the first of these rows.
        untrained_rows: the number of rows with tokens of trained text that no training row has.
        untrained_tokens: the number of these tokens, of all rows together. They have ordinary ids.
    """

    rows: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    dropped_rows: int = 0
    empty_rows: int = 0
    longest: int = 0
    dropped_targets: int = 0
    cut_answers: int = 0
    unreachable_targets: int = 0
    unreachable: tuple[tuple[int, str], ...] = ()
    untrained_rows: int = 0
    untrained_tokens: int = 0

    def losses(self) -> list[str]:
        """Return for the log what was cut, or that nothing was, and what else the rows lost."""
        parts = [f"{self.cut_rows} cut by {counted(self.cut_tokens, 'token')} in all" if self.cut_rows else "none cut"]
        if self.dropped_rows:
            of_targets = f" ({self.dropped_targets} for their target)" if self.dropped_targets else ""
            parts.append(f"{self.dropped_rows} left out{of_targets}")
        if self.cut_answers:
            parts.append(f"{self.cut_answers} whose answer was cut away")
        if self.unreachable_targets:
            parts.append(f"{self.unreachable_targets} with a target that no prediction can be")
        if self.empty_rows:
            parts.append(f"{self.empty_rows} left out as empty")
        if self.untrained_rows:
            tokens = counted(self.untrained_tokens, "token")
            parts.append(f"{self.untrained_rows} with {tokens} of the trained text that no training row has")
        return parts


def unreachable_target(
    ids: Sequence[int],
    target: str,
    references: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    stop: Sequence[str],
) -> str:
    """Say why no prediction can be the target; "" if a prediction of its ids is the target or a reference.

    Spaces around a text, around its lines and between its words are not compared, because metrics ignore them.

    Args:
        ids: the token ids of the target with its end.
        target: its text.
        references: the texts that count as right.
        tokenizer: the model's tokenizer.
        stop: the stop texts.
    """
    expected = _lines(target)
    [text] = decode([ids], tokenizer, stop)
    if _lines(text) in chain([expected], map(_lines, references)):
        return ""
    whole = [token for token in ids if token not in special_stop_ids(tokenizer, stop)]
    [unstopped] = decode([whole], tokenizer)
    for end in stop:
        if end in unstopped.lstrip():
            return f"a prediction ends at the stop text {end!r} within it; take it out of stop, or out of the target"
    written = [token for token, id in special_tokens(tokenizer).items() if token in target and id in ids]
    if written:
        return f"decoding leaves out the special token {written[0]!r} in it; take it out of the target"
    plain = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if _lines(plain) == expected:
        return "the tokenizer's clean_up_tokenization_spaces changes its spaces; set it to false in its file"
    before, after = _difference(expected, _lines(unstopped))
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        return f"the tokenizer has no token for a character of {before.strip()!r}; write it in characters that it has"
    # A letter with its mark looks the same as one character and as two.
    show = ascii if normalize("NFC", before) == normalize("NFC", after) else repr
    return f"the tokenizer changes {show(before)} to {show(after)}; write the target as the tokenizer does"


def _lines(text: str) -> str:
    """Return a text with single spaces between words, and line breaks between lines."""
    return "\n".join(map(str.strip, re.sub(r"[^\S\n]+", " ", text.strip()).split("\n")))


def _difference(one: str, other: str) -> tuple[str, str]:
    """Return what two texts read from their first difference on, shortened."""
    start = len(os.path.commonprefix([one, other]))  # noqa: RUF071  They are texts, not paths.
    return one[start : start + DIFFERENCE_SHOWN], other[start : start + DIFFERENCE_SHOWN]


def shortest_reference(references: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of tokens of the shortest reference without its end, 0 if there is none."""
    if not references:
        return 0
    return min(map(len, tokenizer(list(references), add_special_tokens=False).input_ids))


def answer_is_cut(row: dict[str, Any], cut: dict[str, Any], columns: Sequence[str], references: Sequence[str]) -> bool:
    """Return whether the columns that were cut held a reference before the cut, and hold none after it.

    Args:
        row: the row.
        cut: the same row with its cut columns.
        columns: the columns that may be cut.
        references: the texts that count as right.
    """
    changed = [column for column in columns if row.get(column) != cut.get(column)]
    before = normalised("\n".join(map(row.__getitem__, changed)))
    after = normalised("\n".join(map(cut.__getitem__, changed)))
    answers = list(map(normalised, references))
    return any(map(before.__contains__, answers)) and not any(map(after.__contains__, answers))
