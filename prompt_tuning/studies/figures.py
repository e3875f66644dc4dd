"""Pictures by matplotlib, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.errors import PromptTuningError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(file: str, width: float, height: float) -> Figure:
    """An empty figure, its size in inches.

    Raises:
        PromptTuningError: matplotlib is not installed; the message names the file that needs it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PromptTuningError(f"{file} needs matplotlib; pip install matplotlib") from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def write_png(figure: Figure, path: Path) -> None:
    """Draw without a display; the same figure gives the same bytes."""
    figure.savefig(path, metadata={"Software": None})
