"""Find local data files by their name or pattern, and say how other tables become one of them."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from prompt_tuning.errors import DataError

LOCAL_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
"""The format of a data file by the end of its name, in capitals too."""

CONVERSIONS = {
    ".xlsx": 'pandas.read_excel("{name}", dtype=str, keep_default_na=False).to_csv("{stem}.csv", index=False)',
    ".feather": 'pandas.read_feather("{name}").to_parquet("{stem}.parquet")',
    ".orc": 'pandas.read_orc("{name}").to_parquet("{stem}.parquet")',
    ".arrow": 'datasets.Dataset.from_file("{name}").to_parquet("{stem}.parquet")',
}
CONVERSIONS |= dict.fromkeys((".xls", ".ods"), CONVERSIONS[".xlsx"])
"""The call that makes a readable file of another table, by the end of its name."""

ARCHIVES = {".gz", ".zip", ".bz2", ".xz", ".zst", ".tar"}


def file_format(name: str | Path) -> str | None:
    """Return json, csv or parquet by the end of a file's name; None for another format."""
    return LOCAL_FORMATS.get(Path(name).suffix.lower())


def matching_files(name: str | Path) -> list[Path]:
    """Return the file of that name, or else the files that match it as a pattern, sorted; none if there is none.

    A name may start with `~`, and a pattern may have `**`. A folder is not a file, a pipe is one.
    """
    name = os.path.expanduser(name)
    names = [name] if os.path.exists(name) else glob.iglob(name, recursive=True)
    return sorted(Path(name) for name in names if not os.path.isdir(name))


def other_format(name: str | Path) -> str:
    """Return the message for a file whose format is not read, with the call that converts it if there is one."""
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix in ARCHIVES:
        return f"{name}: {path.suffix} is not read. Unpack it first."
    if suffix in CONVERSIONS:
        call = CONVERSIONS[suffix].format(name=name, stem=path.with_suffix(""))
        return f"{name}: {path.suffix} is not read. Convert it in Python: `{call}`."
    return f"{name}: cannot tell its format. Expected a name ending in {', '.join(LOCAL_FORMATS)}."


def file_problem(name: str | Path) -> str | None:
    """Return why the files of a name or a pattern cannot hold rows, as far as their names and sizes show it."""
    if file_format(name) is None:
        return other_format(name)
    files = matching_files(name)
    if not files:
        return f"{name}: no such file (looked in {Path.cwd()}). Name another one."
    for file in files:
        try:
            size = file.stat().st_size
        except OSError as error:
            return f"{file}: it cannot be read: {error.strerror}. Name another file."
        if size == 0:
            return f"{file}: the file is empty. Name a file with rows."
    return None


def checked_path(source: str, output: str) -> Path | None:
    """Return the first file of the input, None for standard input.

    Args:
        source: a file, a pattern, or `-`.
        output: a file that will be written, or `-`.

    Raises:
        DataError: there is no such file, it cannot be read or is empty, or one of the two is a folder.
    """
    paths: list[Path | None] = [None] if source == "-" else [*matching_files(source)]
    for path in (source, output):
        if Path(path).expanduser().is_dir():
            raise DataError(f"{path}: it is a folder. Name a file.")
    if not paths:
        raise DataError(f"{source}: no such file (looked in {Path.cwd()}). Name another one.")
    if Path(source).suffix.lower() in (*CONVERSIONS, *ARCHIVES):
        raise DataError(other_format(source))
    if len(paths) > 1 and not file_format(source):
        raise DataError(f"{source}: it matches {len(paths)} files of plain text. Name one of them.")
    # A pipe may have the name of a file, and has no size.
    problem = file_problem(source) if file_format(source) and paths[0] and paths[0].is_file() else None
    if problem:
        raise DataError(problem)
    return paths[0]
