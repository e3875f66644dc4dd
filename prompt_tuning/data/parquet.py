"""Read parquet files, and refuse those whose rows are far larger than the file.

Parquet keeps repeated values once and compresses them, so that a kilobyte can hold many gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_tuning.data.nested import Row
from prompt_tuning.errors import DataError

MIN_LIMIT = 500_000_000
"""The bytes that the values of any file may take."""

MAX_RATIO = 200
"""How many times as large as a larger file its values may be. Rows that share long passages reach a hundred."""

VALUE_BYTES = 32
"""What a value of Python takes beside its text."""


def parquet_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file, of which no more are in memory than the limit of the file allows.

    Raises:
        DataError: the file cannot be read, or its values take more bytes than its limit.
    """
    try:
        limit = max(MIN_LIMIT, MAX_RATIO * file.stat().st_size)
        with pq.ParquetFile(file) as table:
            group, stored, size = _sizes(table.metadata)
            # Every row may repeat the largest values of its group.
            batch_size = max(1, min(1000, limit // max(group, 1)))
            for batch in table.iter_batches(batch_size) if max(stored, size) <= limit else ():
                batch.validate(full=True)
                rows = batch.to_pylist()
                # A batch keeps the texts of a dictionary once.
                size += len(str(rows)) if "dictionary<" in str(batch.schema) else batch.nbytes
                if size > limit:
                    break
                yield from rows
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: not a parquet file that can be read: {error}. Write it again.") from error
    if max(stored, size) > limit:
        raise DataError(
            f"{file}: its values take more than {limit:,} bytes, far more than the file. "
            "If you trust it, write its rows to a .jsonl file."
        )


def _sizes(metadata: pq.FileMetaData) -> tuple[int, int, int]:
    """Return the bytes that a group has at most, those of all groups, and those of all values without their texts.

    The bytes of a group are not compressed, and have a text once that rows repeat.
    """
    groups, size = [0], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        groups.append(0)
        for index in range(metadata.num_columns):
            part = group.column(index)
            groups[-1] += part.total_uncompressed_size
            size += part.num_values * (VALUE_BYTES + max(metadata.schema.column(index).length, 0))
    return max(groups), sum(groups), size
