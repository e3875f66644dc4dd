"""The type of what metrics return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MetricFunction = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float | str]]
"""`score(predictions, references)`, with one prediction and a list of references a row; it returns flat scores."""


@dataclass(frozen=True)
class Scores:
    """Scores of some rows, and how they were computed.

    Args:
        values: the score of each metric. The metrics of this package are in percent.
        signatures: texts beside the scores, such as `bleu_signature`, by which sacreBLEU repeats a score.
    """

    values: dict[str, float]
    signatures: dict[str, str]

    @classmethod
    def from_json(cls, flat: Mapping[str, Any]) -> Scores:
        """Return the scores of a flat mapping, as results.json and `load_metrics` have it: texts are signatures."""
        values: dict[str, float] = {}
        signatures: dict[str, str] = {}
        for name, value in flat.items():
            if isinstance(value, str):
                signatures[name] = value
            else:
                values[name] = value
        return cls(values, signatures)

    def to_json(self) -> dict[str, float | str]:
        """Return the flat mapping that `from_json` reads."""
        return {**self.values, **self.signatures}

    def rounded(self) -> Scores:
        """Return the scores with the two decimals that results.json has."""
        values = {name: round(value, 2) for name, value in self.values.items()}
        return Scores(values, self.signatures)
