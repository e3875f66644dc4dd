"""Read parquet files, and refuse those whose rows are far larger than the file.

Parquet keeps repeated values once and compresses them, so that a kilobyte can hold many gigabytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
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
        metadata = pq.read_metadata(file)
        largest, stored, size = _sizes(file, metadata)
        # A row may repeat the texts of its lists, so they are read as a dictionary that has each text once.
        columns = range(metadata.num_columns)
        lists = [column for column in columns if metadata.schema.column(column).max_repetition_level]
        with pq.ParquetFile(file, metadata=metadata, read_dictionary=lists) as table:
            # Every row may repeat the largest values of its group.
            batch_size = max(1, min(1000, limit // max(largest, 1)))
            groups = range(metadata.num_row_groups) if max(stored, size) <= limit else ()
            # A batch has one dictionary only if it is of one group.
            batches = (table.iter_batches(batch_size, row_groups=[group]) for group in groups)
            for batch in chain.from_iterable(batches):
                batch.validate(full=True)
                size += batch.nbytes + sum(map(_repeated_bytes, batch.columns))
                if size > limit:
                    break
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: not a parquet file that can be read: {error}. Write it again.") from error
    if max(stored, size) > limit:
        raise DataError(
            f"{file}: its values take more than {limit:,} bytes, far more than the file. "
            "If you trust it, write its rows to a .jsonl file."
        )


def _sizes(file: Path, metadata: pq.FileMetaData) -> tuple[int, int, int]:
    """Return the bytes that a group has at most, those of all groups, and those of all values without their texts.

    The bytes of a group are not compressed, and have a text once that rows repeat.

    Raises:
        ValueError: the parts of the file overlap, or have pages that are damaged.
    """
    groups, size, compressed = [0], 0, 0
    with file.open("rb") as stream:
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            groups.append(0)
            for index in range(metadata.num_columns):
                part = group.column(index)
                compressed += part.total_compressed_size
                if part.total_compressed_size < 0 or compressed > file.stat().st_size:
                    raise ValueError("its parts overlap")
                groups[-1] += _page_bytes(stream, part)
                size += part.num_values * (VALUE_BYTES + max(metadata.schema.column(index).length, 0))
    return max(groups), sum(groups), size


def _repeated_bytes(array: pa.Array) -> int:
    """Return the bytes of all texts that an array has from dictionaries."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.DictionaryArray):
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())
        return pc.sum(lengths.take(array.indices)).as_py() or 0
    if not pa.types.is_nested(array.type):
        return 0
    parts = [array.keys, array.items] if pa.types.is_map(array.type) else array.flatten()
    return sum(map(_repeated_bytes, parts if isinstance(parts, list) else [parts]))


def _page_bytes(stream: BinaryIO, part: pq.ColumnChunkMetaData) -> int:
    """Return the bytes of all pages of a column in a group, as the headers of the pages say.

    Arrow takes memory for a page by its header, whatever the end of the file says of the column.
    """
    start = part.data_page_offset
    # A group without rows has no page of data, and 0 as its place.
    if part.has_dictionary_page and 0 < part.dictionary_page_offset < (start or math.inf):
        start = part.dictionary_page_offset
    stream.seek(start)
    size = 0
    while stream.tell() < start + part.total_compressed_size:
        header = _thrift_integers(stream)
        uncompressed, compressed = header.get(2, -1), header.get(3, -1)
        if not (0 <= uncompressed < 2**31 and 0 <= compressed < 2**31):
            raise ValueError("a page has no size")
        size += uncompressed
        stream.seek(compressed, os.SEEK_CUR)
    return size


def _thrift_integers(stream: BinaryIO, depth: int = 0) -> dict[int, int]:
    """Read a structure of Thrift's compact protocol, and return its integers of 32 bits by their fields' numbers.

    The header of a page has structures of integers, truth values and bytes, three levels deep.
    """
    integers: dict[int, int] = {}
    number = 0
    while True:
        byte = _byte(stream)
        if byte == 0:
            return integers
        number = number + (byte >> 4) if byte >> 4 else _varint(stream) >> 1
        kind = byte & 15
        if kind in (4, 5, 6):
            value = _varint(stream)
            if kind == 5:
                integers[number] = value >> 1 ^ -(value & 1)
        elif kind == 8:
            stream.seek(_varint(stream), os.SEEK_CUR)
        elif kind == 12 and depth < 3:
            _thrift_integers(stream, depth + 1)
        elif kind not in (1, 2):
            raise ValueError("the header of a page is damaged")


def _varint(stream: BinaryIO) -> int:
    """Read an integer of Thrift: 7 bits in a byte, of which the last is less than 128."""
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(stream)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("the header of a page is damaged")


def _byte(stream: BinaryIO) -> int:
    byte = stream.read(1)
    if not byte:
        raise ValueError("the header of a page is cut")
    return byte[0]
