"""Download adapters and whole models from the hub by their id."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import (
    constants,
    get_token,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from prompt_tuning.errors import AdapterError, first_line

RUN_FILES = ("recipe.yaml", "template.yaml", "results.json")


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


MODEL_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "model-*.safetensors",
    "model.safetensors.index.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.model", "chat_template.jinja",
)  # fmt: skip


def is_hub_id(name: str | Path) -> bool:
    """Whether it can be somebody's repository, `user/name` or `user/name@revision`, and not only a folder."""
    return bool(re.fullmatch(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+(@\S+)?", str(name), re.ASCII))


def adapter_folder(name: str | Path) -> Path:
    """The folder of an adapter: itself, or where the files of a hub id were downloaded to.

    Args:
        name: a folder, or a hub id, as `user/name` or with a branch, tag or commit `user/name@revision`. A folder of
            that name wins. Offline the cache answers.

    Raises:
        AdapterError: neither, or the hub cannot be asked.
    """
    return _downloaded(str(name)) if is_hub_id(name) and not Path(name).is_dir() else Path(name)


@functools.cache  # so that all of a run reads one commit
def _downloaded(name: str) -> Path:
    repo_id, _, revision = name.partition("@")
    nowhere = f"{name}: no such folder (looked in {Path.cwd()})"
    try:
        patterns = [*ADAPTER_FILES, *RUN_FILES, "config.json"]
        folder = Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=patterns))
        whole_model = (folder / "config.json").is_file() and (folder / "recipe.yaml").is_file()
        if whole_model:
            snapshot_download(repo_id, revision=folder.name, allow_patterns=list(MODEL_FILES))
    except HFValidationError as error:
        raise AdapterError(f"{nowhere}, nor can it be a repository's id") from error
    except RevisionNotFoundError as error:
        raise AdapterError(f"{repo_id} on {constants.ENDPOINT} has no revision {revision}") from error
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{repo_id}"
        raise AdapterError(f"{repo_id} is gated; ask for access at {page}, as the user of this token") from error
    except RepositoryNotFoundError as error:
        login = "" if get_token() else ", or it is private: log in with `hf auth login`, or set HF_TOKEN"
        raise AdapterError(f"{nowhere}, and no such repository on {constants.ENDPOINT}{login}") from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
        raise AdapterError(f"{nowhere}, not in the cache ({constants.HF_HUB_CACHE}), and {why}") from error
    except HfHubHTTPError as error:
        unreadable = f"this token may not read {repo_id}; log in with one that may"
        reason = unreadable if error.response.status_code == 403 else _refusal(error, repo_id)
        raise AdapterError(f"{nowhere}, and {reason}") from error
    except HTTPError as error:
        raise AdapterError(
            f"{name}: the connection to {constants.ENDPOINT} was lost; run the command again"
        ) from error
    if not whole_model and not (folder / ADAPTER_FILES[0]).is_file():
        raise AdapterError(f"{name} on {constants.ENDPOINT}: no {ADAPTER_FILES[0]} there, so it holds no adapter")
    return folder


def _refusal(error: HfHubHTTPError, repo_id: str) -> str:
    """Why the hub said no, and what to do about it."""
    status, hub = error.response.status_code, constants.ENDPOINT
    if status == 401 and get_token() is None:
        return f"{hub} wants to know who asks; log in with `hf auth login`, or set HF_TOKEN"
    if status == 401:
        return f"{hub} does not accept the token (HF_TOKEN, or that of `hf auth login`); log in with a valid one"
    if status == 403:
        return (
            f"this token may not write to {repo_id}: the name is somebody else's, or the token may only read; name a "
            "repository of your own (`hf auth whoami` tells whose), or log in with a token that may write"
        )
    if status in (409, 412):
        return "somebody else changed it at the same time, and nothing was overwritten; run the same command again"
    if status == 429 or status >= 500:
        return f"{hub} answers {status}, and nothing was changed; wait, and run the same command again"
    return f"{hub} answers {status}: {first_line(error.server_message or error)}"
