"""What a run's scores depend on beside its settings, as digests: they tell a finished run from one made anew."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset
from huggingface_hub import try_to_load_from_cache

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.hub.download import adapter_folder
from prompt_tuning.metrics.loading import OWN_METRICS
from prompt_tuning.runs.prepare import Prepared

WEIGHTS = (".safetensors", ".bin")
CONFIGURATION = ("config.json", "generation_config.json", "adapter_config.json")
ROW_COLUMNS = ("input_ids", "labels", "references", "choices", "choice_ids")
SAMPLE = 2**16  # bytes


def input_fingerprints(prepared: Prepared) -> dict[str, str]:
    """By the split or setting that names it."""
    model, data, prompt = prepared.recipe.model, prepared.recipe.data, prepared.recipe.prompt
    stop = prepared.template.stop
    found = {
        split: rows_fingerprint(rows, stop) for split, rows in prepared.encoded.items() if isinstance(rows, Dataset)
    }
    if data.streaming and data.train_file and "train" in prepared.encoded:
        found["train"] = files_fingerprint([Path(data.train_file)])
    if prepared.teacher_rows is not None:
        found["teacher_template"] = rows_fingerprint(prepared.teacher_rows)
    if prepared.init_ids is not None:  # rows and words that may stand nowhere else
        found["init"] = _digest(prepared.init_ids)
    if prompt.adapter and METHODS[prompt.method].trains:
        found["adapter"] = weights_fingerprint(adapter_folder(prompt.adapter))
    if prompt.init == "adapter" and METHODS[prompt.method].trains:
        found["init_adapter"] = weights_fingerprint(adapter_folder(prompt.init_adapter))
    if own := [Path(name) for name in prompt.metrics or () if name not in OWN_METRICS and Path(name).exists()]:
        modules = (sorted(path.rglob("*.py")) if path.is_dir() else [path] for path in own)
        found["metrics"] = files_fingerprint(itertools.chain.from_iterable(modules))
    return found | {"model_name_or_path": weights_fingerprint(model.model_name_or_path, model.model_revision)}


def rows_fingerprint(rows: Dataset, stop: tuple[str, ...] = ()) -> str:
    """Of all that encoded rows are to a model and a metric, the template's words among it."""
    columns = [column for column in ROW_COLUMNS if column in rows.column_names]
    return _digest(itertools.chain([stop], rows.select_columns(columns).iter(1000)))


def weights_fingerprint(name: str | Path, revision: str | None = None) -> str:
    """Of the weights and configuration in a folder; of a hub id its commit."""
    if not Path(name).is_dir():
        cached = try_to_load_from_cache(str(name), "config.json", revision=revision)
        return Path(cached).parent.name if isinstance(cached, str) else "unknown"
    return files_fingerprint(
        file
        for file in sorted(Path(name).iterdir())
        if file.is_file() and (file.suffix in WEIGHTS or file.name in CONFIGURATION)
    )


def files_fingerprint(files: Iterable[Path]) -> str:
    """Of files' names and bytes; of one over 16 MB samples are read, since training changes all of it."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            for place in range(0, size, max(size // 256, SAMPLE)):
                opened.seek(place)
                digest.update(opened.read(SAMPLE))
    return digest.hexdigest()


def _digest(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode())
    return digest.hexdigest()
