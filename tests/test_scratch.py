"""Scratch folders: they go with their owner, however that ends, and nobody else's do."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vtok._files import DAY, LOCK, ScratchFolder, remove_leftovers
from vtok.errors import OutputError

OWNER = """
import signal
from vtok.scratch import ScratchFolder
folder = ScratchFolder("vtok-test-")
(folder.path / "half").write_bytes(b"x")
print(folder.path, flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def num_open() -> int:
    """Open files of this process, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_it_is_there_until_it_is_closed(system: Path) -> None:
    before = num_open()
    with ScratchFolder("vtok-test-") as path:
        assert path.parent == system
        (path / "a").write_text("a")
        with ScratchFolder("vtok-test-") as other:  # one that lives is nobody's leftover
            assert other != path
        assert (path / "a").exists()
    assert not list(system.iterdir())
    folder = ScratchFolder("vtok-test-")
    folder.close()
    folder.close()
    assert num_open() == before


def test_what_a_killed_run_left_goes_with_the_next(system: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().strip())
        remove_leftovers("vtok-test-")
        assert (left / "half").exists()
        owner.send_signal(signal.SIGKILL)
    assert (left / "half").exists()
    remove_leftovers("vtok-other-")
    assert (left / "half").exists()
    with ScratchFolder("vtok-test-") as path:
        assert list(system.iterdir()) == [path]


def test_what_cannot_be_told_stays(system: Path) -> None:
    """Links, files, and folders that were made a moment ago, or are another user's."""
    real = system / "elsewhere"
    real.mkdir()
    (real / LOCK).touch()
    (system / "vtok-test-link").symlink_to(real)
    (system / "vtok-test-file").touch()
    (system / "vtok-test-new").mkdir()
    remove_leftovers("vtok-test-")
    assert len(list(system.iterdir())) == 4
    old = system.stat().st_mtime - 2 * DAY
    os.utime(system / "vtok-test-new", (old, old))
    remove_leftovers("vtok-test-")
    assert len(list(system.iterdir())) == 3
    assert (real / LOCK).exists()


def test_those_of_other_users_stay(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (system / "vtok-test-theirs").mkdir()
    (system / "vtok-test-theirs" / LOCK).touch()
    monkeypatch.setattr(os, "getuid", lambda: system.stat().st_uid + 1)
    remove_leftovers("vtok-test-")
    assert (system / "vtok-test-theirs").exists()
    monkeypatch.undo()


def test_no_room_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(OutputError, match="set TMPDIR to another"):
        ScratchFolder("vtok-test-")
