"""Choose a shipped template for a user's rows, with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from prompt_tuning.data.column_texts import are_yes_or_no
from prompt_tuning.data.recognition import TARGETS, Recognized
from prompt_tuning.templates.conversations import MESSAGES
from prompt_tuning.templates.loading import shipped_templates

MOST_LINES = 0.05
"""The largest share of targets of several lines that a template may cut at their first line break."""

SPEAKERS = r"(?m)^[^\n:：]{1,30}[:：].*\n[^\n:：]{1,30}[:：]"
"""Two lines of a dialogue, each of which begins with who speaks."""


def choose_template(
    recognized: Recognized,
    rows: Sequence[Mapping[str, Any]],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    language: str | None,
) -> tuple[str, str]:
    """Return a shipped template and the reason for it.

    Args:
        recognized: what is known of the rows.
        rows: some rows.
        config: of the model.
        tokenizer: of the model.
        language: of the targets. Rows in Chinese get the same template in Chinese if there is one.
    """
    name, reason = _template_in_english(recognized, rows, config, tokenizer)
    task, _, kind = name.partition("/")
    in_chinese = f"{task}/zh_{kind}"
    if language != "zh" or in_chinese not in shipped_templates():
        return name, reason
    # The choices of a template are a part of it, so that answers of "yes" and "no" need the English one.
    if kind == "yes_no" and "是" not in map(str.strip, recognized.texts["answers"]):
        return name, reason
    return in_chinese, reason


def _template_in_english(
    recognized: Recognized,
    rows: Sequence[Mapping[str, Any]],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[str, str]:
    task = recognized.settings["task"]
    targets = recognized.texts[TARGETS[task]]
    if MESSAGES in recognized.texts:
        if tokenizer.chat_template:
            return "conversation/messages", "The turns are written by the tokenizer's chat template."
        return "conversation/plain", "The tokenizer has no chat template. A line names who speaks."
    other = f"Words for the model. `prompt-tuning templates {task}` lists others, and `rank` finds the best of them."
    if "t5" in config.model_type:
        return f"{task}/t5", "T5 was pre-trained with this wording."
    if task == "question_answering":
        if are_yes_or_no(targets):
            return f"{task}/yes_no", "All answers are yes or no, so that the likelier of the two is taken."
        if all(isinstance(row.get("choices"), list) for row in rows):
            return f"{task}/multiple_choice", "The rows have a list of choices."
        if not all(map(str.strip, targets)):
            return f"{task}/unanswerable", "Some questions have no answer."
    if _share("\n", targets) > MOST_LINES:
        kind = "chat" if tokenizer.chat_template else "t5"
        reason = "Some targets have several lines, and most templates end a prediction at a line break."
        return f"{task}/{kind}", reason
    if task == "summarization" and _share(SPEAKERS, recognized.texts["document"]) > 0.5:
        return f"{task}/instruction_dialogue", "The texts are dialogues."
    return f"{task}/{'plain' if task == 'translation' else 'instruction_last'}", other


def _share(pattern: str, texts: Sequence[str]) -> float:
    """Return the share of texts in which a pattern occurs, apart from spaces at their ends."""
    return sum(re.search(pattern, text.strip()) is not None for text in texts) / len(texts)
