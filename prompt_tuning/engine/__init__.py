"""Run a batch so that what its rows share is computed once."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.engine.likelihood import choose, log_likelihoods, target_log_likelihoods
    from prompt_tuning.engine.shared_prefix import SharedPrefixModel, compute_prompt_once

__all__ = ["SharedPrefixModel", "choose", "compute_prompt_once", "log_likelihoods", "target_log_likelihoods"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "SharedPrefixModel": "shared_prefix",
        "choose": "likelihood",
        "log_likelihoods": "likelihood",
        "compute_prompt_once": "shared_prefix",
        "target_log_likelihoods": "likelihood",
    },
)
