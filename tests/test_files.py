"""Atomic output files and temporary folders."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vtok._files import (
    DAY,
    LOCK,
    ScratchFolder,
    atomic_output,
    check_output,
    remove_leftovers,
)
from vtok.errors import OutputError

OWNER = """
import signal
from vtok._files import ScratchFolder
folder = ScratchFolder("vtok-test-")
(folder.path / "half").write_bytes(b"x")
print(folder.path, flush=True)
signal.pause()
"""


def test_output_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    target = tmp_path / "out.bin"
    with atomic_output(target) as temporary:
        assert not temporary.exists()
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {"out.bin", "plain"}
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_exception_keeps_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with (  # noqa: PT012
        pytest.raises(failure, match="stop"),
        atomic_output(target, overwrite=True) as temporary,
    ):
        temporary.write_bytes(b"half")
        raise failure("stop")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_existing_file_is_an_error_before_the_block(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"out\.bin: exists already"), atomic_output(target):
        pytest.fail("the block must not run")
    with atomic_output(target, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_file_created_during_the_block_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    output = atomic_output(target)
    output.__enter__().write_bytes(b"ours")
    target.write_bytes(b"theirs")
    with pytest.raises(OutputError, match="exists already"):
        output.__exit__(None, None, None)
    assert target.read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), atomic_output(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/dev/null", "/dev/null: is not a regular file"),
        (".", "is a folder"),
        ("missing/out.bin", "the folder missing does not exist"),
    ],
)
def test_impossible_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=message):
        check_output(Path(name), overwrite=True)


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(b"old")
    (tmp_path / "link.bin").symlink_to("real.bin")
    with atomic_output(tmp_path / "link.bin", overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"new"


def test_longest_file_name(tmp_path: Path) -> None:
    target = tmp_path / ("n" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    with atomic_output(target) as temporary:
        temporary.write_bytes(b"x")
    assert target.read_bytes() == b"x"


@pytest.fixture
def temp_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty system folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def count_open_files() -> int:
    """Number of open files of this process; 0 on systems without /proc."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_scratch_folder_is_removed_when_closed(temp_root: Path) -> None:
    ScratchFolder("vtok-test-").close()  # imports what it needs
    before = count_open_files()
    with ScratchFolder("vtok-test-") as path:
        assert path.parent == temp_root
        (path / "a").write_text("a")
        with ScratchFolder("vtok-test-") as other:  # the first one is in use, so it stays
            assert other != path
        assert (path / "a").exists()
    assert not list(temp_root.iterdir())
    folder = ScratchFolder("vtok-test-")
    folder.close()
    folder.close()
    assert count_open_files() == before


def test_folder_of_a_killed_process_is_removed_by_the_next(temp_root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().strip())
        remove_leftovers("vtok-test-")
        assert (left / "half").exists()
        owner.send_signal(signal.SIGKILL)
    remove_leftovers("vtok-other-")
    assert (left / "half").exists()
    with ScratchFolder("vtok-test-") as path:
        assert list(temp_root.iterdir()) == [path]


def test_links_files_and_new_folders_are_kept(temp_root: Path) -> None:
    real = temp_root / "elsewhere"
    real.mkdir()
    (real / LOCK).touch()
    (temp_root / "vtok-test-link").symlink_to(real)
    (temp_root / "vtok-test-file").touch()
    (temp_root / "vtok-test-new").mkdir()
    remove_leftovers("vtok-test-")
    assert len(list(temp_root.iterdir())) == 4
    old = temp_root.stat().st_mtime - 2 * DAY
    os.utime(temp_root / "vtok-test-new", (old, old))
    remove_leftovers("vtok-test-")
    assert len(list(temp_root.iterdir())) == 3
    assert (real / LOCK).exists()


def test_folders_of_other_users_are_kept(temp_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = temp_root / "vtok-test-theirs"
    folder.mkdir()
    (folder / LOCK).touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: temp_root.stat().st_uid + 1)
        remove_leftovers("vtok-test-")
        assert folder.exists()
        patch.delattr(os, "getuid")  # Windows has none
        remove_leftovers("vtok-test-")
    assert not folder.exists()


def test_unusable_temporary_folder_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(OutputError, match="set TMPDIR to another"):
        ScratchFolder("vtok-test-")
