"""Rules that a recipe can break, as pairs of a condition and a message."""

from __future__ import annotations

# Each rule is (is broken, message). The truth of the first item counts.
Rules = list[tuple[object, str]]


def broken_rules(rules: Rules) -> list[str]:
    """Return the messages of the rules that are broken."""
    return [message for is_broken, message in rules if is_broken]
