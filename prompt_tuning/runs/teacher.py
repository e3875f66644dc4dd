"""Make training rows of a model's answers, so that a large model behind an API is the teacher of a small one.

This is sequence-level distillation (Kim & Rush 2016): the answers become targets. Only those that several prompts
agree on are kept, since answers that a model gives in only one wording are more often wrong (Wang et al. 2023).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.metrics.loading import MAIN_METRIC, TASK_METRICS, load_metrics
from prompt_tuning.metrics.scores import MetricFunction
from prompt_tuning.runs.api_model import ApiAnswer

EQUAL = 100.0


@dataclass(frozen=True)
class Targets:
    """Which answers become targets.

    Args:
        data: names the task, the columns and the language.
        templates: other templates that each row is asked with, too.
        agreement: the least score, in the task's main metric, of any two answers to a row.
    """

    data: DataArguments
    templates: Sequence[str] = ()
    agreement: float = EQUAL

    def row(self, row: dict[str, Any], answers: Sequence[ApiAnswer], counts: Counter[str]) -> dict[str, Any] | None:
        """Return a row with the first answer as its target, or None, and count a row that is left out.

        Args:
            row: the row.
            answers: to the row by each template, up to one that cannot be a target.
            counts: receives `left_out`, and `disagree` for answers that differ.
        """
        texts = [answer.text for answer in answers]
        bad = fault(answers[-1]) is not None
        differ = not bad and self.lowest_score(texts) < self.agreement
        counts.update(left_out=bad or differ, disagree=differ)
        return None if bad or differ else target_row(row, texts[0], self.data)

    @cached_property
    def _score(self) -> MetricFunction:
        """The metrics of the task; those of the recipe may lack the main one."""
        return load_metrics(TASK_METRICS[str(self.data.task)], language=self.data.metric_language)

    def lowest_score(self, texts: Sequence[str]) -> float:
        """Return the lowest score of any two texts against each other, by the task's main metric; 100 for equal ones.

        Args:
            texts: one or more.
        """
        metric = MAIN_METRIC[str(self.data.task)]
        different = combinations(dict.fromkeys(texts), 2)  # BLEU gives equal texts of fewer than four tokens 0.
        return min((float(self._score([one], [[other]])[metric]) for one, other in different), default=EQUAL)


def fault(answer: ApiAnswer) -> str | None:
    """Return why an answer cannot be a target, by the names of PREDICTION_LOSSES; None if it can."""
    if answer.refused:
        return "refused"
    if not answer.text:
        return "empty"
    if answer.at_limit:
        return "at_limit"
    return "no_choice" if answer.no_choice else None


def target_row(row: dict[str, Any], text: str, data: DataArguments) -> dict[str, Any]:
    """Return a row whose target is a text, in the column that the recipe reads it from."""
    if data.task == "translation":
        language = str(data.target_lang)
        if isinstance(row.get("translation"), dict):
            return row | {"translation": row["translation"] | {language: text}}
        return row | {data.target_column or language: text}
    if data.task == "summarization":
        return row | {data.summary_column or "summary": text}
    return row | {data.answer_column or "answers": [text]}
