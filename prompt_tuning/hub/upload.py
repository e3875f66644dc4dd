"""Upload a run or an export to the hub as one commit.

Only the files of `plan_upload` are uploaded. So these stay on this machine: checkpoints with the optimizer's state,
predictions and report.html (they hold rows of the data), the training arguments (they may hold a token), and
initial_prompt.safetensors, from which an init from demonstrations could be read.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

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
from huggingface_hub.hf_api import ModelInfo, SpaceInfo
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from prompt_tuning.errors import HubError, first_line
from prompt_tuning.hub.ids import is_hub_id
from prompt_tuning.hub.refusal import explain_refusal
from prompt_tuning.support.files import read_json
from prompt_tuning.support.json_values import read_bounded
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted
from prompt_tuning.support.yaml_files import MAX_BYTES, parse_yaml, read_yaml, to_yaml

# Returns the text of a card that names a repository and a base model; None: README.md is uploaded as it is.
Card = Callable[[str, str | None], str | None]

SPACE_MARK = "prompt_tuning/page/space.py"
"""A file by which a Space is known as one that this package has written."""

# These settings and results are texts of the user, and a text that begins with a slash is not a path.
TEXTS = ("init_text", "init_labels", "example", "own_example", "answers")


class AdapterConfig(TypedDict):
    """What is read of an adapter's configuration."""

    base_model_name_or_path: str | None


def push(
    run: str | Path,
    repo_id: str,
    *,
    card: Card | None,
    private: bool | None = None,
    revision: str | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
    finished: bool = True,
    token: str | None = None,
    message: str = "Push a run of prompt_tuning",
) -> str:
    """Upload a run in one commit and return the commit's URL.

    A push that was interrupted changes nothing and can be repeated.

    Args:
        run: the folder of the run, or of an export.
        repo_id: `name` or `user/name`. The repository is created if it does not exist.
        card: writes the model card for the repository (see `card_for_hub`). None uploads README.md as it is, with the
            names that this machine has for the folder and the base model. `runs.push_run` has the right one.
        private: whether a new repository is private. If True, a repository that is public already is refused.
        revision: the branch, by default main. It is created if it does not exist.
        base_model: the hub id that replaces the name of the base model in the uploaded files.
        overwrite: also replace an adapter of another base model.
        finished: refuse a folder without results.
        token: the token of the hub, by default the one that `hf auth login` saved.
        message: the message of the commit.

    Raises:
        HubError: what happened and what to do next. The token is not in the message.
    """
    # An incomplete folder is refused before anything is created on the hub.
    plan_upload(run, repo_id, base_model, finished=finished)
    api = HfApi(token=token, library_name="prompt_tuning")
    base = _base_model(RunFolder(Path(run)), base_model)
    with _explained(repo_id):
        if base:
            _check_base_is_on_hub(api, base)
        repo_id = create_repository(repo_id, private=private, token=token)
        if revision and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        repository = api.model_info(repo_id, revision=revision)
        if private and not repository.private:
            raise HubError(f"{repo_id}: it is public already. Leave private out, or name another repository.")
        _check_content(api, repository, base, overwrite=overwrite)
        files = plan_upload(run, repo_id, base_model, finished=finished, card=card)
        stale = set() if base else _model_files(repository) - set(files)
        commit = api.create_commit(
            repo_id,
            _operations(files, stale),
            commit_message=message,
            revision=revision,
            # The hub refuses the commit if somebody else has committed since.
            parent_commit=repository.sha,
        )
    return commit.commit_url


