"""Folders for files of the moment, which the next run removes where a killed one left them."""

from __future__ import annotations

import fcntl
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
from types import TracebackType

from vtok.errors import OutputError


@contextmanager
def atomic_output(
    path: Path, overwrite: bool = False, workspace: Path | None = None
) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to `path` when the block ends well.

    The temporary file does not exist yet when it is given, and is removed when the block raises.
    A symbolic link is followed, so the file that it names is the one replaced.

    Args:
        path: Final name. Its folder must exist.
        overwrite: Replace an existing file; otherwise one is an error, before and after.
        workspace: Folder for the temporary file, on the same disk; that of the final name if None.

    Yields:
        A path that does not exist, in the workspace.

    Raises:
        OutputError: The output exists, is no regular file, or cannot be written.
    """
    check_output(path, overwrite)
    target = Path(os.path.realpath(path))
    temporary = (workspace or target.parent) / f".vtok-{secrets.token_hex(8)}.part"
    try:
        yield temporary
        check_output(path, overwrite)
        try:
            _sync(temporary)
            temporary.replace(target)
            _sync_folder(target.parent)
        except OSError as exc:
            raise OutputError(f"{path}: cannot be written ({exc.strerror})") from exc
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a name that cannot or must not be written; devices such as /dev/null are neither.

    Args:
        path: Name of the output.
        overwrite: Allow a file of this name.

    Raises:
        OutputError: The output exists, is no regular file, or its folder does not exist.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, give the name of a file")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is no regular file and cannot be replaced")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already (--overwrite replaces it, or give another name)")
    if not Path(os.path.realpath(path)).parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist")


def _sync(path: Path) -> None:
    """Flush a file to disk, so that no rename outlives its data."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush the rename itself; some systems cannot open a folder, and lose nothing by it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


LOCK = ".lock"
"""A file that is locked for as long as the owner of its folder lives, however that ends."""
DAY = 86400.0


class ScratchFolder:
    """A folder in that of the system for temporary files; removed when closed, or at the end.

    Making one removes those of the same prefix and user whose owners are dead. Also a context
    manager.

    Args:
        prefix: of its name, such as `vtok-dataset-`.

    Attributes:
        path: of it.

    Raises:
        OutputError: no folder can be made there.
    """

    def __init__(self, prefix: str) -> None:
        remove_leftovers(prefix)
        try:
            self.path, lock = _made(prefix)
        except OSError as exc:
            raise OutputError(
                f"no folder for temporary files can be made ({exc.strerror}): set TMPDIR to another"
            ) from exc
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove it. Closing twice is fine."""
        self._end()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def remove_leftovers(prefix: str) -> None:
    """Remove scratch folders of dead owners; of other users, and what cannot be told, stays.

    A folder without a lock is of one who has not come to lock it yet, unless it is a day old.
    """
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with suppress(OSError):
                _remove_if_left(path)


def _made(prefix: str) -> tuple[Path, int]:
    """A new folder, and the descriptor of its locked lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        with suppress(OSError):  # one that cannot be locked is not taken for a leftover either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (path / LOCK).exists():
            return path, lock
        os.close(lock)  # another run took it for a leftover just before it was locked


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_if_left(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return
    if not (path / LOCK).exists():
        if time.time() - found.st_mtime > DAY:
            shutil.rmtree(path, ignore_errors=True)
        return
    lock = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error, while its owner lives
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
