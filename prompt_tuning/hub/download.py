"""Download adapters and whole models from the hub by their id."""

from __future__ import annotations

import functools
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import (
    HfApi,
    constants,
    get_token,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from prompt_tuning.errors import AdapterError
from prompt_tuning.hub.ids import is_on_hub
from prompt_tuning.hub.refusal import explain_refusal
from prompt_tuning.support.run_folder import RunFolder


def hub_answers(repo_id: str, repo_type: str, file: str, revision: str | None = None) -> bool:
    """Return False if a repository is not in the cache and the hub cannot be reached.

    The libraries would find that out only after many retries. True says nothing of the repository.

    Args:
        repo_id: the id of the repository.
        repo_type: model, dataset or space.
        file: a file that every repository of the kind has, which is looked for in the cache.
        revision: the branch, tag or commit.
    """
    try:
        if isinstance(try_to_load_from_cache(repo_id, file, revision=revision, repo_type=repo_type), str):
            return True
        HfApi().repo_info(repo_id, revision=revision, repo_type=repo_type)
    except (HfHubHTTPError, HFValidationError):
        return True
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


def adapter_folder(name: str | Path) -> Path:
    """Return the folder of an adapter, after a download if the name is a hub id.

    Args:
        name: a folder or a hub id. A hub id is `user/name`, or `user/name@revision` with a branch, tag or commit. A
            folder of that name is preferred, and a name beside local runs is a folder. Without a connection the cache
            is used.

    Raises:
        AdapterError: the hub has no such adapter, or cannot be reached.
    """
    if is_on_hub(name):
        return download_adapter(str(name))
    return Path(name)


@functools.cache  # A branch may move, and a whole command reads one commit.
def download_adapter(name: str) -> Path:
    """Download an adapter, or a run that trained a whole model, and return its folder in the cache.

    Args:
        name: `user/name` or `user/name@revision`.

    Raises:
        AdapterError: the hub has no such adapter, or cannot be reached. The token is not in the message.
    """
    repo_id, _, revision = name.partition("@")
    try:
        folder = _download(repo_id, revision or None)
    except HfHubHTTPError as error:
        raise AdapterError(_explain_answer(error, name)) from error
    except HFValidationError as error:
        raise AdapterError(f"{_no_folder(name)}, and not a valid hub id. Name a folder or USER/NAME.") from error
    except LocalEntryNotFoundError as error:
        # The client reports a refusal as a missing file if the cache does not have the file.
        if isinstance(error.__cause__, HfHubHTTPError):
            raise AdapterError(_explain_answer(error.__cause__, name)) from error
        reason = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
        raise AdapterError(f"{_no_folder(name)}, not in the cache ({constants.HF_HUB_CACHE}), and {reason}") from error
    except HTTPError as error:
        raise AdapterError(
            f"{name}: the connection to {constants.ENDPOINT} was lost. Run the command again."
        ) from error
    if not folder.adapter_config.is_file() and not _is_whole_model(folder):
        missing = folder.ADAPTER_CONFIG
        raise AdapterError(
            f"{name} on {constants.ENDPOINT}: no {missing}, so it holds no adapter. Name another repository."
        )
    return folder.path


def _download(repo_id: str, revision: str | None) -> RunFolder:
    """Download the files of an adapter, and those of a whole model if the repository holds a run of one."""
    patterns = [
        *RunFolder.ADAPTER_FILES, *RunFolder.RUN_FILES, RunFolder.BASE_MODEL, RunFolder.MODEL_CONFIG,
    ]  # fmt: skip
    folder = RunFolder(Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns)))
    if _is_whole_model(folder):
        # A folder in the cache is named after its commit.
        snapshot_download(repo_id, revision=folder.path.name, allow_patterns=list(RunFolder.MODEL_FILES))
    return folder


def _is_whole_model(folder: RunFolder) -> bool:
    return folder.model_config.is_file() and folder.recipe.is_file()


def _no_folder(name: str) -> str:
    return f"{name}: no such folder (looked in {Path.cwd()})"


def _explain_answer(error: HfHubHTTPError, name: str) -> str:
    """Return what the hub answered to a download, and what to do about it."""
    repo_id, _, revision = name.partition("@")
    hub = constants.ENDPOINT
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} on {hub}: no revision {revision}. Name another branch, tag or commit."
    if isinstance(error, GatedRepoError):
        return f"{repo_id}: its owner must allow access. Ask for it at {hub}/{repo_id}, as the user of this token."
    if isinstance(error, RepositoryNotFoundError):
        login = "" if get_token() else ", or it is private. Log in with `hf auth login`, or set HF_TOKEN."
        return f"{_no_folder(name)}, and no such repository on {hub}{login}"
    if error.response.status_code == 403:
        return f"{_no_folder(name)}, and this token may not read {repo_id}. Log in with one that may."
    return f"{_no_folder(name)}, and {explain_refusal(error, repo_id)}"
