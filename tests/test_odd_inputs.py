"""Closed standard streams, long names, hidden files, unknown suffixes, two videos of a sample."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from commands import rows, tiny_checkpoint, vtok
from videos import make_video

from vtok._files import check_output
from vtok.cli.jobs import plan
from vtok.dataset.sources import Inputs, find_items
from vtok.errors import InputError, OutputError
from vtok.video.reader import VideoReader
from vtok.video.suffixes import VIDEO_SUFFIXES


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("films") / "a.mp4", 10)


def run(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell command; "$@" in it is vtok with the arguments."""
    words = (sys.executable, "-m", "vtok", *map(str, arguments))
    shell = ["sh", "-c", command, "sh", *words]
    return subprocess.run(shell, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams(film: Path, closed: str) -> None:
    done = run(f'exec "$@" {closed}', "info", film, "--json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if "1" not in closed:
        assert '"frames": 10' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["0<&-", "0<&- 1>&- 2>&-"])
def test_encode_and_decode_with_closed_streams(film: Path, tmp_path: Path, closed: str) -> None:
    model = tiny_checkpoint(tmp_path)
    code, again = tmp_path / "a.vtok", tmp_path / "b.mkv"
    for arguments in (("encode", film, "-o", code), ("decode", code, "-o", again)):
        done = run(f'exec "$@" {closed}', *arguments, "--model", model)
        assert done.returncode == 0, done.stderr
    with VideoReader(again) as reader:
        assert reader.info.num_frames == 10


def test_closed_standard_output_is_no_output(film: Path) -> None:
    done = run('exec "$@" 1>&-', "encode", film, "-o", "-")
    assert done.returncode == 2
    assert "standard output is not a file or pipe" in done.stderr


@pytest.mark.parametrize("command", ['exec "$@" < {}', 'cat {} | "$@"'])
def test_name_of_standard_input(film: Path, command: str) -> None:
    done = run(command.format(film), "info", "/dev/stdin", "--json")
    assert done.returncode == 0, done.stderr
    assert '"frames": 10' in done.stdout
    assert plan(["/dev/stdin"], None, ".vtok", VIDEO_SUFFIXES)[0].source == "-"


def test_descriptor_as_name(film: Path) -> None:
    with film.open("rb") as file, VideoReader(Path(f"/dev/fd/{file.fileno()}")) as reader:
        assert sum(map(len, reader)) == 10


def test_long_names(film: Path, tmp_path: Path) -> None:
    long = tmp_path / f"{'ö' * 123}.mp4"  # 250 bytes
    long.write_bytes(film.read_bytes())
    model = tiny_checkpoint(tmp_path)
    result = vtok("encode", long, "--model", model, "--json")
    assert result.exit_code == 0, result.output
    code = rows(result)[0]["output"]
    result = vtok("decode", code, "--model", model, "--json")
    assert result.exit_code == 0, result.output
    name = Path(rows(result)[0]["output"]).name
    assert name.endswith(".decoded.mp4")
    assert len(name.encode()) <= 255
    too_long = tmp_path / ("x" * 300)
    for arguments in (("encode", too_long), ("encode", long, "-o", too_long), ("info", too_long)):
        result = vtok(*arguments, *(("--model", model) if arguments[0] == "encode" else ()))
        assert result.exit_code in (InputError.exit_code, OutputError.exit_code)
        assert "internal error" not in result.stderr
    with pytest.raises(OutputError, match=r"(?i)name too long"):
        check_output(too_long)


def test_folders_without_hidden_files_and_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.mp4", "b.mxf", "c.3g2", "._a.mp4", ".b.mkv", ".trash/d.mp4", "__MACOSX/e.mp4"]
    for name in [*names, "f.txt", "g.txt", "README"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    jobs = plan([str(tmp_path)], None, ".vtok", VIDEO_SUFFIXES)
    assert [Path(job.source).name for job in jobs] == ["a.mp4", "b.mxf", "c.3g2"]
    assert "left out by their suffix: 2 .txt, 1 no suffix\n" in capsys.readouterr().err
    found = sorted(Path(item.source).name for item in find_items(Inputs([str(tmp_path)])))
    assert found == ["a.mp4", "b.mxf", "c.3g2"]


def test_two_videos_of_one_sample(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("1.mp4", "2.left.mp4", "2.right.mp4", "3.mp4", "3.webm", "__MACOSX/4.mp4"):
            tar.addfile(tarfile.TarInfo(name))
    ids = [item.id for item in find_items(Inputs([os.fspath(shard)]))]
    assert ids == ["s/1", "s/2.left.mp4", "s/2.right.mp4", "s/3.mp4", "s/3.webm"]
