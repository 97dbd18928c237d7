"""Folders for files of the moment, which the next run removes where a killed one left them."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from vtok.errors import OutputError

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
