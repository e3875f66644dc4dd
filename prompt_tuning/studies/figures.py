"""Draw pictures with matplotlib, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.errors import PromptTuningError
from prompt_tuning.support.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(file: str, width: float, height: float) -> Figure:
    """Return an empty figure.

    Args:
        file: the name of the picture, for the error.
        width: in inches.
        height: in inches.

    Raises:
        PromptTuningError: matplotlib is not installed; the message names the file that needs it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PromptTuningError(f"{file} needs matplotlib. Run: pip install matplotlib") from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def write_png(figure: Figure, path: Path) -> None:
    """Draw a figure without a display. The same figure always has the same bytes."""
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
