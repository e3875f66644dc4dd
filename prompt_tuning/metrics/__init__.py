"""Score generated text. The metrics are `evaluate` modules in the folders beside this file, and load without the hub.

    sacrebleu     bleu, bleu_signature: corpus BLEU by sacreBLEU
    chrf          chrf, chrf_signature: corpus chrF++ by sacreBLEU
    ter           ter, ter_signature: translation edit rate by sacreBLEU
    rouge         rouge1, rouge2, rougeL, rougeLsum: mean F-measure by rouge_score
    squad         exact_match, f1: SQuAD's scripts, with rules for other languages
    squad_v1      exact_match, f1: the SQuAD script v1.1
    squad_v2      exact_match, f1, and both for questions with and without an answer: the SQuAD script v2.0
    mlqa          exact_match, f1: MLQA's script
    exact_match   exact_match: literal equality

All are in percent, and the language decides how a text is split. `load_metrics` makes one function of several.
"""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.metrics.loading import MAIN_METRIC, TASK_METRICS, load_metrics
    from prompt_tuning.metrics.scores import MetricFunction, Scores

__all__ = ["MAIN_METRIC", "TASK_METRICS", "MetricFunction", "Scores", "load_metrics"]

__getattr__ = lazy_names(
    __name__,
    {
        "MAIN_METRIC": "loading",
        "MetricFunction": "scores",
        "Scores": "scores",
        "TASK_METRICS": "loading",
        "load_metrics": "loading",
    },
)


def __dir__() -> list[str]:
    return __all__
