"""`vtok dataset` on real videos with a tiny model: outputs, resumption and bad inputs."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from commands import encode, rows, tiny_checkpoint, vtok
from datasets import manifest, outputs
from safetensors.numpy import load_file
from videos import make_video, run_ffmpeg
from webdataset.tariterators import group_by_keys, tar_file_iterator

import vtok as package
from vtok.codefile.reader import CodeFileReader
from vtok.dataset import worker
from vtok.dataset.api import encode_dataset
from vtok.dataset.options import DatasetOptions
from vtok.dataset.sources import Inputs
from vtok.dataset.writers import read_npy
from vtok.errors import OptionError, OutputError, UsageError
from vtok.models.load import load

FRAMES = {"a": 20, "sub/b": 9, "sub/c.x": 33}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    for name, frames in FRAMES.items():
        make_video(folder / f"{name}.mp4", frames)
    return folder


@pytest.fixture(scope="module")
def arrays(
    videos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """Codes of each video from `vtok encode`."""
    folder, model = tmp_path_factory.mktemp("alone"), load(checkpoint)
    return {
        name: np.load(encode(videos / f"{name}.mp4", folder / f"{number}.npy", model, to="npy"))
        for number, name in enumerate(FRAMES)
    }


def test_files_equal_those_of_vtok_encode(
    videos: Path, checkpoint: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    done = vtok("dataset", "encode", videos, "-o", tmp_path / "out", "--model", checkpoint,
                "--psnr", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    *clips, summary = rows(done)
    assert summary["kind"] == "summary"
    assert (summary["done"], summary["frames"]) == (3, sum(FRAMES.values()))
    assert summary["phase_seconds"].keys() == {"fetch", "decode", "model", "write"}
    assert {clip["id"]: clip["frames"] for clip in clips} == FRAMES
    for row in manifest(tmp_path / "out"):
        assert row["output"] == f"{row['id']}.vtok"
        assert row["input"] == str(videos / f"{row['id']}.mp4")
        assert 3 < row["psnr"] < 60
        path = tmp_path / "out" / row["output"]
        assert row["bytes"] == path.stat().st_size
        with path.open("rb") as stream:
            codes = np.concatenate([chunk.codes for chunk in CodeFileReader(stream)], axis=2)
        assert np.array_equal(codes[:, 0], arrays[row["id"]])
        assert row["code_shape"] == list(arrays[row["id"]].shape)
    assert vtok("dataset", "verify", tmp_path / "out").exit_code == 0
    again = vtok("dataset", "encode", videos, "-o", tmp_path / "out", "--model", checkpoint)
    assert "0 clips done, 3 up to date" in again.stderr
    shown = vtok("dataset", "status", tmp_path / "out").stdout
    assert "clips done    3" in shown


def made(
    videos: Path, checkpoint: Path, output: Path, **options: object
) -> list[dict[str, object]]:
    how = DatasetOptions(shard_size=2, **options)  # type: ignore[arg-type]
    encode_dataset(Inputs([str(videos)]), output, model=checkpoint, options=how)
    return manifest(output)


def test_shards_can_be_read_by_other_programs(
    videos: Path, checkpoint: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    made(videos, checkpoint, tmp_path / "tar", to="tar")
    shards = [str(path) for path in sorted((tmp_path / "tar").glob("*.tar"))]
    assert [Path(name).name for name in shards] == ["000000.tar", "000001.tar"]
    found = {}
    for name in shards:
        with Path(name).open("rb") as file:
            files = ({**item, "__url__": name} for item in tar_file_iterator(file))
            for sample in group_by_keys(files):
                about = json.loads(sample["json"])
                found[about["id"]] = read_npy(sample["npy"])
                assert about["frames"] == FRAMES[about["id"]]
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    listed = subprocess.run(["tar", "tf", shards[0]], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["a.npy", "a.json", "sub/b.npy", "sub/b.json"]

    made(videos, checkpoint, tmp_path / "parquet", to="parquet")
    table = pyarrow.parquet.read_table(sorted((tmp_path / "parquet").glob("*.parquet"))).to_pylist()
    for row in table:
        codes = np.frombuffer(row["codes"], row["dtype"]).reshape(row["shape"])
        assert np.array_equal(codes, arrays[row["id"]])

    made(videos, checkpoint, tmp_path / "tensors", to="safetensors")
    for name, codes in arrays.items():
        assert np.array_equal(
            load_file(tmp_path / "tensors" / f"{name}.safetensors")["codes"], codes
        )


def test_memory_maps(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`size` WIDTHxHEIGHT"):
        DatasetOptions(to="memmap")
    done = vtok("dataset", "encode", videos, "-o", tmp_path, "--model", checkpoint,
                "--to", "memmap", "--size", "32x32", "--bits", "6")  # fmt: skip
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "metadata_0.json").read_text())
    codes = np.memmap(tmp_path / "video_0.bin", np.uint32, "r").reshape(about["shape"])
    segments = np.memmap(tmp_path / "segment_ids_0.bin", np.int32, "r")
    assert codes.shape[1:] == (1, 8, 8)
    assert codes.max() < about["vocab_size"] == 64
    assert [clip["id"] for clip in about["segments"]] == list(FRAMES)
    assert np.bincount(segments).tolist() == [1 + -(-(n - 1) // 4) for n in FRAMES.values()]
    assert vtok("dataset", "verify", tmp_path).exit_code == 0


def test_start_and_end_of_items(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    video = videos / "sub" / "c.x.mp4"
    table.write_text(
        f"id,input,start,end,label\n1,{video},0,0.3,x\n2,{video},0.5,,y\n3,{video},9,,z\n"
    )
    done = vtok("dataset", "encode", table, "-o", tmp_path / "out", "--model", checkpoint)
    assert done.exit_code == 3
    assert done.stderr.count("error:") == 2
    first, second, third = manifest(tmp_path / "out")
    assert (first["frames"], second["frames"]) == (9, 18)
    assert (first["columns"], second["columns"]) == ({"label": "x"}, {"label": "y"})
    assert (third["status"], third["phase"], third["error"]) == ("failed", "decode", "VideoError")
    assert "no frame in the requested part" in third["message"]


def test_changed_source_is_encoded_again(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = make_video(tmp_path / "in" / "a.mp4", 5)
    made(path.parent, checkpoint, tmp_path / "out")
    made(path.parent, checkpoint, tmp_path / "out")
    os.utime(path, (1, 1))  # as after copying: the bytes are the same
    before = (tmp_path / "out" / "a.vtok").stat().st_mtime_ns
    made(path.parent, checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "a.vtok").stat().st_mtime_ns == before
    make_video(path, 13)
    assert made(path.parent, checkpoint, tmp_path / "out")[0]["frames"] == 13


ALONE = """
import sys
from vtok.cli.app import main
try:
    main()
