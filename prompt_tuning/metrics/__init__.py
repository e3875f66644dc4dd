"""Score generated text. The metrics are `evaluate` modules in the folders beside this file, and load without the hub.

`loading.OWN_METRICS` has their names. All are in percent, and the language decides how a text is split. `load_metrics`
makes one function of several.
"""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.metrics.loading import MAIN_METRIC, TASK_METRICS, load_metrics
    from prompt_tuning.metrics.scores import MetricFunction, Scores

__all__ = ["MAIN_METRIC", "TASK_METRICS", "MetricFunction", "Scores", "load_metrics"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MAIN_METRIC": "loading",
        "MetricFunction": "scores",
        "Scores": "scores",
        "TASK_METRICS": "loading",
        "load_metrics": "loading",
    },
)
