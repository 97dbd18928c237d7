"""Output files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from vtok._files import atomic_output, check_output
from vtok.errors import OutputError


def test_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with atomic_output(target) as temporary:
        assert not temporary.exists()
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_output(tmp_path / "out.bin") as temporary:
        temporary.write_bytes(b"")
    assert (tmp_path / "out.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")

    def write_and_stop() -> None:
        with atomic_output(target, overwrite=True) as temporary:
            temporary.write_bytes(b"half")
            raise failure("stop")

    with pytest.raises(failure, match="stop"):
        write_and_stop()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_existing_file_is_refused_before_work_begins(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"out\.bin: exists already"), atomic_output(target):
        pytest.fail("the block must not run")
    with atomic_output(target, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    output = atomic_output(target)
    output.__enter__().write_bytes(b"mine")
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
        ("/dev/null", "/dev/null: is no regular file"),
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


def test_longest_file_name_works(tmp_path: Path) -> None:
    target = tmp_path / ("n" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    with atomic_output(target) as temporary:
        temporary.write_bytes(b"x")
    assert target.read_bytes() == b"x"
