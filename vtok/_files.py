"""Atomic output files, and temporary folders that never outlive a run for long."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vtok.errors import OutputError

if TYPE_CHECKING:
    from filelock import FileLock

LOCK = ".lock"  # locked inside a temporary folder for as long as its owner runs
DAY = 86400.0


@contextmanager
def atomic_output(
    path: Path, overwrite: bool = False, workspace: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary path to write to and rename it to `path` if the block succeeds.

    The temporary file does not exist yet, and is removed if the block raises. A symbolic link is
    followed: the file it points to is replaced.

    Args:
        path: Final name; its folder must exist.
        overwrite: Replace an existing file. Without it, an existing file is an error both before
            and after the block.
        workspace: Folder for the temporary file, on the same disk; default: the folder of `path`.

    Raises:
        OutputError: The output exists, is not a regular file, or cannot be written.
    """
    check_output(path, overwrite)
    target = Path(os.path.realpath(path))
    temporary = (workspace or target.parent) / f".vtok-{secrets.token_hex(8)}.part"
    try:
        yield temporary
        check_output(path, overwrite)
        try:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # the data must reach the disk before the new name does
            temporary.replace(target)
            _sync_folder(target.parent)
        except OSError as exc:
            raise OutputError(f"{path}: cannot be written ({exc.strerror})") from exc
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def open_closed_streams() -> None:
    """Open the null device for each closed one of the descriptors 0, 1 and 2.

    Daemons are started with them closed. A file or pipe would otherwise get their numbers, and
    with it what libraries and child processes write to the standard streams.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one


def is_junk(name: str) -> bool:
    """Return True for names of hidden files and of what archivers of macOS add."""
    return name.startswith(".") or name == "__MACOSX"


def shorten_name(name: str, limit: int) -> str:
    """Cut a file name to at most `limit` bytes; a digest keeps cut names apart."""
    data = os.fsencode(name)
    if len(data) <= limit:
        return name
    mark = hashlib.sha256(data).hexdigest()[:16]
    return os.fsencode(name)[: limit - 17].decode(errors="ignore") + "~" + mark


def check_output(path: Path, overwrite: bool = False) -> None:
    """Check that a regular file can be written under this name.

    Args:
        path: Name of the output.
        overwrite: Allow an existing file.

    Raises:
        OutputError: The output exists, is not a regular file, or its folder does not exist.
    """
    try:
        _check_output(path, overwrite)
    except OSError as exc:  # such as a name that is too long
        raise OutputError(f"{path}: cannot be written ({exc.strerror})") from exc


def _check_output(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, give the name of a file")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a regular file and cannot be replaced")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already (`overwrite` replaces it, or give another name)")
    if not Path(os.path.realpath(path)).parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist")


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class ScratchFolder:
    """Temporary folder, removed when closed or when the process ends; also a context manager.

    A new folder first removes stale folders of the same prefix and user, left by killed processes.

    Args:
        prefix: Start of the folder's name, such as `vtok-dataset-`.

    Attributes:
        path: The folder.

    Raises:
        OutputError: The folder cannot be created.
    """

    def __init__(self, prefix: str) -> None:
        remove_leftovers(prefix)
        try:
            self.path, lock = _create_locked(prefix)
        except OSError as exc:
            raise OutputError(
                f"cannot create a temporary folder ({exc.strerror}): set TMPDIR to another folder"
            ) from exc
        self._finalizer = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove the folder. Closing twice is fine."""
        self._finalizer()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_leftovers(prefix: str) -> None:
    """Remove temporary folders with this prefix whose owner no longer runs.

    Folders of other users stay. A folder without a lock file may be about to get one, so it stays
    for a day.
    """
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with suppress(OSError):
                _remove_if_stale(path)


def _file_lock(folder: Path) -> FileLock:
    from filelock import FileLock  # slow to import, and not needed to encode a file

    return FileLock(folder / LOCK, thread_local=False)


def _create_locked(prefix: str) -> tuple[Path, FileLock]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        lock = _file_lock(path)
        with suppress(OSError):  # without a lock the folder still counts as in use for a day
            lock.acquire(blocking=False)
        if (path / LOCK).exists():
            return path, lock
        lock.release()  # another process took the folder for stale before it was locked


def _remove(path: Path, lock: FileLock) -> None:
    shutil.rmtree(path, ignore_errors=True)
    lock.release()
    shutil.rmtree(path, ignore_errors=True)  # Windows cannot remove the lock file while it is held


def _remove_if_stale(path: Path) -> None:
    found = path.lstat()
    foreign = hasattr(os, "getuid") and found.st_uid != os.getuid()
    if foreign or not stat.S_ISDIR(found.st_mode):
        return
    if (path / LOCK).exists():
        lock = _file_lock(path)
        lock.acquire(blocking=False)  # raises an OSError while the owner runs
        _remove(path, lock)
    elif time.time() - found.st_mtime > DAY:
        shutil.rmtree(path, ignore_errors=True)
