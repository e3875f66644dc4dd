"""Compute digests of what a run's scores depend on besides its settings, by which a changed run is recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import Dataset
from huggingface_hub import try_to_load_from_cache

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.metrics.loading import OWN_METRICS
from prompt_tuning.runs.prepare import Prepared
from prompt_tuning.support.data_files import matching_files
from prompt_tuning.support.run_folder import RunFolder

WEIGHTS = (".safetensors", ".bin")
CONFIGURATION = (RunFolder.MODEL_CONFIG, "generation_config.json", RunFolder.ADAPTER_CONFIG)
ROW_COLUMNS = ("input_ids", "labels", "references", "choices", "choice_ids")

SAMPLE = 2**16
"""The number of bytes of a sample of a large file."""

MAX_SAMPLES = 256
"""The number of samples of a file, so that a file up to 16 MB is read whole."""


def input_fingerprints(prepared: Prepared) -> dict[str, str]:
    """Return the digests of rows, adapters, metrics and model, by the name of their split or setting."""
    model, data, prompt = prepared.recipe.model, prepared.recipe.data, prepared.recipe.prompt
    digests = {}
    for split, rows in prepared.encoded.items():
        if isinstance(rows, Dataset):
            digests[split] = rows_fingerprint(rows, prepared.template.stop)
        elif data.train_file:
            digests[split] = files_fingerprint(matching_files(data.train_file))
    if prepared.teacher_rows is not None:
        digests["teacher_template"] = rows_fingerprint(prepared.teacher_rows)
    if prepared.init_ids is not None:
        # The text that a prompt starts from may not be in any row.
        digests["init"] = _digest(prepared.init_ids)
    if METHODS[prompt.method].trains:
        if prompt.adapter:
            digests["adapter"] = weights_fingerprint(adapter_folder(prompt.adapter))
        if prompt.init == "adapter" and prompt.init_adapter:
            digests["init_adapter"] = weights_fingerprint(adapter_folder(prompt.init_adapter))
    modules = list(_metric_modules(prompt.metrics or ()))
    if modules:
        digests["metrics"] = files_fingerprint(modules)
    digests["model_name_or_path"] = model_fingerprint(model)
    return digests


def model_fingerprint(model: ModelArguments) -> str:
    """Return the digest of a model's weights; for a model behind an API that of its name and its address."""
    if model.api_name is not None:
        return _digest([model.api_name, model.base_url, model.api_endpoint])
    return weights_fingerprint(str(model.model_name_or_path), model.model_revision)


def _metric_modules(names: Iterable[str]) -> Iterator[Path]:
    """Yield the Python files of the metrics that are paths."""
    for name in names:
        path = Path(name)
        if name not in OWN_METRICS and path.exists():
            yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def rows_fingerprint(rows: Dataset, stop: tuple[str, ...] = ()) -> str:
    """Return a digest of all that a model and a metric see of encoded rows, which includes the template's words."""
    columns = [column for column in ROW_COLUMNS if column in rows.column_names]

    def values() -> Iterator[object]:
        yield stop
        yield from rows.select_columns(columns).iter(1000)

    return _digest(values())


def weights_fingerprint(name: str | Path, revision: str | None = None) -> str:
    """Return a digest of the weights and the configuration in a folder; for a hub id its commit."""
    if not Path(name).is_dir():
        cached = try_to_load_from_cache(str(name), RunFolder.MODEL_CONFIG, revision=revision)
        return Path(cached).parent.name if isinstance(cached, str) else "unknown"
    files = []
    for file in sorted(Path(name).iterdir()):
        if file.is_file() and (file.suffix in WEIGHTS or file.name in CONFIGURATION):
            files.append(file)
    return files_fingerprint(files)


def files_fingerprint(files: Iterable[Path]) -> str:
    """Return a digest of files' names and bytes; of large files only of samples, because training changes them all."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            for place in range(0, size, max(size // MAX_SAMPLES, SAMPLE)):
                opened.seek(place)
                digest.update(opened.read(SAMPLE))
    return digest.hexdigest()


def _digest(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode())
    return digest.hexdigest()
