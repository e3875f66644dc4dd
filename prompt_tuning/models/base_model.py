"""Recognise the base model of an adapter by its weights and its tokenizer, wherever its folder is.

A run writes base_model.json beside its adapter. An adapter without this file has only the name of its base model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from peft import PeftConfig
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from prompt_tuning.arguments.methods import find_method
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.encoding.chat import changes_answer_start
from prompt_tuning.errors import AdapterError
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.models.weight_files import read_header
from prompt_tuning.support.files import looks_like_path, read_json, write_json
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.templates.template import Template

logger = logging.getLogger(__name__)

MAX_PIECES = 4096
"""The number of pieces that are read of all tensors of a model together, as far as each tensor can give one."""

PIECES = 16
"""The number of pieces that are read of one tensor at most."""

PIECE = 4096
"""The bytes of a piece. A tensor that is not longer than its pieces is read whole."""


@dataclass(frozen=True)
class BaseModel:
    """What a run knows of its base model.

    Args:
        name: `model_name_or_path`, as the recipe has it.
        folder: the model's folder, relative to the folder of base_model.json; None for a model of the hub.
        commit: the commit of a model of the hub.
        weights: the digest of the weights; None if they are not safetensors.
        tokenizer: the digest of the vocabulary and the chat template.
    """

    name: str
    folder: str | None = None
    commit: str | None = None
    weights: str | None = None
    tokenizer: str | None = None


def write_base_model(folder: Path, args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write base_model.json.

    Args:
        folder: the run's folder.
        args: the name and the revision of the base model.
        tokenizer: its tokenizer.
    """
    name = str(args.model_name_or_path)
    relative = None
    if Path(name).is_dir():
        model = Path(name).absolute()
        relative = os.path.relpath(model.parent.resolve() / model.name, folder.resolve())
    base = BaseModel(
        name=name,
        folder=relative,
        commit=_commit(name, args.model_revision),
        weights=weights_digest(name, args.model_revision),
        tokenizer=tokenizer_digest(tokenizer),
    )
    write_json(RunFolder(folder).base_model, asdict(base))


def read_base_model(folder: Path) -> tuple[BaseModel | None, Path]:
    """Return what is known of the base model of an adapter, and the folder of its base_model.json.

    Args:
        folder: of a run, or of a checkpoint in it.

    Raises:
        AdapterError: base_model.json has keys that no run writes.
        DataError: a value in it is of another type than a run writes.
    """
    place = folder.resolve()
    if place.name.startswith("checkpoint-") and not RunFolder(place).base_model.is_file():
        place = place.parent
    file = RunFolder(place).base_model
    if not file.is_file():
        return None, place
    value = read_json(file, BaseModel)
    unknown = sorted(value.keys() - {field.name for field in fields(BaseModel)})
    if unknown:
        raise AdapterError(f"{file}: not the file of a run ({unknown[0]} is unknown). Remove it, or copy it again.")
    return BaseModel(**value), place


def find_base_model(config: PeftConfig, folder: Path) -> str:
    """Return the folder or the hub id of an adapter's base model. A name that was a folder never becomes a hub id.

    No path in an adapter from the hub is followed.

    Args:
        config: the configuration of the adapter.
        folder: the adapter's folder.

    Raises:
        AdapterError: the adapter names no base model, or a folder that is not there.
    """
    base, place = read_base_model(folder)
    name = base.name if base else config.base_model_name_or_path
    if not name:
        raise AdapterError(f"{folder}: its {RunFolder.ADAPTER_CONFIG} names no base model. Give --model_name_or_path.")
    is_local = Path(constants.HF_HUB_CACHE).resolve() not in place.parents
    recorded = place / base.folder if is_local and base and base.folder else None
    if recorded and recorded.is_dir():
        is_here = Path(name).is_dir() and Path(name).samefile(recorded)
        return name if is_here else os.path.normpath(recorded)
    if Path(name).is_dir() and (is_local or not looks_like_path(name)):
        return name
    if looks_like_path(name) or _was_folder(base, folder):
        raise AdapterError(
            f"{folder}: its base model was the folder {name}, which is not there (looked in {Path.cwd()}). Give "
            "--model_name_or_path, its present folder or the hub id that it is a copy of."
        )
    return name


def _was_folder(base: BaseModel | None, folder: Path) -> bool:
    """Return whether a run was trained on a folder of its machine."""
    if base:
        return base.folder is not None
    results = RunFolder(folder).results
    facts = read_json(results, dict[str, Any]) if results.is_file() else {}
    # The results of a run on a hub model have base_model too.
    return "model" in facts and "base_model" not in facts


def is_same_model(base: BaseModel | None, name: str, revision: str | None) -> bool | None:
    """Return whether a model has the weights of the base model; None if one of the two is not known.

    Args:
        base: the base model.
        name: the folder or the hub id of the model.
        revision: the revision of a hub model; None if it is not known.
    """
    if base is None:
        return None
    if base.commit and base.name == name and base.commit == _commit(name, revision):
        return True
    weights = weights_digest(name, revision) if base.weights else None
    return None if weights is None else weights == base.weights


def _commit(name: str, revision: str | None) -> str | None:
    """Return the commit of a hub model whose configuration is in the cache."""
    if revision is None or Path(name).is_dir() or looks_like_path(name):
        return None
    file = try_to_load_from_cache(name, RunFolder.MODEL_CONFIG, revision=revision)
    return Path(file).parent.name if isinstance(file, str) else None


