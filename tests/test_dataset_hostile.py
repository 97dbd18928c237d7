"""Data sets with hostile files, ids, names and disks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import rows, tiny_checkpoint, vtok
from datasets import manifest
from test_video_reader import BROKEN, CASES, build_broken
from videos import make_video

from vtok.dataset.item import valid_text

IDS = ("..", "../../up", "/etc/abs", "a/../b", "a//b", ".hidden", "new\nline", "tab\t", "é" * 200,
       "back\\slash", "per%cent", "%2E%2E", "a.b.c", " ", "dataset.json", ".vtok/all/journal",
       "con\x01trol", "x" * 300, "manifest")  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
def test_all_kinds_of_video_files(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    build_broken(folder)
    data = bytearray((folder / "whole.mp4").read_bytes())
    data[len(data) // 3 : len(data) // 2] = np.random.default_rng(0).bytes(
        len(data) // 2 - len(data) // 3
    )
    (folder / "damaged.mp4").write_bytes(data)
    for number, (name, case) in enumerate(CASES.items()):
        made = tmp_path / str(number)  # some leave other files
        made.mkdir()
        case.build(made / name)
        (made / name).rename(folder / name)
    names = [*CASES, *BROKEN, "whole.mp4", "damaged.mp4"]
    table = tmp_path / "all.jsonl"
    table.write_text(
        "".join(json.dumps({"id": name, "path": str(folder / name)}) + "\n" for name in names)
    )
    done = vtok("dataset", "encode", table, "-o", tmp_path / "out", "--model", checkpoint,
                "--size", "32", "--to", "npy", "--workers", "3")  # fmt: skip
    assert done.exit_code == 3, done.output
    by_name = {row["input"].rpartition("/")[2]: row for row in manifest(tmp_path / "out")}
    assert by_name.keys() == set(names)
    for name, case in CASES.items():
        row = by_name.pop(name)
        assert (row["status"], row["frames"]) == ("ok", len(case.numbers)), name
    assert by_name.pop("whole.mp4")["frames"] == 60
    assert {row["status"] for row in by_name.values()} == {"failed"}
    assert by_name.keys() == {*BROKEN, "damaged.mp4"}
    assert all(row["message"].count("\n") == 0 for row in by_name.values())


def test_ids_cannot_name_files_outside_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 1)
    table = tmp_path / "clips.jsonl"
    table.write_text("".join(json.dumps({"id": id_, "path": "v.mp4"}) + "\n" for id_ in IDS))
    before = set(tmp_path.rglob("*"))
    root = tmp_path / "deep" / "er" / "out"
    for to in ("npy", "tar"):
        done = vtok("dataset", "encode", table, "-o", root / to, "--model", checkpoint, "--to", to)
        assert done.exit_code == 0, done.output
        assert [row["id"] for row in manifest(root / to)] == sorted(IDS)
        assert all(os.path.realpath(path).startswith(f"{root}/") for path in root.rglob("*"))
        assert vtok("dataset", "verify", root / to).exit_code == 0
    files = {row["output"] for row in manifest(root / "npy")}
    assert len(files) == len(IDS)
    assert all((root / "npy" / name).is_file() for name in files)
    above = {root.parent, root.parent.parent}
    assert {path for path in tmp_path.rglob("*") if root not in (path, *path.parents)} == (
        before | above
    )


def test_file_names_that_are_not_utf8(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    video = make_video(tmp_path / "v.mp4", 1)
    names = [os.fsdecode(name) for name in (b"\xff.mp4", b"\xc3\xa9.mp4", b"a\xfe\nb.mp4")]
    for name in names:
        shutil.copy(video, tmp_path / "in" / name)
    done = vtok("dataset", "encode", tmp_path / "in", "-o", tmp_path / "out", "--model", checkpoint,
                "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    ids = {valid_text(name.removesuffix(".mp4")) for name in names}
    assert {row["id"] for row in rows(done) if "id" in row} == ids == {"%FF", "é", "a%FE\nb"}
    again = vtok("dataset", "encode", tmp_path / "in", "-o", tmp_path / "out", "--model",
                 checkpoint)  # fmt: skip
    assert "3 up to date" in again.stderr


def on_small_disk(
    size: str, disk: Path, script: str, *arguments: str | Path
) -> "subprocess.CompletedProcess[str]":
    """Run a shell script with a file system of this size at `disk`, in a private namespace."""
    setup = 'mount -t tmpfs -o size="$0" tmpfs "$1" || exit 99; '
    command: Sequence[str | Path] = ["unshare", "-Urm", "sh", "-c", setup + script, size, disk]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("only the administrator may mount disks here")
    return done


@pytest.mark.slow
@pytest.mark.parametrize("to", ["npy", "tar"])
def test_full_and_read_only_disks(checkpoint: Path, tmp_path: Path, to: str) -> None:
    """The run stops with one line, keeps its results, and continues once there is room."""
    (tmp_path / "in").mkdir()
    video = make_video(tmp_path / "in" / "00.mp4", 40, width=128, height=96)
    for number in range(1, 30):
        os.link(video, tmp_path / "in" / f"{number:02d}.mp4")
    (tmp_path / "disk").mkdir()
    run = (
        f'"{sys.executable}" -m vtok dataset encode "$2" -o "$1/out" --model "$3" --to {to} '
        "--shard-size 9 -q; code=$?; "
    )
    script = (
        f"{run} echo first $code; find $1/out -name '*.npy' -size 0 -print; "
        f"mount -o remount,size=20m tmpfs $1; {run} echo second $code; "
        f'"{sys.executable}" -m vtok dataset verify $1/out -q; echo verify $?; '
        f"rm $1/out/manifest.jsonl; mount -o remount,ro tmpfs $1; {run} echo third $code"
    )
    done = on_small_disk("256k", tmp_path / "disk", script, tmp_path / "in", checkpoint)
    assert done.stdout.split("\n") == ["first 1", "second 0", "verify 0", "third 1", ""], done
    first, third = done.stderr.splitlines()
    assert "No space left" in first or "no space left" in first
    assert "Read-only file system" in third


@pytest.mark.slow
def test_full_disk_for_temporary_files(checkpoint: Path, tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 1)
    (tmp_path / "disk").mkdir()
    table = tmp_path / "clips.jsonl"
    table.write_text(
        "".join(json.dumps({"id": "i" * 500 + str(n), "path": "v.mp4"}) + "\n" for n in range(5000))
    )
    script = (
        f'TMPDIR="$1" "{sys.executable}" -m vtok dataset encode "$2" -o "$4" --model "$3" -q; '
        "echo code $?"
    )
    done = on_small_disk("128k", tmp_path / "disk", script, table, checkpoint, tmp_path / "out")
    assert done.stdout == "code 1\n", done
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path / 'disk'}: no room for the list of items" in done.stderr
