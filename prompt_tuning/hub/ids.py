"""Tell the ids of the hub from other names."""

from __future__ import annotations

import re
from pathlib import Path


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name can be a repository of the hub: `user/name` or `user/name@revision`."""
    return bool(re.fullmatch(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+(@\S+)?", str(name), re.ASCII))
