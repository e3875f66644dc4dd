"""Upload a run with the card that names its repository."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from prompt_tuning.hub.upload import plan_upload, push
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.reports.model_card import card_for_hub
from prompt_tuning.support.run_folder import RunFolder


def push_run(run: str | Path, repo_id: str, **kwargs: Any) -> str:
    """Upload a run in one commit and return the commit's URL; the card names the repository instead of the folder.

    Args:
        run: the folder of the run.
        repo_id: `name` or `user/name`. The repository is created if it does not exist.
        kwargs: the other arguments of `hub.push`, except `card`.

    Raises:
        HubError: what happened and what to do next.
        AdapterError: the adapter is damaged.
    """
    _check_adapter(Path(run))
    return push(run, repo_id, card=partial(card_for_hub, Path(run)), **kwargs)


def plan_push(run: str | Path, repo_id: str, base_model: str | None = None) -> dict[str, bytes | Path]:
    """Return the files that `push_run` uploads, as `plan_upload` does, without a request to the hub.

    Args:
        run: the folder of the run.
        repo_id: `name` or `user/name`.
        base_model: the hub id that replaces the name of the base model.

    Raises:
        PromptTuningError: why nobody could load the uploaded files.
    """
    _check_adapter(Path(run))
    return plan_upload(run, repo_id, base_model, card=partial(card_for_hub, Path(run)))


def _check_adapter(run: Path) -> None:
    """Raise an AdapterError for a damaged adapter."""
    if RunFolder(run).adapter_config.is_file() and RunFolder(run).adapter_weights.is_file():
        load_adapter_config(run)
