"""Real Ray clusters: the same files, also if a machine is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commands import tiny_checkpoint
from datasets import journal_lines, manifest, outputs
from ray_nodes import TOKEN, Marked, Node
from videos import make_video

from vtok.dataset.api import DatasetOptions, encode_dataset

pytest.importorskip("ray", reason="pip install 'vtok[ray]'")
pytestmark = pytest.mark.slow
CLIPS = 24


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "bad.mp4").write_bytes(b"no video")
    for number in range(CLIPS):
        path = folder / f"{number:02d}.mp4"
        if number < 3:  # long enough that each machine gets some
            make_video(path, 200 + number, width=128, height=96)
        else:
            os.link(folder / f"{number % 3:02d}.mp4", path)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plain(videos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set made without Ray."""
    folder = tmp_path_factory.mktemp("plain") / "out"
    options = DatasetOptions(to="tar", shard_size=5)
    totals = encode_dataset([videos], folder, model=checkpoint, options=options)
    assert (totals.done, totals.failed) == (CLIPS, 1)
    return folder


def start(
    videos: Path, checkpoint: Path, output: Path, *options: str, **environment: str
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "vtok", "dataset", "encode", videos, "-o", output, "--json"]
    command += ["--model", checkpoint, "--to", "tar", "--shard-size", "5", "--engine", "ray"]
    return subprocess.Popen(
        [*map(str, command), *options],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Summary of a run in which one item failed."""
    out, err = process.communicate()
    assert process.returncode == 3, err
    assert b"bad" in err
    return dict(json.loads(out.splitlines()[-1]))


def assert_same(folder: Path, plain: Path) -> None:
    """Same files and rows, and one journal record per item."""
    assert outputs(folder) == outputs(plain)
    rows = [[{**row, "seconds": None} for row in manifest(root)] for root in (folder, plain)]
    assert rows[0] == rows[1]
    finished = [record["id"] for record in journal_lines(folder) if record["kind"] == "item"]
    assert sorted(finished) == [row["id"] for row in manifest(plain)]


def test_local_cluster_leaves_nothing_behind(
    videos: Path, checkpoint: Path, plain: Path, tmp_path: Path
) -> None:
    with Marked() as mark:
        environment = {**mark.environment, "HOME": str(tmp_path), "TMPDIR": str(mark.folder)}
        environment["RAY_TMPDIR"] = str(mark.folder)
        stopped = start(videos, checkpoint, tmp_path / "out", "--workers", "2", **environment)
        with stopped as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
            assert process.returncode == 130, err
        assert len(out.splitlines()) < CLIPS
        with start(videos, checkpoint, tmp_path / "out", **environment) as process:
            summary = finish(process)
        assert summary["done"] < CLIPS == summary["done"] + summary["up_to_date"]
        assert_same(tmp_path / "out", plain)
        assert mark.pids() == []
        assert list(mark.folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    stack = ExitStack()
    try:
        head = stack.enter_context(Node())
        worker = stack.enter_context(Node(head.address))
    except RuntimeError as exc:  # Ray waits 30 seconds, which a busy machine may exceed
        stack.close()
        pytest.skip(str(exc))
    with stack:
        yield head, worker


def test_two_machines_of_which_one_is_lost(
    nodes: tuple[Node, Node], videos: Path, checkpoint: Path, plain: Path, tmp_path: Path
) -> None:
    head, worker = nodes
    address = ("--ray-address", head.address)
    for name in ("both", "one"):
        with start(videos, checkpoint, tmp_path / name, *address, **TOKEN) as process:
            for node in nodes:
                while not node.runs("vtok.video.worker"):
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.01)
            if name == "one":
                worker.kill()
            assert finish(process)["done"] == CLIPS
        assert_same(tmp_path / name, plain)
    assert not head.runs("vtok.video.worker")
