"""Run every shell pipeline and the makefile of docs/pipelines.md with a tiny model."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import tiny_checkpoint
from videos import make_video

PAGE = (Path(__file__).parent.parent / "docs" / "pipelines.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
MAKEFILE = re.findall(r"```make\n(.*?)```", PAGE, re.DOTALL)[0]
TOOLS = ("jq", "xargs", "tar", "make", "cmp", "seq", "find")

VTOK = """#!{python}
import sys
from vtok.cli.app import main
with_model = {{"encode", "decode"}} & set(sys.argv[1:3])
sys.argv[0] = "vtok"
sys.argv += ["--model", "{checkpoint}"] if with_model else []
main()
"""

Shell = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run commands in a folder of videos, with a `vtok` that uses a tiny model."""
    (tmp_path / "videos").mkdir()
    for number, name in enumerate(("a", "b c", "new\nline")):
        make_video(tmp_path / "videos" / f"{name}.mp4", 5 + 4 * number)
    (tmp_path / "videos" / "broken.mkv").write_bytes(b"no video")
    program = tmp_path / "bin" / "vtok"
    program.parent.mkdir()
    checkpoint = tiny_checkpoint(tmp_path)
    program.write_text(VTOK.format(python=sys.executable, checkpoint=checkpoint))
    program.chmod(0o755)
    root = Path(__file__).parent.parent
    environment = {
        **os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def run(script: str) -> "subprocess.CompletedProcess[str]":
        missing = [tool for tool in TOOLS if tool in script and shutil.which(tool) is None]
        if missing:
            pytest.skip(f"{missing[0]} is not installed")
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_every_pipeline_is_tested() -> None:
    assert len(SHELL) == 6


@pytest.mark.slow
def test_find_and_jq(shell: Shell, tmp_path: Path) -> None:
    lines = shell(SHELL[0]).stdout.splitlines()
    assert {line.split("\t")[1] for line in lines} == {"5", "9", "13"}
    assert sorted(path.stem for path in (tmp_path / "videos").glob("*.vtok")) == [
        "a", "b c", "new\nline",
    ]  # fmt: skip
    (line,) = shell(SHELL[1]).stdout.splitlines()
    assert line.startswith("videos/broken.mkv: not a")


@pytest.mark.slow
def test_data_set_from_find(shell: Shell, tmp_path: Path) -> None:
    (line,) = shell(SHELL[2]).stdout.splitlines()
    assert line.startswith("decode\tvideos/broken\tvideos/broken.mkv: not a")
    assert len(list((tmp_path / "set").rglob("*.vtok"))) - 1 == 3  # the state folder is named .vtok


@pytest.mark.slow
def test_codes_in_pipes(shell: Shell, tmp_path: Path) -> None:
    shell(SHELL[3])
    assert (tmp_path / "a.decoded.mp4").stat().st_size > 100
    assert (tmp_path / "lengths").read_text().strip()


@pytest.mark.slow
def test_parallel_processes(shell: Shell, tmp_path: Path) -> None:
    shell(SHELL[4])
    assert len(list((tmp_path / "videos").glob("*.npy"))) == 3
    (tmp_path / "videos" / "broken.mkv").unlink()
    shell(SHELL[5])
    assert len((tmp_path / "members").read_text().splitlines()) == 6


@pytest.mark.slow
def test_make_encodes_what_is_missing(shell: Shell, tmp_path: Path) -> None:
    for path in (tmp_path / "videos").iterdir():
        if path.name != "a.mp4":  # make does not support names with spaces
            path.unlink()
    make_video(tmp_path / "videos" / "z.mp4", 5)
    (tmp_path / "Makefile").write_text(MAKEFILE)
    assert shell("make -j2").stdout.count("vtok encode") == 2
    assert "Nothing to be done" in shell("make -j2").stdout
    os.utime(tmp_path / "videos" / "z.mp4", (2e9, 2e9))
    assert "vtok encode videos/z.mp4 -o made/z.vtok" in shell("make -j2").stdout


def test_lists_of_names(tmp_path: Path) -> None:
    from vtok.cli.jobs import with_listed
    from vtok.errors import InputError, UsageError

    path = tmp_path / "list"
    path.write_bytes(b"a.mp4\0b\nc.mp4\0\xff\0")
    assert with_listed(["x"], [str(path)], True) == ["x", "a.mp4", "b\nc.mp4", "\udcff"]
    with pytest.raises(UsageError, match="did you mean to give -0"):
        with_listed([], [str(path)], False)
    path.write_bytes(b"a b.mp4\r\n\n")
    assert with_listed(None, [str(path)], False) == ["a b.mp4"]
    path.write_bytes(b"")
    for names, lists, error in (([], [str(path)], InputError), ([], None, UsageError)):
        with pytest.raises(error, match="no input"):
            with_listed(names, lists, False)
    with pytest.raises(InputError, match="cannot be read"):
        with_listed(None, [str(tmp_path / "none")], False)
    with pytest.raises(UsageError, match="-0 needs"):
        with_listed(["a"], None, True)
    with pytest.raises(UsageError, match="can be read only once"):
        with_listed(["-"], ["-"], False)
