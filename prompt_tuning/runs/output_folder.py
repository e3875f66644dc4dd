"""Hold an output folder for one command: refuse files of others and a second command, and remove partial files."""

from __future__ import annotations

import errno
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.runs.earlier_run import check_folder, held_names
from prompt_tuning.support.files import DISK_LIMITS, remove_abandoned
from prompt_tuning.support.run_folder import RunFolder

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
"""The errors of a file system without locks."""


@contextmanager
def hold_folder(folder: Path, names: Sequence[str], *, written_before: bool = False) -> Iterator[None]:
    """Make a folder and hold it within the block, so that no other command writes it.

    Every process of a launch has to enter the block. The first one holds the folder for all. The system releases it
    when that process ends, whatever ends it.

    Args:
        folder: where the block writes.
        names: the files that the block writes, which others may have too.
        written_before: the caller knows the folder by another file than `RunFolder.is_run` does.

    Raises:
        RecipeError: another command holds the folder, it has a file of somebody else or a link out of it in place of a
            folder, or it cannot be written.
        OSError: the disk is full.
    """
    run = RunFolder(folder)
    problem: str | None = None
    lock: FileLock | None = None
    created: list[Path] = []
    if PartialState().is_main_process:
        try:
            check_folder(folder, names, written_before=written_before)
            created = [path for path in (run.lock, folder, *folder.parents) if not path.exists()]
            lock = _lock(run)
        except (RecipeError, DataError) as error:
            problem = str(error)
    # Without this the other processes would load their models before they notice.
    [problem] = broadcast_object_list([problem])
    if problem:
        raise RecipeError(problem)
    try:
        if lock:
            remove_abandoned(folder)
            remove_abandoned(folder / run.PREDICTIONS)
        yield
    finally:
        if lock:
            _release(lock, run, created if not held_names(folder, names) else [])


@contextmanager
def removed_without_scores(file: Path, has_scores: Callable[[], bool]) -> Iterator[None]:
    """Remove a file that the block wrote, if the block ends before there is a score that needs the file."""
    existed = file.exists()
    try:
        yield
    finally:
        if PartialState().is_main_process and not existed and not has_scores():
            file.unlink(missing_ok=True)


def _lock(run: RunFolder) -> FileLock:
    """Make a run's folder and lock it.

    Raises:
        RecipeError: another process has locked it, or it cannot be written.
        OSError: the disk is full.
    """
    # filelock's other kind of lock is only a file, which would outlive a killed process.
    lock = FileLock(run.lock, fallback_to_soft=False)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        holder = f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n"
        run.lock.write_text(holder, "utf-8")
    except Timeout:
        raise RecipeError(
            f"output_dir {run.path}: {_holder(run)} writes it. Wait for its end, or name another --output_dir."
        ) from None
    except OSError as error:
        if error.errno in DISK_LIMITS:
            raise
        if error.errno not in NO_LOCKS:
            raise RecipeError(
                f"output_dir {run.path}: it cannot be written ({error.strerror}). Name another one."
            ) from error
        logger.warning("%s: this file system has no locks. Let no second command write the folder.", run.path)
    return lock


def _holder(run: RunFolder) -> str:
    """Return what the process that holds a folder has written about itself, which it does just after it locks it."""
    for _ in range(20):
        text = run.lock.read_text("utf-8", errors="replace").strip() if run.lock.is_file() else ""
        if text:
            return text
        time.sleep(0.05)
    return "another process"


def _release(lock: FileLock, run: RunFolder, created: Sequence[Path]) -> None:
    """Release a folder, and remove what was created for a block that wrote nothing, the lock's file first."""
    for path in created:
        try:
            path.unlink() if path == run.lock else path.rmdir()
        except OSError:
            break  # Something else is in the folder.
    if lock.is_locked and run.lock.is_file():
        os.truncate(run.lock, 0)
    lock.release()
