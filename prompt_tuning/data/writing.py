"""Write rows as the table that a file's name says."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from prompt_tuning.data.formats import Row
from prompt_tuning.data.rows import batches_of_rows, column_types
from prompt_tuning.errors import DataError
from prompt_tuning.support.data_files import ARCHIVES, CONVERSIONS, LOCAL_FORMATS
from prompt_tuning.support.files import atomic_path, atomic_write


def is_table(output: str | Path) -> bool:
    """Return whether a name is that of a table, which is written as a whole; else the file has JSON Lines.

    Raises:
        DataError: the name is that of a format that is not written.
    """
    suffix = Path(output).suffix.lower()
    if suffix in (*CONVERSIONS, *ARCHIVES):
        formats = ", ".join(LOCAL_FORMATS)
        raise DataError(f"--output {output}: {suffix} is not written. Name a file ending in {formats}.")
    return suffix in LOCAL_FORMATS and suffix != ".jsonl"


def write_table(lines: Path, output: Path) -> None:
    """Write rows to a file that is complete or absent; the target of a link is replaced.

    A csv cell is a text as it is, nothing for null, and else JSON. A parquet column that no type of Arrow holds is
    JSON text, too.

    Args:
        lines: JSON Lines.
        output: a file for which `is_table` is true.
    """
    suffix = output.suffix.lower()
    columns = column_types(_rows(lines))
    if suffix == ".parquet":
        with atomic_path(Path(os.path.realpath(output))) as partial:
            _write_parquet(_rows(lines), columns, partial)
        return
    with atomic_write(output, named_by_user=True) as file:
        if suffix == ".json":
            _write_json(_rows(lines), file)
            return
        layout: Any = {"delimiter": "\t" if suffix == ".tsv" else ",", "lineterminator": "\n"}
        plain, quoted = csv.writer(file, **layout), csv.writer(file, quoting=csv.QUOTE_ALL, **layout)
        plain.writerow(columns)
        for row in _rows(lines):
            cells = [_cell(row.get(name)) for name in columns]
            # Python writes a carriage return without quotes, and readers take it for the end of a line.
            (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)


def _rows(lines: Path) -> Iterator[Row]:
    with lines.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_json(rows: Iterator[Row], file: TextIO) -> None:
    """Write an array with a row a line."""
    start = "["
    for row in rows:
        file.write(f"{start}\n{json.dumps(row, ensure_ascii=False)}")
        start = ","
    file.write("\n]\n")


def _write_parquet(rows: Iterator[Row], columns: dict[str, pa.DataType | None], path: Path) -> None:
    schema = pa.schema({name: kind or pa.string() for name, kind in columns.items()})
    with pq.ParquetWriter(path, schema) as writer:
        for batch in batches_of_rows(rows):
            for row in batch:
                for name, value in row.items():
                    if columns[name] is None and value is not None:
                        row[name] = json.dumps(value, ensure_ascii=False)
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
