"""Upload a run with the card that names its repository."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from prompt_tuning.hub.upload import push
from prompt_tuning.reports.model_card import card_for_hub


def push_run(run: str | Path, repo_id: str, **kwargs: Any) -> str:
    """Upload a run in one commit and return the commit's URL; the card names the repository instead of the folder.

    Args:
        run: the folder of the run.
        repo_id: `name` or `user/name`. The repository is created if it does not exist.
        kwargs: the other arguments of `hub.push`, except `card`.

    Raises:
        HubError: what happened and what to do next.
    """
    return push(run, repo_id, card=partial(card_for_hub, Path(run)), **kwargs)
