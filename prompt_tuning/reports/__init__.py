"""Turn a run's facts into text: summary, model card and HTML report."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.reports.facts import card_facts
    from prompt_tuning.reports.html import write_report
    from prompt_tuning.reports.model_card import card_text, write_card
    from prompt_tuning.reports.summary import summarize

__all__ = ["card_facts", "card_text", "summarize", "write_card", "write_report"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "card_facts": "facts",
        "card_text": "model_card",
        "summarize": "summary",
        "write_card": "model_card",
        "write_report": "html",
    },
)
