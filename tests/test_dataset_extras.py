"""Sound and times of frames in data sets: recorded, read by PyTorch, and restored by decode."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import tiny_checkpoint, vtok
from datasets import manifest
from safetensors.numpy import load_file
from test_frame_times import BASE, TICKS, seconds, times_of
from test_sound import packets_of
from videos import make_timed_video, make_video

from vtok.codefile.header import LatentFormat, LatentHeader
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.sections import FrameDurations
from vtok.dataset.folder import DatasetFolder, frame_times
from vtok.dataset.options import DatasetOptions
from vtok.errors import OptionError
from vtok.pipeline.array_files import LatentFile
from vtok.pipeline.latents import write_latents
from vtok.pipeline.options import EncodeOptions
from vtok.pipeline.result import CodeChunk

GOLDEN = Path(__file__).parent / "golden" / "v1.vtok"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("to", ["vtok", "tar-vtok"])
def test_sound_is_kept_on_request(to: str, film: Path, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("dataset", "encode", film, "--to", to, "--size", "64x48", "--model", checkpoint)
    for mode in ("none", "copy"):
        done = vtok(
            *arguments, "-o", tmp_path / mode, "-q", *(["--audio", "copy"] * (mode == "copy"))
        )
        assert done.exit_code == 0, done.stderr
    (silent,), (loud,) = manifest(tmp_path / "none"), manifest(tmp_path / "copy")
    assert silent["audio_bytes"] is None
    assert loud["audio_bytes"] == loud["bytes"] - silent["bytes"]
    assert loud["bpp"] == silent["bpp"]
    path = tmp_path / "copy" / loud["output"]
    if to == "tar-vtok":
        with tarfile.open(path) as shard:
            member = shard.extractfile(shard.getnames()[0])
            assert member is not None
            path = tmp_path / "a.vtok"
            path.write_bytes(member.read())
    with path.open("rb") as stream:
        kept = [one.data for block in CodeFileReader(stream).sound() for one in block.packets]
    assert kept == packets_of(film)
    assert "audio" not in DatasetFolder(tmp_path / "none").recipe()
    other = vtok(*arguments, "-o", tmp_path / "copy")
    assert "its codes are made with other options (audio copy -> None)" in other.stderr


@pytest.mark.parametrize("to", ["npy", "safetensors", "tar", "parquet"])
def test_sound_in_arrays_is_refused(to: str) -> None:
    with pytest.raises(OptionError, match="hold no sound"):
        DatasetOptions(to=to, encode=EncodeOptions(audio="copy"))


def test_sound_in_files_of_tokens_is_refused(film: Path, checkpoint: Path) -> None:
    done = vtok("encode", film, "--to", "tokens", "--audio", "copy", "--model", checkpoint)
    assert done.exit_code == 2
    assert done.stderr == ("error: --audio copy: expected none: files of tokens hold no sound\n")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video at a variable rate and one at an even rate, of 60 frames each."""
    folder = tmp_path_factory.mktemp("clips")
    make_timed_video(folder / "uneven.mp4", TICKS, BASE)
    make_video(folder / "even.mp4", 60)
    return folder


