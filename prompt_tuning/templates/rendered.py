"""A row as a template writes it."""

from __future__ import annotations

from dataclasses import dataclass

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
        parts: list[str] = []
        for message in self.messages:
            if message["role"] == "assistant":
                parts[-1] += gap_after(parts[-1]) + message["content"]
            else:
                parts.append(message["content"])
        return "\n\n".join(parts)
