"""The rows that every metric here takes: a prediction and a list of one or more references."""

from collections.abc import Sequence
from itertools import zip_longest

import datasets

FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


def require_references(references: Sequence[Sequence[str]]) -> None:
    """Raise ValueError for the first row without a reference."""
    for row, texts in enumerate(references):
        if not texts:
            raise ValueError(f"row {row} has no reference; this metric needs at least one for each prediction")


def reference_streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Turn references by row into sacreBLEU's references by stream.

    sacreBLEU leaves None out when a row has fewer references than another, and its signature then says "nrefs:var".

    >>> reference_streams([["a", "b"], ["c"]])
    [['a', 'c'], ['b', None]]
    """
    require_references(references)
    return [list(stream) for stream in zip_longest(*references)]
