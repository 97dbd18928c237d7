"""Output files that appear whole or not at all.

A file is written under a temporary name in the folder of its final name, flushed to disk, and
renamed; whoever looks at the final name sees the old file or the new one, never a part.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