except SystemExit as end:
    print(end.code or 0, "torch" in sys.modules)
"""


def test_torch_is_not_imported_if_everything_is_up_to_date(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ("dataset", "encode", videos, "-o", tmp_path / "out", "--model", checkpoint)
    assert vtok(*arguments).exit_code == 0
    command = [sys.executable, "-c", ALONE, *map(str, arguments), "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "False"], done.stderr


def test_data_set_keeps_its_number_type(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    made(videos, checkpoint, tmp_path, dtype="bfloat16")
    before = outputs(tmp_path)
    (tmp_path / "a.vtok").unlink()
    made(videos, checkpoint, tmp_path)  # --dtype auto, which is float32 on many machines
    assert outputs(tmp_path) == before
    with pytest.raises(UsageError, match=r"other options \(dtype bfloat16 -> float32\)"):
        made(videos, checkpoint, tmp_path, dtype="float32")


def test_unknown_files_are_not_replaced(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.vtok").write_bytes(b"of another")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.vtok").write_bytes(b"of another")
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    by_id = {row["id"]: row for row in made(videos, checkpoint, tmp_path / "out")}
    assert "exists already and is not from this data set" in str(by_id["a"]["message"])
    assert "a link leads outside" in str(by_id["sub/b"]["message"])
    assert {row["phase"] for row in by_id.values()} == {"write"}
    assert (tmp_path / "out" / "a.vtok").read_bytes() == b"of another"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_full_disk_stops_the_run_which_can_be_resumed(
    videos: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        real = worker.CountingStream
        patch.setattr(worker, "CountingStream", lambda file, name: real(Full(), name))
        with pytest.raises(OutputError, match="No space left on device"):
            made(videos, checkpoint, tmp_path / "out")
    assert outputs(tmp_path / "out") == {}
    assert {row["status"] for row in made(videos, checkpoint, tmp_path / "out")} == {"ok"}


def test_output_folder_that_cannot_be_created(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = vtok("dataset", "encode", videos, "-o", tmp_path / "file" / "out", "--model", checkpoint)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1


def test_dry_run_writes_nothing(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    done = vtok("dataset", "encode", videos, "-o", tmp_path / "out", "--model", checkpoint,
                "--dry-run", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    (seen,) = rows(done)
    assert (seen["items"], seen["todo"], seen["up_to_date"]) == (3, 3, 0)
    assert seen["first"] == {name: name for name in FRAMES}
    assert not (tmp_path / "out").exists()


def test_dry_run_shows_what_is_skipped(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("dataset", "encode", videos, "-o", tmp_path, "--model", checkpoint)
    assert vtok(*arguments).exit_code == 0
    (tmp_path / "a.vtok").unlink()
    before = outputs(tmp_path)
    done = vtok(*arguments, "--dry-run")
    assert "3 clips, 2 up to date, 0 failed before, 1 to do" in done.stdout
    assert "a -> a" in done.stdout
    assert outputs(tmp_path) == before


def test_models_that_are_loaded_already(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    made(videos, checkpoint, tmp_path / "path")
    loaded = load(checkpoint)
    encode_dataset([videos], tmp_path / "loaded", model=loaded)
    assert outputs(tmp_path / "loaded") == outputs(tmp_path / "path")
    how = DatasetOptions(engine="ray")
    with pytest.raises(OptionError, match="a name or path with `engine` ray"):
        encode_dataset([videos], tmp_path / "ray", model=loaded, options=how)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to encode"),
        (["-"], "--files-from - reads a list"),
        (["v", "-0"], "-0 needs --files-from"),
        (["v", "--to", "zip"], "--to zip: expected one of vtok, npy"),
        (["v", "--shard", "3/3"], "--shard 3/3: expected an index from 0 to 2"),
        (["v", "--workers", "0"], "--workers 0: expected 1 or more"),
        (["v", "--shard-size", "0"], "--shard-size 0: expected 1 or more"),
        (["v", "--memory", "5"], "--memory 5: expected 256 or more"),
        (["v", "--clip-timeout", "0"], "--clip-timeout 0: expected more than 0"),
        (["v", "--max-failures", "x"], "--max-failures x: expected a number"),
        (["v", "--to", "memmap", "--size", "64"], "--to memmap: expected --size WIDTHxHEIGHT"),
    ],
)
def test_usage_errors_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = vtok("dataset", "encode", *arguments, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_folder_without_a_data_set(tmp_path: Path) -> None:
    for command in ("status", "verify", "retry", "merge"):
        done = vtok("dataset", command, tmp_path)
        assert (done.exit_code, "no data set" in done.stderr) == (5, True)


STUB = """
import os, sys
folder = os.path.dirname(os.path.dirname(__file__))
sys.path.remove(folder)
del sys.modules["av"]
import av
import av.filter, av.logging, av.video.frame
open_file = av.open
def stub(path, *arguments, **options):
    if "crash" in str(path):
        os.abort()
    while "hang" in str(path):
        sum(range(10**8))  # no other Python code runs meanwhile
    return open_file(path, *arguments, **options)
