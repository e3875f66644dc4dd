"""Compare, rank, sweep and inspect several runs."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.studies.shared_base import SharedBaseModel

__all__ = ["SharedBaseModel"]

__getattr__, __dir__ = lazy_names(__name__, {"SharedBaseModel": "shared_base"})
