"""Score generated text. Each metric is an `evaluate` module in a folder beside this file, and loads without the hub.

    sacrebleu     bleu, bleu_signature: corpus BLEU by sacreBLEU
    chrf          chrf, chrf_signature: corpus chrF++ by sacreBLEU
    ter           ter, ter_signature: translation edit rate by sacreBLEU
    rouge         rouge1, rouge2, rougeL, rougeLsum: mean F-measure by rouge_score
    squad         exact_match, f1: the SQuAD scripts v1.1 and v2.0
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
