"""Tell the ids of the hub from other names."""

from __future__ import annotations

import re
from pathlib import Path

from prompt_tuning.support.run_folder import RunFolder


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name can be a repository of the hub: `user/name` or `user/name@revision`."""
    return bool(re.fullmatch(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+(@\S+)?", str(name), re.ASCII))


def is_on_hub(name: str | Path) -> bool:
    """Return whether a name stands for a repository of the hub here: an id, and neither a folder nor beside runs.

    `runs/mnie` beside `runs/mine` is a misspelt folder; `runs/mnie@main` is the repository.
    """
    path = Path(name)
    is_beside_runs = "@" not in path.name and any(path.parent.glob(f"*/{RunFolder.RECIPE}"))
    return is_hub_id(name) and not path.is_dir() and not is_beside_runs


def check_local_adapter(name: str | Path, *, or_model: bool = False) -> None:
    """Check that a folder holds the files of an adapter. The hub is not asked for an id.

    Args:
        name: a folder or a hub id.
        or_model: the folder of a whole model will do.

    Raises:
        AdapterError: a file is missing.
    """
    run = RunFolder(Path(name))
    if not is_on_hub(name) and not (or_model and run.model_config.is_file()):
        run.check_adapter()