def create_repository(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Create a repository if it does not exist, and return its full id.

    Args:
        repo_id: `name` or `user/name`.
        private: whether a new repository is private; by default as the user's account says.
        token: the token of the hub, by default the one that `hf auth login` saved.

    Raises:
        HubError: the hub refuses, or cannot be reached.
    """
    with _explained(repo_id):
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def push_space(
    space: str,
    files: Mapping[str, bytes | Path],
    *,
    private: bool | None = None,
    overwrite: bool = False,
    token: str | None = None,
) -> str:
    """Upload the files of a Space in one commit and return the commit's URL.

    Args:
        space: `name` or `user/name`. The Space is created if it does not exist.
        files: of `page.space.space_files`.
        private: whether a new Space is private.
        overwrite: also replace the app of another Space.
        token: the token of the hub, by default the one that `hf auth login` saved.

    Raises:
        HubError: the hub refuses or cannot be reached, or the Space holds another app.
    """
    api = HfApi(token=token, library_name="prompt_tuning")
    with _explained(space):
        name = api.create_repo(space, repo_type="space", space_sdk="gradio", private=private, exist_ok=True).repo_id
        names = _file_names(api.space_info(name))
        if "app.py" in names and SPACE_MARK not in names and not overwrite:
            raise HubError(f"{name}: the Space holds another app. Name another --space, or add --overwrite.")
        message = "Show what a prompt does"
        return api.create_commit(name, _operations(files, ()), commit_message=message, repo_type="space").commit_url


def plan_upload(
    run: str | Path,
    repo_id: str,
    base_model: str | None = None,
    *,
    finished: bool = True,
    card: Card | None = None,
) -> dict[str, bytes | Path]:
    """Return the files that `push` uploads, by their names, without a request to the hub.

    A file that could name a folder of this machine is rewritten, so its value is bytes. Other files are paths.

    Args:
        run: the folder of the run, or of an export.
        repo_id: `name` or `user/name`.
        base_model: the hub id that replaces the name of the base model.
        finished: refuse a folder without results.
        card: writes the model card, as for `push`.

    Raises:
        HubError: the folder is not a finished run, or only this machine has its base model.
        DataError: a file is a link out of the folder.
    """
    folder = RunFolder(Path(run))
    check_upload(folder, repo_id, finished=finished)
    _base_model(folder, base_model)
    is_adapter = folder.adapter_config.is_file()
    content = (*folder.ADAPTER_FILES, folder.BASE_MODEL) if is_adapter else folder.MODEL_FILES
    if folder.prompts.is_file():
        content = (*content, *folder.EXPORT_FILES)
    names: set[str] = set()
    for pattern in (folder.CARD, *folder.RUN_FILES, *content):
        files_of_pattern = filter(Path.is_file, folder.path.glob(pattern))
        names.update(path.relative_to(folder.path).as_posix() for path in files_of_pattern)
    folder.check_links(*map(folder.path.joinpath, sorted(names)))
    files = {name: _public_file(folder.path / name, base_model) for name in sorted(names)}
    text = card(repo_id, base_model) if card else None
    return files if text is None else files | {RunFolder.CARD: text.encode()}


def check_upload(folder: RunFolder, repo_id: str, *, finished: bool = True) -> None:
    """Raise a HubError if the hub takes no such name, or a file is missing that every upload of this kind has."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"--repo_id {repo_id}: not a name that the hub takes. Write NAME or USER/NAME.") from error
    _check_complete(folder, finished=finished)


def list_upload(files: Mapping[str, bytes | Path]) -> str:
    """Return a line with size and name for each file, and one for their sum."""
    lines = []
    total = 0
    for name, content in files.items():
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        total += size
        lines.append(f"{size:>13,}  {name}")
    return "\n".join([*lines, f"{total:>13,}  bytes in {counted(len(files), 'file')}"])


def _check_complete(folder: RunFolder, *, finished: bool) -> None:
    """Raise a HubError if a file is missing that every upload of this kind has."""
    adapter = folder.adapter_config.is_file()
    needed = list(folder.ADAPTER_FILES) if adapter else [folder.MODEL_CONFIG]
    if finished and not folder.prompts.is_file():
        needed += folder.RUN_FILES
    missing = [name for name in needed if not (folder.path / name).is_file()]
    if missing:
        # A folder without any model is more often one without an adapter.
        name = folder.ADAPTER_CONFIG if missing[0] == folder.MODEL_CONFIG else missing[0]
        tasks = ", ".join(sorted(str(path.parent) for path in folder.path.glob(f"*/{folder.TEMPLATE}")))
        advice = "Name the folder of a finished `prompt-tuning train`."
        if tasks:
            advice = f"Name the run of one task: {tasks}."
        raise HubError(f"{folder.path}: no {name}. {advice}")
    if finished and adapter and not folder.card.is_file():
        raise HubError(f"{folder.path}: no {folder.CARD}. Write it with `prompt-tuning card {folder.path}`.")


def _base_model(folder: RunFolder, base_model: str | None) -> str | None:
    """Return the hub id of an adapter's base model; None for a whole model.

    Raises:
        HubError: base_model is not a hub id, or without it, only this machine has the base model.
    """
    if not folder.adapter_config.is_file():
        return None
    if base_model:
        try:
            validate_repo_id(base_model)
        except HFValidationError as error:
            raise HubError(f"--base_model {base_model}: not a hub id. Write USER/NAME.") from error
        return base_model
    base = read_json(folder.adapter_config, AdapterConfig)["base_model_name_or_path"]
    results = read_json(folder.results, dict[str, Any]) if folder.results.is_file() else {"base_model": base}
    # Results without base_model come from a run on a folder, wherever this command runs.
    was_folder = "model" in results and "base_model" not in results
    if base and not was_folder and not Path(base).is_dir() and (is_hub_id(base) or "/" not in base):
        return base
    raise HubError(
        f"{folder.path}: its adapter names the base model {base}, a folder that only this machine has, so nobody else "
        "could load it. Name the hub model that it is a copy of: --base_model USER/NAME."
    )


def _check_base_is_on_hub(api: HfApi, base: str) -> None:
    try:
        api.model_info(base)
    except RepositoryNotFoundError as error:
        raise HubError(
            f"the adapter names the base model {base}, and {constants.ENDPOINT} has none of that name that this token "
            "may read. Name the hub model that it was trained on: --base_model USER/NAME."
        ) from error


def _check_content(api: HfApi, repository: ModelInfo, base: str | None, *, overwrite: bool) -> None:
    """Raise a HubError if the repository holds an adapter of another base model, or the other kind of model."""
    names = _file_names(repository)
    other = RunFolder.MODEL_CONFIG if base else RunFolder.ADAPTER_CONFIG
    if other in names:
        content = "a whole model" if base else "an adapter"
        raise HubError(
            f"{repository.id}: it holds {content} ({other}), and a repository cannot hold both. Name another one."
        )
    if not base or RunFolder.ADAPTER_CONFIG not in names or overwrite:
        return
    path = api.hf_hub_download(repository.id, RunFolder.ADAPTER_CONFIG, revision=repository.sha)
    other_base = read_json(Path(path), AdapterConfig)["base_model_name_or_path"]
    if other_base != base:
        raise HubError(
            f"{repository.id}: it holds an adapter of {other_base}, this one is of {base}. Name another repository, "
            "or replace it with --overwrite."
        )


def _file_names(repository: ModelInfo | SpaceInfo) -> set[str]:
    return {sibling.rfilename for sibling in repository.siblings or []}


def _model_files(repository: ModelInfo) -> set[str]:
    """Return the names of the files of a whole model, also of an exported one."""
    names = _file_names(repository)
    matching: set[str] = set()
    for pattern in (*RunFolder.MODEL_FILES, *RunFolder.EXPORT_FILES):
        matching.update(fnmatch.filter(names, pattern))
    return matching


def _operations(
    files: Mapping[str, bytes | Path], stale: Iterable[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return the operations of a commit that adds `files` and deletes `stale`."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for name, content in files.items():
        operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content))
    for name in sorted(stale):
        operations.append(CommitOperationDelete(path_in_repo=name))
    return operations


def public_name(text: str) -> str:
    """Return the last name of a path that shows where this machine keeps its files, and any other text unchanged."""
    path = Path(text)
    return path.name if path.is_absolute() or ".." in path.parts or path.parts[:1] == ("~",) else text


def public(value: Any) -> Any:
    """Return settings or results without folders of this machine: an absolute path becomes its last name."""
    if isinstance(value, dict):
        return {key: item if key in TEXTS else public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    return public_name(value) if isinstance(value, str) else value


def _public_file(path: Path, base_model: str | None) -> bytes | Path:
    """Return the content of a file as others may read it, or the path of a file that cannot name a folder."""
    if path.name == RunFolder.CARD:
        return _card_with_base(path, base_model) if base_model else path
    if path.name == RunFolder.RECIPE:
        settings = public(read_yaml(path, HubError, dict[str, Any]))
        settings |= {"model_name_or_path": base_model} if base_model else {}
        return to_yaml(settings).encode()
    base_model_keys = {
        RunFolder.RESULTS: ("model", "base_model"),
        RunFolder.ADAPTER_CONFIG: ("base_model_name_or_path",),
        RunFolder.BASE_MODEL: ("name",),
    }
    if path.name not in base_model_keys:
        return path
    values = public(read_json(path, dict[str, Any]))
    if path.name == RunFolder.BASE_MODEL:
        values["folder"] = None
    if base_model:
        values |= dict.fromkeys(base_model_keys[path.name], base_model)
    return json.dumps(values, indent=2, ensure_ascii=False).encode()


def _card_with_base(path: Path, base_model: str) -> bytes:
    """Return README.md with the hub id of the base model in its metadata."""
    try:
        text = read_bounded(path, MAX_BYTES)
        metadata = REGEX_YAML_BLOCK.search(text)
        parse_yaml(metadata[2] if metadata else "", path, HubError)  # ModelCard reads it by a parser without limits.
        card = ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise HubError(f"{path}: its metadata is not YAML: {first_line(error)}. Correct it.") from error
    card.data.base_model = base_model
    return str(card).encode()


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Raise a HubError for what the hub's client raises in the block, with what happened and what to do next."""
    again = "Nothing was uploaded in part, since a push is one commit. Run the same command again."
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo_id}: HF_HUB_OFFLINE is set, so nothing was sent. Unset it to push.") from error
    except HfHubHTTPError as error:
        raise HubError(f"{repo_id}: {explain_refusal(error, repo_id)}") from error
    except (HTTPError, RuntimeError, ConnectionError, LocalEntryNotFoundError) as error:
        # Uploads run in threads or in hf_xet, which report a lost connection as a RuntimeError.
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            raise HubError(f"{repo_id}: {explain_refusal(cause, repo_id)}") from error
        why = f"{type(cause).__name__}: {first_line(cause)}"
        raise HubError(f"{repo_id}: the connection to {constants.ENDPOINT} failed ({why}). {again}") from error
    except ValueError as error:
        raise HubError(f"{repo_id}: {constants.ENDPOINT} refuses it: {first_line(error)}") from error
