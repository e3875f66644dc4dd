"""Check and reorder the references of rows. Every metric here takes a prediction and a list of references a row."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import datasets

FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


def require_references(references: Sequence[Sequence[str]]) -> None:
    """Raise a ValueError for the first row without a reference."""
    for row, texts in enumerate(references):
        if not texts:
            raise ValueError(f"row {row} has no reference; this metric needs at least one for each prediction")


def reference_streams(references: Sequence[Sequence[str]]) -> list[Any]:
    """Turn references by row into sacreBLEU's references by stream.

    A row with fewer references than another one has None in the last streams. sacreBLEU skips None, and its signature
    then has "nrefs:var".

    >>> reference_streams([["a", "b"], ["c"]])
    [['a', 'c'], ['b', None]]
    """
    require_references(references)
    return [list(stream) for stream in zip_longest(*references)]
