"""Runs on the Hugging Face hub: a folder goes up as one commit, an adapter comes down by its id.

What goes up is named, file by file, so that nothing else can: no checkpoint with its optimiser's state, no prediction
and no report.html (rows of the data are in them), no training arguments (they may hold a token), and no
initial_prompt.safetensors, in which the training rows of an init from demonstrations could be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from httpx2 import HTTPError
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id

from prompt_tuning.errors import HubError, first_line
from prompt_tuning.hub.download import ADAPTER_FILES, MODEL_FILES, RUN_FILES, _refusal, is_hub_id
from prompt_tuning.support.files import read_json

# Settings, and what results.json quotes of rows: texts of the user's, where a leading slash makes no path.
TEXTS = ("init_text", "init_labels", "example", "own_example", "answers")


def push(
    run: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
    finished: bool = True,
    token: str | None = None,
    message: str = "Push a run of prompt_tuning",
) -> str:
    """Upload a run in one commit, so that all of it is there or nothing, and it may be done again; its commit's URL.

    Args:
        repo_id: `name` or `user/name`; made if it is not there.
        private: of a repository that is made; one that is public already is then refused.
        revision: the branch, made if it is not there; by default main.
        base_model: hub id to write in place of the base model that the adapter was trained on.
        overwrite: also replace an adapter of another base model.
        finished: refuse a folder without results.

    Raises:
        HubError: with what happened and what to do next. The token is in no message.
    """
    plan_upload(run, repo_id, base_model, finished)  # what is wrong here is said before anything is made there
    api, base = HfApi(token=token, library_name="prompt_tuning"), _base_model(Path(run), base_model)
    with _explained(repo_id):
        if base:
            _check_base_is_on_hub(api, base)
        repo_id = create_repository(repo_id, private, token)
        if revision and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.model_info(repo_id, revision=revision)
        if private and not there.private:
            raise HubError(f"{repo_id} is public already; leave private out, or name another repository")
        _check_there(api, there, base, overwrite)
        files = plan_upload(run, repo_id, base_model, finished)
        others = {sibling.rfilename for sibling in there.siblings or []} - set(files)
        # Of a whole model that is replaced no shard and no part of its tokenizer stays.
        stale = [] if base else [name for name in others if any(fnmatch(name, each) for each in MODEL_FILES)]
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
            + [CommitOperationDelete(path_in_repo=name) for name in sorted(stale)],
            commit_message=message,
            revision=revision,
            parent_commit=there.sha,  # what somebody else commits meanwhile is not overwritten
        )
    return commit.commit_url


def create_repository(repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """The full id of a repository that is there now."""
    with _explained(repo_id):
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def plan_upload(
    run: str | Path, repo_id: str, base_model: str | None = None, finished: bool = True
) -> dict[str, bytes | Path]:
    """What `push` uploads, by name; asks no network. No path of this machine stays in the text files.

    Raises:
        HubError: not a finished run, or one whose base model nobody else has.
    """
    run = Path(run)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(
            f"--repo_id {repo_id}: {str(error).split(':')[0].rstrip('.')}; give NAME or USER/NAME"
        ) from error
    adapter = (run / ADAPTER_FILES[0]).is_file()
    needed = [*(ADAPTER_FILES if adapter else ["config.json"]), *(RUN_FILES if finished else [])]
    if missing := [name for name in needed if not (run / name).is_file()]:
        what = missing[0] if adapter or missing[0] != "config.json" else ADAPTER_FILES[0]
        tasks = sorted(str(path.parent) for path in run.glob("*/template.yaml"))
        wanted = (
            f"name the run of one task: {', '.join(tasks)}"
            if tasks
            else "push wants the folder of a finished `prompt-tuning train`"
        )
        raise HubError(f"{run}: no {what} there; {wanted}")
    if finished and adapter and not (run / "README.md").is_file():
        raise HubError(f"{run}: no README.md there; `prompt-tuning card {run}` writes it")
    _base_model(run, base_model)
    patterns = ["README.md", *RUN_FILES, *(ADAPTER_FILES if adapter else MODEL_FILES)]
    paths = sorted({path for pattern in patterns for path in run.glob(pattern) if path.is_file()})
    return {path.name: _public_file(path, repo_id, base_model) for path in paths}


def list_upload(files: dict[str, bytes | Path]) -> str:
    """Names and sizes, for --dry-run."""
    sizes = {
        name: content.stat().st_size if isinstance(content, Path) else len(content) for name, content in files.items()
    }
    lines = [f"{size:>13,}  {name}" for name, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()):>13,}  bytes in {len(sizes)} files"])


def _base_model(run: Path, base_model: str | None) -> str | None:
    """The hub id that an adapter will name; None for a run that is a whole model itself."""
    if not (run / ADAPTER_FILES[0]).is_file():
        return None
    trained_on = read_json(run / ADAPTER_FILES[0]).get("base_model_name_or_path")
    if base_model:
        try:
            validate_repo_id(base_model)
        except HFValidationError as error:
            raise HubError(f"--base_model {base_model}: no hub id; give USER/NAME") from error
        return base_model
    results = read_json(run / "results.json") if (run / "results.json").is_file() else {"base_model": trained_on}
    local = "model" in results and "base_model" not in results  # a folder where it was trained, wherever this is
    base = trained_on
    if base and not local and not Path(base).is_dir() and (is_hub_id(base) or "/" not in base):
        return base
    raise HubError(
        f"{run}: its adapter names the base model {base}, a folder that only this machine has, so nobody else could "
        "load it; name the hub model that it is a copy of, as --base_model USER/NAME"
    )


def _check_base_is_on_hub(api: HfApi, base: str) -> None:
    try:
        api.model_info(base)
    except RepositoryNotFoundError as error:
        raise HubError(
            f"the adapter names the base model {base}, and {constants.ENDPOINT} has none of that name that this token "
            "may read; name the hub model that it was trained on, as --base_model USER/NAME"
        ) from error


def _check_there(api: HfApi, there: ModelInfo, base: str | None, overwrite: bool) -> None:
    """Refuse to put an adapter over that of another model, or beside a whole model, and the other way round."""
    names = {sibling.rfilename for sibling in there.siblings or []}
    other = "config.json" if base else ADAPTER_FILES[0]
    if other in names:
        what = "a whole model" if base else "an adapter"
        raise HubError(f"{there.id} holds {what} ({other}), and the two cannot share it; name another repository")
    if not base or ADAPTER_FILES[0] not in names or overwrite:
        return
    path = api.hf_hub_download(there.id, ADAPTER_FILES[0], revision=there.sha)
    theirs = read_json(Path(path)).get("base_model_name_or_path")
    if theirs != base:
        raise HubError(
            f"{there.id} holds an adapter of {theirs}, this one is of {base}; name another repository, or replace it "
            "with --overwrite"
        )


def public_name(text: str) -> str:
    """A path as others may read it: of one that says where this machine keeps its files, the last name."""
    path = Path(text)
    return path.name if path.is_absolute() or ".." in path.parts or path.parts[:1] == ("~",) else text


def public(value: Any) -> Any:
    """Settings or results without folders of this machine: an absolute path becomes its last name."""
    if isinstance(value, dict):
        return {key: each if key in TEXTS else public(each) for key, each in value.items()}
    if isinstance(value, list):
        return [public(each) for each in value]
    return public_name(value) if isinstance(value, str) else value


def _public_file(path: Path, repo_id: str, base_model: str | None) -> bytes | Path:
    """A file as others may read it; the path of one that holds no path of this machine."""
    if path.name == "README.md":
        return _public_card(path, repo_id, base_model).encode()
    if path.name == "recipe.yaml":
        try:
            settings = public(yaml.safe_load(path.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise HubError(f"{path}: not YAML: {first_line(error)}") from error
        settings |= {"model_name_or_path": base_model} if base_model else {}
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120).encode()
    if path.name not in ("results.json", ADAPTER_FILES[0]):
        return path
    named = ("model", "base_model") if path.name == "results.json" else ("base_model_name_or_path",)
    values = public(read_json(path)) | (dict.fromkeys(named, base_model) if base_model else {})
    return json.dumps(values, indent=2, ensure_ascii=False).encode()


def _public_card(path: Path, repo_id: str, base_model: str | None) -> str:
    """The model card, in which no path stands, with the names that others call adapter and base model by."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(prompt-tuning predict --adapter) .+?(?= --input)", rf"\1 {repo_id}", text)
    text = re.sub(r"(?m)^adapter = ['\"].+['\"]$", f"adapter = {repo_id!r}", text)
    if not base_model:
        return text
    # Where it is named, and nowhere else: a folder may be called as a word of the template is.
    text = re.sub(r"(?m)^model_name_or_path: .*$", f"model_name_or_path: {base_model}", text, count=1)
    text = re.sub(r"(?m)^(.*? for the frozen|A whole model:) `[^`]+`", rf"\1 `{base_model}`", text, count=1)
    text = re.sub(r"(tokenizer = AutoTokenizer\.from_pretrained)\('.*?'\)", rf"\1({base_model!r})", text)
    try:
        card = ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise HubError(f"{path}: its metadata is not YAML: {first_line(error)}") from error
    card.data.base_model = base_model
    return str(card)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn what the hub's client raises into an error that says what happened and what to do next."""
    again = "a push is one commit, so nothing is half there: run the same command again"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo_id}: HF_HUB_OFFLINE is set, so nothing was sent; unset it to push") from error
    except HfHubHTTPError as error:
        raise HubError(f"{repo_id}: {_refusal(error, repo_id)}") from error
    except (HTTPError, RuntimeError, ConnectionError, LocalEntryNotFoundError) as error:
        # Uploads run in threads or in hf_xet, which report a lost connection as a RuntimeError.
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            raise HubError(f"{repo_id}: {_refusal(cause, repo_id)}") from error
        why = f"{type(cause).__name__}: {first_line(cause)}"
        raise HubError(f"{repo_id}: the connection to {constants.ENDPOINT} failed ({why}); {again}") from error
    except ValueError as error:
        raise HubError(f"{repo_id}: {constants.ENDPOINT} would not take it: {first_line(error)}") from error