av.open = stub
"""


def bad_inputs(folder: Path) -> dict[str, str]:
    """Make broken files of all kinds; returns ids and a part of the expected message."""
    good = make_video(folder / "good.mp4", 9)
    data = good.read_bytes()
    odd = ("new\nline.mp4", "-dash.mp4", "dot.s.mp4", "ünï.mp4", "\udcff.mp4")
    for name in odd:
        (folder / name).write_bytes(data)
    for name in ("crash.mp4", "hang.mp4"):
        (folder / name).write_bytes(data)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "random.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "half.mp4").write_bytes(data[: len(data) // 2])
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "gone.mp4").symlink_to("nowhere")
    (folder / "circle").symlink_to(folder)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", folder / "sound.mp4")
    return {
        "crash": "the decoder crashed", "hang": "did nothing for", "empty": "empty file",
        "text": "not a video", "random": "not a", "half": "cut short", "loop": "cannot be opened",
        "gone": "no such file", "pipe": "not a regular file", "sound": "audio only",
    }  # fmt: skip


@pytest.mark.slow
def test_bad_videos_fail_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "av").mkdir()
    (tmp_path / "stub" / "av" / "__init__.py").write_text(STUB)
    monkeypatch.syspath_prepend(str(tmp_path / "stub"))
    expected = bad_inputs(tmp_path / "in")
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    done = vtok("dataset", "encode", tmp_path / "in", "-o", tmp_path / "out", "--model", checkpoint,
                "--timeout", "20", "--workers", "3", "--json")  # fmt: skip
    assert done.exit_code == 3
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} == before
    by_id = {row["id"]: row for row in manifest(tmp_path / "out")}
    good = {"good", "new\nline", "-dash", "dot.s", "ünï", "%FF"}
    assert {id_ for id_, row in by_id.items() if row["status"] == "ok"} == good
    assert {row["frames"] for row in by_id.values() if row["status"] == "ok"} == {9}
    assert by_id.keys() - good == expected.keys()
    for id_, words in expected.items():
        assert words in by_id[id_]["message"], id_
        assert by_id[id_]["phase"] in ("decode", "fetch")
        assert "\n" not in by_id[id_]["message"].replace("new\nline", "")
    assert {row["id"] for row in manifest(tmp_path / "out", "errors")} == expected.keys()
    assert {row["id"] for row in rows(done) if "id" in row} == by_id.keys()
    assert outputs(tmp_path / "out").keys() == {
        "good.vtok", "new%0Aline.vtok", "-dash.vtok", "dot.s.vtok", "ünï.vtok", "%25FF.vtok",
    }  # fmt: skip
    make_video(tmp_path / "in" / "text.mp4", 9)
    retried = vtok("dataset", "retry", tmp_path / "out", "--model", checkpoint, "--timeout", "20")
    assert retried.exit_code == 3
    assert "9 of 10 clips failed" in retried.stderr
    assert (tmp_path / "out" / "text.vtok").exists()


def start(folder: Path, videos: Path, checkpoint: Path, to: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "vtok", "dataset", "encode", videos, "-o", folder, "--to", to,
               "--model", checkpoint, "--json", "--shard-size", "5", "--workers", "2"]  # fmt: skip
    return subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": str(Path(package.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def many(folder: Path) -> Path:
    folder.mkdir()
    for number in range(12):
        make_video(folder / f"{number}.mp4", 9 + number)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("to", ["vtok", "tar"])
def test_killed_commands_give_the_same_bytes(checkpoint: Path, tmp_path: Path, to: str) -> None:
    videos = many(tmp_path / "in")
    for clips in (1, 3, 2):
        with start(tmp_path / "killed", videos, checkpoint, to) as process:
            assert process.stdout is not None
            for _ in range(clips):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
    with start(tmp_path / "killed", videos, checkpoint, to) as process:
        out, err = process.communicate()
        assert process.returncode == 0, err
    assert len(out.splitlines()) <= 12 - 6 + 1
    made(videos, checkpoint, tmp_path / "whole", to=to)
    expected = outputs(tmp_path / "whole") if to == "vtok" else members(tmp_path / "whole")
    assert (outputs if to == "vtok" else members)(tmp_path / "killed") == expected


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as shard:
            found |= {info.name: shard.extractfile(info).read() for info in shard}  # type: ignore[union-attr]
    return found


@pytest.mark.slow
def test_interrupt_stops_at_once_and_the_run_can_be_resumed(
    checkpoint: Path, tmp_path: Path
) -> None:
    videos = many(tmp_path / "in")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with start(tmp_path / "out", videos, checkpoint, "npy") as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(number)
            out, err = process.communicate()
            assert process.returncode == code, err
            assert b"Traceback" not in err
            assert len(out.splitlines()) < 6  # running items were not finished
    with start(tmp_path / "out", videos, checkpoint, "npy") as process:
        assert process.wait() == 0
    assert len(outputs(tmp_path / "out")) == 12
