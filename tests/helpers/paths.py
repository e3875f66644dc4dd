"""Name the project's folder, and the files of a run."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def file_names(folder):
    """Return the names in a folder, without the lock that every run leaves."""
    return {path.name for path in folder.iterdir()} - {".prompt_tuning.lock"}
