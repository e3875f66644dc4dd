"""Write files so that they are complete or absent: under another name first, then renamed."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from prompt_tuning.errors import DataError, PromptTuningError, RecipeError
from prompt_tuning.support.json_types import Place, check_value
from prompt_tuning.support.json_values import MAX_BYTES, bounded_text, parse_json, read_bounded

PARTIAL = re.compile(
    r"\.partial-checkpoint-\d+(-[0-9a-f]{8})?|\.partial-(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{8}"
    r"|\..+\.partial-(?P<old_process>\d+)",
    re.DOTALL,
)
"""The names of files and folders that are not complete yet. Version 0.1.0 named files by the last pattern.

Only the run that holds a folder makes or removes a checkpoint in it. Any process may write another file.
"""


def partial_path(folder: Path) -> Path:
    """Return a path in a folder for a file that is not complete, named by the process that writes it."""
    return folder / f".partial-{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"


def remove_abandoned(folder: Path, *, held: bool = True) -> None:
    """Remove what killed processes of this host have half written in a folder.

    Args:
        folder: the folder.
        held: this process holds it. Else files whose names do not say their host are left, such as a checkpoint.
    """
    for path in folder.glob(".*"):
        name = PARTIAL.fullmatch(path.name)
        if name is None or not (held or name["host"]) or not _is_abandoned(name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_abandoned(name: re.Match[str]) -> bool:
    """Return whether the process that wrote a partial file cannot complete it."""
    if name["host"] not in (None, platform.node()):
        return False
    process = name["process"] or name["old_process"]
    if process is None:
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # It is a process of another user.
    return False


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; the file gets the name `path` only if the block ends without an error.

    If `path` is a symbolic link, the link is replaced and its target is not changed.

    Raises:
        OSError: of `DISK_LIMITS`, with the name of the file; or another one.
    """
    partial = partial_path(path.parent)
    with made_folder(path.parent):
        try:
            with explain_full_disk(path, partial):
                yield partial
                os.replace(partial, path)
        finally:
            if os.path.lexists(partial):  # A file system that is read-only refuses to remove a file that is not there.
                partial.unlink()


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and those above it. If the block raises an error, remove the new ones that are empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):
                path.rmdir()
        raise


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
    with atomic_path(path) as partial, partial.open("x", encoding="utf-8") as file:
        yield file


DISK_LIMITS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a full disk, a full quota, and a file that is larger than the user may write."""


@contextmanager
def explain_full_disk(path: Path, partial: Path) -> Iterator[None]:
    """Raise one OSError for the many errors by which libraries report that a disk takes no more.

    Args:
        path: the file or folder that the error names.
        partial: the file or folder that the block writes, and that still exists when the block fails.

    Raises:
        OSError: of `DISK_LIMITS`, or one of the block that named the partial file.
    """
    try:
        yield
    except PromptTuningError:
        raise
    except Exception as error:
        number, name = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
        if number is None or (number not in DISK_LIMITS and str(name) != str(partial)):
            number = _disk_limit(partial)
            if number not in DISK_LIMITS:
                raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _disk_limit(partial: Path) -> int | None:
    """Return the error of a file that is 1 MiB larger than the largest partial file, or None if it can be written."""
    sizes = [path.stat().st_size for path in (partial, *partial.rglob("*")) if path.is_file()]
    probe = partial_path(partial.parent)
    try:
        with probe.open("wb") as file:
            file.seek(max(sizes, default=0))
            file.write(bytes(2**20))
    except OSError as error:
        return error.errno
    finally:
        probe.unlink(missing_ok=True)
    return None


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill. Its files move into `path` only if the block ends without an error.

    Raises:
        OSError: the disk or a quota is full, or a file is too large.
    """

    def move(partial: Path) -> None:
        for file in sorted(partial.iterdir()):
            os.replace(file, path / file.name)

    with made_folder(path), _partial_folder(path, path, move) as partial:
        yield partial


