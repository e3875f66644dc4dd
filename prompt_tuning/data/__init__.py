"""Rows: read from the hub or from files, and compared between splits."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.data.files import load_file
    from prompt_tuning.data.leakage import Leaks, find_leaks
    from prompt_tuning.data.loading import load_splits

__all__ = ["Leaks", "find_leaks", "load_file", "load_splits"]

__getattr__, __dir__ = lazy_names(
    __name__, {"Leaks": "leakage", "find_leaks": "leakage", "load_file": "files", "load_splits": "loading"}
)
