"""Write files so that they are complete or absent: under another name first, then renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from prompt_tuning.errors import DataError


@contextmanager
def atomic_write(path: Path, *, named_by_user: bool = False) -> Iterator[TextIO]:
    """Yield a text file that appears under `path` only if the block ends without an error.

    Args:
        path: the file. If it is a symbolic link, the link is replaced and its target is not changed.
        named_by_user: the path is from the command line. Then the target of a link is replaced, and a pipe or a device
            is written directly.
    """
    if named_by_user:
        if path.exists() and not path.is_file():
            with path.open("w", encoding="utf-8") as file:
                yield file
            return
        path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("x", encoding="utf-8") as file:  # A link of this name would be followed otherwise.
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Raise one OSError for the many errors by which libraries report a full disk.

    Args:
        folder: where the block writes.

    Raises:
        OSError: with errno.ENOSPC, if the folder's disk has less than 1 MiB left.
    """
    try:
        yield
    except Exception as error:
        if folder.is_dir() and shutil.disk_usage(folder).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill. Its files move into `path` only if the block ends without an error.

    Raises:
        OSError: the disk is full.
    """
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
    """Give a folder and all in it the mode of new files and folders.

    Without this, only one user could read the files that safetensors and tempfile make.
    """
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in (folder, *folder.rglob("*")):
        # Who may read a folder may also enter it.
        path_mode = mode | (mode & 0o444) >> 2 if path.is_dir() else mode
        if path.stat().st_mode & 0o777 != path_mode:
            path.chmod(path_mode)


def write_json(path: Path, value: Any, *, named_by_user: bool = False) -> None:
    """Write a value as indented JSON; the file is complete or absent, and a link is as for `atomic_write`."""
    with atomic_write(path, named_by_user=named_by_user) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        DataError: the file is not JSON.
        FileNotFoundError: it does not exist.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Remove it, and run the command that wrote it again.") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file.

    Only a line feed ends a row. str.splitlines would also split a text at U+2028 or U+0085.

    Raises:
        DataError: a line that is not JSON.
    """
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                advice = "Remove the file, and run the command that wrote it again."
                raise DataError(f"{path}, line {number}: not JSON ({error}). {advice}") from error
    return rows


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON Lines; the file is complete or absent."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def is_plain_name(name: object) -> bool:
    """Return whether a name can only be that of a file in its folder: no path, no control character.

    >>> is_plain_name("test"), is_plain_name(".."), is_plain_name("a/b")
    (True, False, False)
    """
    return isinstance(name, str) and name.isprintable() and not re.search(r"^\.{0,2}$|[/\\]", name)


def looks_like_path(name: str | Path) -> bool:
    r"""Return whether a name can only be a path: `./x`, `/x`, `~/x`, `C:\x`, or one with more than one slash.

    The hub is never asked for such a name. `x/y` can be both.
    """
    return bool(re.match(r"[./~]|[A-Za-z]:", str(name))) or "\\" in str(name) or str(name).count("/") > 1
