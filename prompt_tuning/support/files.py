"""Files that are whole or not there: written beside their final name, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from prompt_tuning.errors import DataError


@contextmanager
def atomic_write(path: Path) -> Iterator[TextIO]:
    """A text file that appears under `path` only if the block ends without an error.

    A link stays one, and what it names is written; a pipe or device, which holds nothing, is written as it is.
    """
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn the many errors by which libraries report a full disk into one OSError."""
    try:
        yield
    except Exception as error:
        if folder.is_dir() and shutil.disk_usage(folder).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; its files move into `path` only if the block ends without an error."""
    path.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=path))
    try:
        with explain_full_disk(path):
            yield partial
        apply_umask(partial)
        for file in sorted(partial.iterdir()):
            os.replace(file, path / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def apply_umask(folder: Path) -> None:
    """Give a folder and all in it the mode of what is made anew; safetensors and tempfile make theirs for one user."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in (folder, *folder.rglob("*")):
        wanted = mode | (mode & 0o444) >> 2 if path.is_dir() else mode  # who may read a folder may enter it
        if path.stat().st_mode & 0o777 != wanted:
            path.chmod(wanted)


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        DataError: somebody else's bytes, or a half of them.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); remove it, and run what wrote it again") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows that `write_json_lines` wrote; str.splitlines would end some of them where a text has U+2028 or U+0085.

    Raises:
        DataError: a line that is not JSON.
    """
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                again = "remove the file, and run what wrote it again"
                raise DataError(f"{path}, line {number}: not JSON ({error}); {again}") from error
    return rows


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