@pytest.fixture(scope="module")
def sets(clips: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets of all formats."""
    folder = tmp_path_factory.mktemp("sets")
    for to in FORMATS:
        done = vtok("dataset", "encode", clips, "-o", folder / to, "--to", to, "--size", "64x48",
                    "-q", "--model", checkpoint)  # fmt: skip
        assert done.exit_code == 0, done.stderr
    return folder


SHARDS = {"memmap": "video_0.bin", "parquet": "000000.parquet"}
FORMATS = ("vtok", "npy", "safetensors", "tar", "tar-vtok", "memmap", "parquet")


@pytest.mark.parametrize("to", FORMATS)
def test_manifest_states_the_times_of_frames(to: str, sets: Path) -> None:
    even, uneven = manifest(sets / to)
    assert even["frame_times"] is None
    assert uneven["frame_times"] == {
        "time_base": "1/90000",
        "durations": [*np.diff(TICKS).tolist(), uneven["frame_times"]["durations"][-1]],
    }
    assert frame_times(even) is None
    found = frame_times(uneven)
    assert found is not None
    assert found.dtype == np.float64
    assert found == pytest.approx(seconds(TICKS), abs=1e-9)


@pytest.mark.parametrize("to", FORMATS)
def test_items_decode_with_their_times(
    to: str, sets: Path, checkpoint: Path, tmp_path: Path
) -> None:
    source: list[Any] = [sets / to / f"uneven.{to}"]
    if not source[0].exists():
        source = [sets / to / SHARDS.get(to, "000000.tar"), "--id", "uneven"]
    arguments = ("decode", *source, "--model", checkpoint, "-q", "-o")
    for name, options, expected in (
        ("a.mp4", (), seconds(TICKS)),
        ("b.mp4", ("--start", TICKS[20] / 90_000, "--frames", 7), seconds(TICKS[20:27])),
    ):
        done = vtok(*arguments, tmp_path / name, *options)
        assert done.exit_code == 0, done.stderr
        assert times_of(tmp_path / name) == pytest.approx(expected, abs=1e-3)
    vtok(*arguments, tmp_path / "c.mp4", "--constant-rate")
    assert np.ptp(np.diff(times_of(tmp_path / "c.mp4"))) < 1e-3


@pytest.mark.parametrize("to", ["tar", "memmap"])
def test_shards_of_even_rates_state_no_times(to: str, sets: Path) -> None:
    if to == "memmap":
        items = json.loads((sets / to / "metadata_0.json").read_text())["segments"]
    else:
        with tarfile.open(sets / to / "000000.tar") as shard:
            files = [shard.extractfile(name) for name in shard.getnames() if name.endswith("json")]
            items = [json.load(file) for file in files if file is not None]
    assert [item["id"] for item in items if "frame_times" in item] == ["uneven"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_arrays_with_a_header_keep_the_times(
    suffix: str, clips: Path, checkpoint: Path, tmp_path: Path
) -> None:
    path, model = tmp_path / f"a{suffix}", ("--model", checkpoint)
    assert vtok("encode", clips / "uneven.mp4", "-o", path, *model).exit_code == 0
    tensors = load_file(path) if suffix != ".pt" else torch.load(path, weights_only=True)
    assert np.asarray(tensors["durations"])[:-1].tolist() == np.diff(TICKS).tolist()
    assert vtok("decode", path, "-o", tmp_path / "a.mp4", *model).exit_code == 0
    assert times_of(tmp_path / "a.mp4") == pytest.approx(seconds(TICKS), abs=1e-3)
    assert vtok("encode", clips / "even.mp4", "-o", path, "--overwrite", *model).exit_code == 0
    tensors = load_file(path) if suffix != ".pt" else torch.load(path, weights_only=True)
    assert "durations" not in tensors


def test_y4m_leaves_out_the_times_with_a_note(sets: Path, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("-o", tmp_path / "a.y4m", "--model", checkpoint)
    done = vtok("decode", sets / "npy" / "uneven.npy", *arguments)
    assert "times of frames are left out: y4m has one rate" in done.stderr


BAD = {
    "a": "no time base or durations",
    '{"time_base": "1/0", "durations": [1]}': "a time base of '1/0'",
    '{"time_base": "1e99999999", "durations": [1]}': "a time base of '1e99999999'",
    '{"time_base": "1/9", "durations": [1, 2]}': "durations of 2 frames, not of 60",
    '{"time_base": "1/9", "durations": []}': "durations that are no integers",
    '{"time_base": "1/9", "durations": [[1]]}': "durations that are no integers",
    '{"time_base": "1/9", "durations": [1.5]}': "durations that are no integers",
    '{"time_base": "1/9", "durations": [true]}': "durations that are no integers",
    '{"time_base": "1/9", "durations": [1, 0]}': "durations out of range",
    f'{{"time_base": "1/9", "durations": [{10**18}]}}': "durations out of range",
    f'{{"time_base": "1/9", "durations": [{10**30}]}}': "durations that are no integers",
    f'{{"time_base": "9/1", "durations": [{",".join(["10000000"] * 60)}]}}': "out of range",
}


@pytest.mark.parametrize("stated", BAD)
def test_bad_times_are_refused_in_one_line(
    stated: str, sets: Path, checkpoint: Path, tmp_path: Path
) -> None:
    codes = np.load(sets / "npy" / "uneven.npy")
    np.save(tmp_path / "b.npy", codes)
    facts = {"width": 64, "height": 48, "frames": 60, "fps": "25/1"}
    value = json.loads(stated) if stated.startswith("{") else stated
    (tmp_path / "b.json").write_text(json.dumps({**facts, "frame_times": value}))
    done = vtok("decode", tmp_path / "b.npy", "--model", checkpoint)
    assert done.exit_code == 4
    assert done.stderr.startswith(f"error: {tmp_path / 'b.npy'}: ")
    assert BAD[stated] in done.stderr
    assert done.stderr.count("\n") == 1


def test_latents_keep_the_times(tmp_path: Path) -> None:
    with GOLDEN.open("rb") as stream:
        golden = CodeFileReader(stream).header
    fields = ("model", "source", "transform", "writer")
    grid = golden.format.grid
    layout = LatentFormat(4, "float16", 4, golden.format.spatial_compression, grid)
    common = {name: getattr(golden, name) for name in fields}
    header = LatentHeader(format=layout, num_frames=0, **common)
    durations = FrameDurations(0, BASE, np.array([3000, 1, 7, 9, 2]))
    chunk = CodeChunk(np.ones((1, 4, 2, *grid), np.float16), 5)
    for to in ("safetensors", "pt"):
        with (tmp_path / f"a.{to}").open("wb") as stream:
            write_latents(stream, header, iter([chunk]), to, lambda: durations)
        file = LatentFile(tmp_path / f"a.{to}", "a")
        assert file.read(0, 2).shape == (1, 4, 2, *grid)
        assert FrameDurations.from_json(file.facts["frame_times"]).ticks.tolist() == [
            3000, 1, 7, 9, 2,
        ]  # fmt: skip
