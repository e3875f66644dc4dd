"""A row as a template writes it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from prompt_tuning.support.text import gap_after


@dataclass(frozen=True)
class Rendered:
    """One row as text.

    Args:
        messages: turns with `role` (system, user or assistant) and `content`.
        target: the text that the model should write. None if the row was rendered for prediction only.
        references: all texts that count as right.
    """

    messages: tuple[dict[str, str], ...]
    target: str | None
    references: tuple[str, ...]

    @property
    def source(self) -> str:
        """All messages as plain text, without a chat template. A demonstration's target follows its source."""
        return "".join(gap + message["content"] for gap, message in zip(self._gaps, self.messages, strict=True))

    @property
    def starts(self) -> list[int]:
        """The place in `source` where each message starts."""
        starts = []
        end = 0
        for gap, message in zip(self._gaps, self.messages, strict=True):
            starts.append(end + len(gap))
            end = starts[-1] + len(message["content"])
        return starts

    @property
    def _gaps(self) -> list[str]:
        """What stands before each message in `source`."""
        gaps = [""]
        for before, message in pairwise(self.messages):
            gaps.append(gap_after(before["content"]) if message["role"] == "assistant" else "\n\n")
        return gaps