def refuse_existing(folder: Path) -> None:
    """Raise a RecipeError if a folder that a command creates is there already."""
    if os.path.lexists(folder):
        raise RecipeError(f"{folder}: it exists already. Remove it, or name another folder.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill, which gets the name `path` only if the block ends without an error.

    What killed processes have left beside it is removed, since it may be as large as a model.

    Raises:
        OSError: there is a file of this name, or the disk or a quota is full.
    """
    with made_folder(path.parent):
        remove_abandoned(path.parent, held=False)
        with _partial_folder(path, path.parent, lambda partial: os.rename(partial, path)) as partial:
            yield partial


@contextmanager
def _partial_folder(path: Path, parent: Path, move: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new folder in `parent`, which `move` brings to `path` only if the block ends without an error."""
    partial = partial_path(parent)
    try:
        with explain_full_disk(path, partial):
            partial.mkdir()
            yield partial
        apply_umask(partial)
        move(partial)
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


def write_text(path: Path, text: str, *, named_by_user: bool = False) -> None:
    """Write a text; the file is complete or absent, and a link is as for `atomic_write`."""
    with atomic_write(path, named_by_user=named_by_user) as file:
        file.write(text)


def write_json(path: Path, value: Any, *, named_by_user: bool = False) -> None:
    """Write a value as indented JSON; arguments as for `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", named_by_user=named_by_user)


def read_json(path: Path, kind: Any = Any) -> Any:
    """Return the value of a JSON file.

    Args:
        path: the file.
        kind: the type that the value must have, as `json_types.check_value` takes it.

    Raises:
        DataError: the file is not JSON, is larger than MAX_BYTES or nested too deeply, or of another type.
        FileNotFoundError: it does not exist.
    """
    with _explain_json(str(path)):
        value = parse_json(read_bounded(path, MAX_BYTES))
    check_value(value, kind, Place(str(path)))
    return value


def read_json_lines(path: Path, kind: Any = Any) -> list[Any]:
    """Return the rows of a JSON Lines file.

    Only a line feed ends a row. str.splitlines would also split a text at U+2028 or U+0085.

    Args:
        path: the file.
        kind: the type that every row must have.

    Raises:
        DataError: a line that is not JSON, is larger than MAX_BYTES or nested too deeply, or is not of the type.
    """
    rows = []
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(MAX_BYTES + 1), b"")
        for number, line in enumerate(lines, 1):
            origin = f"{path}, line {number}"
            with _explain_json(origin):
                rows.append(parse_json(bounded_text(line, MAX_BYTES)))
            check_value(rows[-1], kind, Place(origin))
    return rows


@contextmanager
def _explain_json(origin: str) -> Iterator[None]:
    """Raise a DataError that names the text for a ValueError of the block."""
    try:
        yield
    except ValueError as error:
        advice = "Remove the file, and run the command that wrote it again."
        raise DataError(f"{origin}: not JSON ({error}). {advice}") from error


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


def name_problem(name: str) -> str | None:
    """Return what is wrong with the name of a folder to write, or None.

    A line break or another control character in it would break messages, and a recipe.yaml takes only UTF-8.
    """
    if not name.strip():
        return "it is empty. Name a folder."
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return "it has a line break, a control character or bytes that are not UTF-8. Name another one."
    return None


def looks_like_path(name: str | Path) -> bool:
    r"""Return whether a name can only be a path: `./x`, `/x`, `~/x`, `C:\x`, or one with more than one slash.

    The hub is never asked for such a name. `x/y` can be both.
    """
    return bool(re.match(r"[./~]|[A-Za-z]:", str(name))) or "\\" in str(name) or str(name).count("/") > 1


def unmistakable(name: str) -> str:
    """Return the name of a model or a data set for a saved file: a folder that could be a hub id as `./name`.

    From another working directory a library would ask the hub for `models/mine`, and somebody else's model may answer.
    """
    return f"./{name}" if name and Path(name).is_dir() and not looks_like_path(name) else name
