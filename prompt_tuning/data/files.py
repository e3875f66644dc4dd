"""Load local files as data sets, with every value as it is written there."""

from __future__ import annotations

import glob
import hashlib
import json
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, LargeList, List, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.features.features import register_feature

from prompt_tuning import __version__
from prompt_tuning.data.formats import Row
from prompt_tuning.data.rows import BATCH, LocalRows, open_rows
from prompt_tuning.errors import DataError
from prompt_tuning.support.data_files import file_format
from prompt_tuning.support.json_values import parse_json


@dataclass
class WrittenJson:
    """A feature of `datasets` for any values of JSON, which it gives back as they are.

    Unlike datasets.Json, a text such as "null" or "7" stays a text, and numbers keep their digits and their type.
    `Dataset.map` does not encode what a function returns for such a column, and `to_list` gives its JSON texts.
    """

    pa_type: ClassVar[pa.DataType] = pa.string()
    _type: str = field(default="WrittenJson", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        """Return the type of the column in Arrow."""
        return self.pa_type

    def encode_example(self, value: Any) -> str:
        """Return a value as JSON text."""
        return json.dumps(value)

    def decode_example(self, value: str, token_per_repo_id: object = None) -> Any:
        """Return the value of a JSON text; raise a DataError if it has none, since a file may name this feature."""
        try:
            return parse_json(value)
        except (ValueError, TypeError) as error:
            raise DataError(f"a column of JSON texts: {error}. Write the file again.") from error


with warnings.catch_warnings(action="ignore"):  # The function is marked as experimental.
    register_feature(WrittenJson, "WrittenJson")


def load_file(name: str | Path, *, streaming: bool = False) -> Dataset | IterableDataset:
    """Return the rows of a local file, or of all files that match a pattern, with values as they are written.

    The rows are kept in the cache of `datasets` under a digest of the files' content.

    Args:
        name: a file or a pattern whose name ends as LOCAL_FORMATS lists it.
        streaming: return an IterableDataset that reads the files as its rows are needed.

    Raises:
        DataError: a file is missing, is empty or cannot be read, with the line where the format has lines.
    """
    local = open_rows(name, streaming=streaming)
    if streaming:
        return IterableDataset.from_generator(_rows_alone, gen_kwargs={"rows": local})
    fingerprint = content_digest(local.files, f"{__version__} {local.columns}")[:16]
    try:
        if file_format(name) == "parquet":
            files = [glob.escape(str(file)) for file in local.files]
            deque(local, maxlen=0)  # Reading all rows finds one that is bad, and values far larger than the file.
            # The name of the configuration makes the content a part of the key of the cache.
            features = closed_features(pq.read_schema(local.files[0]))
            # Without a size of batches it takes that of the first group, which may have no rows.
            settings = {"data_files": files, "features": features, "batch_size": BATCH}
            return load_dataset("parquet", fingerprint, split="train", **settings)
        features = features_of(local.columns or {})
        return Dataset.from_generator(_rows_alone, features, gen_kwargs={"rows": local}, fingerprint=fingerprint)
    except (DatasetGenerationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name}: {error.__cause__ or error}") from error


def content_digest(files: Iterable[Path], settings: str = "") -> str:
    """Return a digest of all bytes of files, and of the settings that they are read with."""
    digest = hashlib.sha256(settings.encode())
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def features_of(columns: dict[str, pa.DataType | None]) -> Features:
    """Return the features of columns: Arrow's types, and JSON texts where no type gives all values back."""
    types = {name: kind or pa.null() for name, kind in columns.items()}
    features = Features.from_arrow_schema(pa.schema(types))
    for name, kind in columns.items():
        if kind is None:
            features[name] = WrittenJson()
    return features


def closed_features(schema: pa.Schema) -> Features:
    """Return the features that a file names, by which `datasets` opens no file and no address.

    It would open those that rows name as images, sounds and other files.
    """
    features = Features.from_arrow_schema(schema)
    parts: list[Any] = [features]
    for part in parts:
        if isinstance(part, dict):
            parts += part.values()
        elif isinstance(part, List | LargeList):
            parts.append(part.feature)
        elif hasattr(part, "decode"):
            part.decode = False
    return features


def _rows_alone(rows: LocalRows) -> Iterator[Row]:
    return (row for _, _, row in rows.numbered())
