"""The local page of `prompt-tuning try`: what a prompt does, side by side with the hard prompt."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.page.trial import Trial

__all__ = ["Trial"]

__getattr__, __dir__ = lazy_names(__name__, {"Trial": "trial"})