def weights_digest(name: str, revision: str | None = None) -> str | None:
    """Return a digest of a model's tensors: of their names, types, shapes, and of samples of their bytes.

    Copies have the same digest, also in other shards. Training changes all samples of what it changes. Some 16 MB are
    read, whatever the size of the model.

    Args:
        name: a folder or a hub id.
        revision: the revision of a hub model.

    Returns:
        The digest; None for a model without safetensors, such as one that was built in memory.
    """
    tensors: dict[str, tuple[Path, dict[str, Any], int]] = {}
    for file in _weight_files(name, revision):
        header, start = read_header(file)
        for tensor_name, entry in header.items():
            tensors[tensor_name] = (file, entry, start)
    if not tensors:
        return None
    pieces = min(max(MAX_PIECES // len(tensors), 1), PIECES)
    digest = hashlib.sha256()
    for name, (file, entry, data) in sorted(tensors.items()):
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        start, end = (data + offset for offset in entry["data_offsets"])
        with file.open("rb") as opened:
            for place in range(start, end, max((end - start) // pieces, PIECE)):
                opened.seek(place)
                digest.update(opened.read(min(PIECE, end - place)))
    return digest.hexdigest()


def _weight_files(name: str, revision: str | None) -> list[Path]:
    """Return the safetensors of a model, after a download if it is one of the hub; none if they cannot be had."""
    commit = _commit(name, revision) if name else None
    if not name or not (Path(name).is_dir() or commit):
        return []
    files = [RunFolder.MODEL_WEIGHTS, RunFolder.MODEL_INDEX]
    if not Path(name).is_dir():
        # The hub is not asked for a file that a model in the cache does not have.
        files = [
            file for file in files if isinstance(try_to_load_from_cache(name, file, revision=commit), str)
        ] or files
    failures = ("missing_entries", "connection_errors")
    options: dict[str, Any] = {f"_raise_exceptions_for_{failure}": False for failure in failures}
    for file in files:
        path = cached_file(name, file, revision=commit, **options)
        if path and file == RunFolder.MODEL_INDEX:
            return list(map(Path, get_checkpoint_shard_files(name, path, revision=commit)[0]))
        if path:
            return [Path(path)]
    return []


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of a tokenizer's vocabulary and chat template, which no version writes in another way."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_adapter(
    config: PeftConfig,
    folder: str | Path,
    model_config: PretrainedConfig,
    *,
    revision: str | None = None,
    renamed: bool = False,
) -> None:
    """Raise an AdapterError unless the adapter was trained on this model.

    A model is recognised by its weights if the adapter is a run's and both are known, else by its name. An adapter
    that names no model is taken.

    Args:
        config: the configuration of the adapter.
        folder: the adapter's folder or hub id.
        model_config: the configuration of the base model.
        revision: the revision of a base model of the hub; without it such a model is known by its name.
        renamed: the user named a model for this adapter, or only starts from it. Then another model of the same
            hidden size is a warning.
    """
    base, _ = read_base_model(adapter_folder(folder))
    trained_on = (base.name if base else config.base_model_name_or_path) or ""
    name = model_config.name_or_path
    size = _embedding_size(model_config)
    trained_size = size
    # Only a prompt of embeddings says the hidden size of its model.
    if find_method(config.peft_type).trains_embeddings and config.token_dim is not None:
        trained_size = config.token_dim
    has_same_name = not trained_on or Path(trained_on).name == Path(name).name
    has_same_weights = is_same_model(base, name, revision)
    if trained_size == size and (has_same_name if has_same_weights is None else has_same_weights):
        return
    weights = "" if has_same_weights is None else ", which has other weights"
    difference = (
        f"{folder} was trained on {trained_on} (hidden size {trained_size}), the model here is {name} "
        f"(hidden size {size}){weights}"
    )
    if not renamed or trained_size != size:
        raise AdapterError(f"{difference}. Set model_name_or_path to the model it was trained on.")
    logger.warning("%s. The adapter fits only if it is the same model under another name.", difference)


def _embedding_size(config: PretrainedConfig) -> int:
    """Return the size of the embeddings before which a soft prompt stands."""
    # T5Gemma's encoder may be wider than its decoder, and OPT's embeddings narrower than its states.
    text = vars(config).get("encoder", config).get_text_config()
    return vars(text).get("word_embed_proj_dim", text.hidden_size)


def check_tokenizer(folder: str | Path, tokenizer: PreTrainedTokenizerBase, *, renamed: bool = False) -> None:
    """Raise an AdapterError unless the tokenizer writes rows as in the adapter's training.

    It has the same vocabulary and chat template. Version 0.1.0, whose runs have no base_model.json, wrote some chat
    templates without the text with which their answers begin.

    Args:
        folder: the adapter's folder or hub id.
        tokenizer: the tokenizer of the base model here.
        renamed: the user named a model for this adapter. Then a difference is a warning.
    """
    path = adapter_folder(folder)
    base, place = read_base_model(path)
    if base is not None and base.tokenizer not in (None, tokenizer_digest(tokenizer)):
        problem = f"{folder} was trained with another vocabulary or chat template than {tokenizer.name_or_path} has"
        advice = "Set model_name_or_path to the model it was trained on."
    elif base is None and _has_chat(place) and changes_answer_start(tokenizer):
        problem = f"{folder} was trained by version 0.1.0, which began an answer in this chat template with other text"
        advice = "Train it again, or predict with version 0.1.0."
    else:
        return
    if not renamed:
        raise AdapterError(f"{problem}. {advice}")
    logger.warning("%s. Predictions are not those of the training.", problem)


def _has_chat(folder: Path) -> bool:
    """Return whether the template of a run, if it has one, is written with the chat template."""
    file = RunFolder(folder).template
    return file.is_file() and Template.load(file).chat
