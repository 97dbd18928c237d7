"""encode_file and decode_file end to end: exact, deterministic, in bounded memory."""

import errno
import io
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from codefiles import load_tiny
from commands import encode, tiny_checkpoint, tiny_model
from safetensors import safe_open
from videos import make_video

import vtok as package
from vtok.codefile.header import Header
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import CodeFileError, InputError, OutputError, UsageError, VideoError, VtokError
from vtok.models.load import LoadedTokenizer, ModelCache
from vtok.pipeline.codec import CHUNK_STEPS, RATE_STEPS, Decoder, clip_to_frames, frames_to_clip
from vtok.pipeline.decode import check_model, decode_file
from vtok.pipeline.encode import encode_file
from vtok.pipeline.options import DecodeOptions, EncodeOptions, choose_stages
from vtok.video.reader import VideoReader, probe

FULL_COLOUR = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-pix_fmt", "yuv444p")
UNEVEN = (*FULL_COLOUR, "-vf", "settb=1/1000,setpts='(N*40+floor(N/5)*200)'")
UNEVEN += ("-fps_mode", "passthrough")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 frames: three chunks, the last one shorter."""
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", 70)


def read_codes(path: Path) -> npt.NDArray[np.int64]:
    """All codes of a file, [stages, codebooks, t, h, w]."""
    with path.open("rb") as stream:
        return np.concatenate([chunk.codes for chunk in CodeFileReader(stream)], axis=2)


def read_header(path: Path) -> Header:
    with path.open("rb") as stream:
        return CodeFileReader(stream).header


def read_frames(path: Path) -> npt.NDArray[np.uint8]:
    with VideoReader(path) as reader:
        return np.concatenate(list(reader))


def decode(source: Path, output: Path, model: LoadedTokenizer, **options: Any) -> Path:
    decode_file(source, output, model=ModelCache(model.info.path), options=DecodeOptions(**options))
    return output


@pytest.mark.parametrize(
    ("frames", "width", "height", "fps", "arguments"),
    [
        (10, 64, 48, "30", FULL_COLOUR),
        (9, 63, 47, "30000/1001", FULL_COLOUR),
        (1, 33, 65, "25", FULL_COLOUR),
        (2, 5, 3, "12.5", FULL_COLOUR),
        (20, 64, 48, "25", UNEVEN),
        (33, 50, 38, "24000/1001", FULL_COLOUR),
    ],
)
def test_decoding_restores_size_rate_and_frame_count(
    tmp_path: Path,
    model: LoadedTokenizer,
    frames: int,
    width: int,
    height: int,
    fps: str,
    arguments: tuple[str, ...],
) -> None:
    source = make_video(
        tmp_path / "a.mp4", frames, width=width, height=height, fps=fps, arguments=arguments
    )
    before = probe(source)
    assert before.variable_frame_rate == (arguments is UNEVEN)
    after = probe(decode(encode(source, tmp_path / "a.vtok", model), tmp_path / "b.mp4", model))
    assert (after.width, after.height, after.num_frames) == (width, height, frames)
    assert after.fps == before.fps
    if arguments is not UNEVEN:
        assert after.fps == Fraction(fps)


def test_chunk_steps(tmp_path: Path, model: LoadedTokenizer, video: Path) -> None:
    """Chunks are long, but short where the stages of each are chosen."""
    plain = read_header(encode(video, tmp_path / "a.vtok", model))
    chosen = read_header(encode(video, tmp_path / "b.vtok", model, max_bpp=4.0))
    assert plain.format.chunk_steps == CHUNK_STEPS
    assert chosen.format.chunk_steps == RATE_STEPS


@pytest.mark.usefixtures("short_chunks")
def test_chunk_codes_equal_whole_clip_codes(
    tmp_path: Path, model: LoadedTokenizer, video: Path
) -> None:
    path = encode(video, tmp_path / "a.vtok", model)
    with path.open("rb") as stream:
        entries = CodeFileReader(stream).chunks
    # the first frame is a step of its own
    assert [entry.num_frames for entry in entries] == [29, 32, 9]
    clip = frames_to_clip(read_frames(video), model)
    with torch.inference_mode():
        whole = model.tokenizer.encode(clip, quantize=True)
    np.testing.assert_array_equal(read_codes(path)[:, 0], whole[0].numpy())


@pytest.mark.usefixtures("short_chunks")
def test_chunk_frames_equal_whole_clip_frames(
    tmp_path: Path, model: LoadedTokenizer, video: Path
) -> None:
    path = encode(video, tmp_path / "a.vtok", model)
    codes = torch.from_numpy(read_codes(path)[:, 0])[None]
    with torch.inference_mode():
        whole = model.tokenizer.decode(codes, size=(48, 64), num_frames=70)
    with path.open("rb") as stream:
        parts = np.concatenate(list(Decoder(model, (48, 64)).decode(CodeFileReader(stream))))
    difference = parts.astype(int) - clip_to_frames(whole)
    assert parts.shape == (70, 48, 64, 3)
    assert np.abs(difference).max() <= 1  # rounding: sums in another order
    assert (difference != 0).mean() < 1e-3


def test_frames_to_clip_round_trip(model: LoadedTokenizer) -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    clip = frames_to_clip(frames, model)
    assert clip.shape == (1, 3, 1, 16, 16)
    assert (clip.min(), clip.max()) == (-1, 1)
    np.testing.assert_array_equal(clip_to_frames(clip), frames)


@pytest.mark.parametrize("stages", [1, 2])
def test_num_stages_keeps_the_first_stages(
    tmp_path: Path, model: LoadedTokenizer, video: Path, stages: int
) -> None:
    every = read_codes(encode(video, tmp_path / "all.vtok", model))
    some = read_codes(encode(video, tmp_path / "some.vtok", model, num_stages=stages))
    bits = read_codes(encode(video, tmp_path / "bits.vtok", model, num_bits=6 * stages))
    np.testing.assert_array_equal(some, every[:stages])
    np.testing.assert_array_equal(bits, some)


def test_second_pass_is_left_out_for_few_stages(tmp_path: Path, video: Path) -> None:
    model = load_tiny(tmp_path, "second_pass")
    clip = frames_to_clip(read_frames(video), model)
    for stages in (1, 2, 3):
        path = encode(video, tmp_path / f"{stages}.vtok", model, num_stages=stages)
        with torch.inference_mode():
            whole = model.tokenizer.encode(clip, quantize=True, num_stages=stages)
        np.testing.assert_array_equal(read_codes(path)[:, 0], whole.view(stages, *whole.shape[-3:]))
    first, second, both = (read_codes(tmp_path / f"{stages}.vtok") for stages in (1, 2, 3))
    np.testing.assert_array_equal(both[:2], second)
    assert (both[:1] != first).mean() > 0.05


def test_dropping_stages_before_or_after_gives_equal_video(
    tmp_path: Path, model: LoadedTokenizer, video: Path
) -> None:
    every = encode(video, tmp_path / "all.vtok", model)
    one = encode(video, tmp_path / "one.vtok", model, num_stages=1)
    cut = decode(every, tmp_path / "all.mp4", model, num_stages=1, crf=0)
    whole = decode(one, tmp_path / "one.mp4", model, crf=0)
    np.testing.assert_array_equal(read_frames(cut), read_frames(whole))


def test_arrays_equal_code_file(tmp_path: Path, model: LoadedTokenizer, video: Path) -> None:
    codes = read_codes(encode(video, tmp_path / "a.vtok", model))[:, 0]
    array = np.load(encode(video, tmp_path / "a.npy", model, to="npy"))
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array, codes)
    tensors = encode(video, tmp_path / "a.safetensors", model, to="safetensors")
    with safe_open(tensors, framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("codes"), codes)
        header = Header.from_json(file.metadata()["vtok"].encode())
    assert header == read_header(tmp_path / "a.vtok")
    one = np.load(encode(video, tmp_path / "one.npy", model, to="npy", num_stages=1))
    np.testing.assert_array_equal(one, codes[0])  # [t, h, w]


@pytest.mark.parametrize("to", ["vtok", "npy", "safetensors"])
def test_output_bytes_are_deterministic(
    tmp_path: Path, model: LoadedTokenizer, video: Path, to: str
) -> None:
    first = encode(video, tmp_path / "first", model, to=to)
    second = encode(video, tmp_path / "second", model, to=to)
    assert first.read_bytes() == second.read_bytes()


def test_size_rate_and_part_options(tmp_path: Path, model: LoadedTokenizer, video: Path) -> None:
    path = encode(
        video,
        *(tmp_path / "a.vtok", model),
        size="32x20",
        fps=Fraction(10),
        start_seconds=0.5,
        duration_seconds=1.2,
    )
    header = read_header(path)
    assert (header.transform.start, header.transform.duration) == (Fraction(1, 2), Fraction(6, 5))
    assert (header.source.width, header.source.num_frames) == (64, 70)
    info = probe(decode(path, tmp_path / "a.mp4", model))
    assert (info.width, info.height, info.fps, info.num_frames) == (32, 20, 10, 12)


def test_progress_and_result_count_frames(
    tmp_path: Path, model: LoadedTokenizer, video: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    path = tmp_path / "a.vtok"
    result = encode_file(video, path, model=model, progress=lambda *pair: seen.append(pair))
    assert seen == [(29, 70), (61, 70), (70, 70)]
    assert (result.frames, result.code_shape) == (70, (3, 19, 12, 16))
    assert result.bytes == path.stat().st_size
    assert result.bpp == pytest.approx(8 * result.bytes / (70 * 48 * 64))
    assert result.raw_bpp == pytest.approx(6 * 3 * 19 * 12 * 16 / (70 * 48 * 64))
    seen.clear()
    models = ModelCache(model.info.path)
    back = decode_file(
        path, tmp_path / "b.mp4", model=models, progress=lambda *pair: seen.append(pair)
    )
    assert seen == [(29, 70), (61, 70), (70, 70)]
    assert (back.frames, back.code_shape, back.bytes) == (70, (3, 19, 12, 16), result.bytes)


def test_other_weights_are_refused(tmp_path: Path, model: LoadedTokenizer, video: Path) -> None:
    path = encode(video, tmp_path / "a.vtok", model, duration_seconds=0.1)
    other = ModelCache(tiny_checkpoint(tmp_path, "other", seed=1))
    with pytest.raises(
        CodeFileError,
        match=r"^.*a\.vtok: made with the model tiny \(weights [0-9a-f]{12}\), not with other "
        r"\(weights [0-9a-f]{12}\): give the former as `model`$",
    ):
        decode_file(path, tmp_path / "b.mp4", model=other)
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize(
    "change",
    [{"codebook_size": 128}, {"num_codebooks": 2}, {"temporal_compression": 8}, {"num_stages": 4}],
)
def test_other_code_layout_is_refused(
    tmp_path: Path, model: LoadedTokenizer, video: Path, change: dict[str, int]
) -> None:
    header = read_header(encode(video, tmp_path / "a.vtok", model, duration_seconds=0.1))
    check_model(header, model, "a.vtok")
    wrong = replace(header, format=replace(header.format, **change))
    with pytest.raises(CodeFileError, match=r"^a\.vtok: its codes are not laid out as those of ti"):
        check_model(wrong, model, "a.vtok")
    weights = replace(header, model=replace(header.model, config_sha256="0" * 64))
    with pytest.raises(CodeFileError, match="made with the model tiny"):
        check_model(weights, model, "a.vtok")


@pytest.mark.usefixtures("short_chunks")
def test_truncated_file_is_refused_or_salvaged(
    tmp_path: Path, model: LoadedTokenizer, video: Path
) -> None:
    path = encode(video, tmp_path / "a.vtok", model)
    with path.open("rb") as stream:
        third = CodeFileReader(stream).chunks[2].offset
    path.write_bytes(path.read_bytes()[: third + 9])
    with pytest.raises(CodeFileError, match=r"2 chunks, 61 frames; salvage reads"):
        decode(path, tmp_path / "b.mp4", model)
    assert not (tmp_path / "b.mp4").exists()
    result = decode_file(
        path,
        tmp_path / "b.mp4",
        model=ModelCache(model.info.path),
        options=DecodeOptions(salvage=True),
    )
    assert result.frames == 61
    assert result.lost is not None
    assert probe(tmp_path / "b.mp4").num_frames == 61


def test_empty_file_is_refused(tmp_path: Path, model: LoadedTokenizer, video: Path) -> None:
    header = read_header(encode(video, tmp_path / "a.vtok", model, duration_seconds=0.1))
    empty = io.BytesIO()
    with CodeFileWriter(empty, header):
        pass
    empty.seek(0)
    with pytest.raises(VtokError, match="no frame"):
        decode_file(empty, tmp_path / "b.mp4", model=ModelCache(model.info.path))
    assert not (tmp_path / "b.mp4").exists()


def test_binary_streams(tmp_path: Path, model: LoadedTokenizer, video: Path) -> None:
    out = io.BytesIO()
    encode_file(io.BytesIO(video.read_bytes()), out, model=model)
    out.seek(0)
    codes = np.concatenate([chunk.codes for chunk in CodeFileReader(out)], axis=2)
    np.testing.assert_array_equal(codes, read_codes(encode(video, tmp_path / "a.vtok", model)))
    assert not out.closed


class FullDisk(io.BytesIO):
    """A stream that takes no more."""

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class ClosedPipe(io.BytesIO):
    """A stream that nobody reads."""

    def write(self, data: Any) -> int:
        raise BrokenPipeError


def test_failing_stream_gives_reason(model: LoadedTokenizer, video: Path) -> None:
    with pytest.raises(OutputError, match=r"^standard output: cannot be written \(No space left"):
        encode_file(video, FullDisk(), model=model)
    with pytest.raises(BrokenPipeError):
        encode_file(video, ClosedPipe(), model=model)


def test_failure_leaves_no_files(tmp_path: Path, model: LoadedTokenizer, video: Path) -> None:
    arguments = (*FULL_COLOUR, "-movflags", "+faststart")  # the index lies before the frames
    cut = make_video(tmp_path / "cut.mp4", 100, arguments=arguments)
    os.truncate(cut, cut.stat().st_size * 3 // 4)
    before = set(tmp_path.iterdir())

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    for to in ("vtok", "npy"):
        with pytest.raises(KeyboardInterrupt):
            encode_file(
                video,
                tmp_path / "x",
                model=model,
                options=EncodeOptions(to=to),
                progress=interrupt,
            )
    with pytest.raises(VideoError, match=r"cut\.mp4: damaged or cut short: [0-9]+ frames could"):
        encode(cut, tmp_path / "x", model)
    with pytest.raises(InputError, match=r"missing\.mp4: no such file"):
        encode(tmp_path / "missing.mp4", tmp_path / "x", model)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("stages", "bits", "expected"),
    [(None, None, 3), (2, None, 2), (None, 6, 1), (None, 17, 2), (None, 18, 3), (None, 999, 3)],
)
def test_choose_stages(stages: int | None, bits: int | None, expected: int) -> None:
    assert choose_stages(stages, bits, available=3, bits_per_stage=6) == expected


@pytest.mark.parametrize(
    ("stages", "bits", "message"),
    [
        (0, None, "^num_stages=0: expected 1 to 3$"),
        (4, None, "^num_stages=4: expected 1 to 3$"),
        (None, 5, "^num_bits=5: expected 6 or more, one stage$"),
        (1, 6, "^`num_stages` and `num_bits` set the same thing"),
    ],
)
def test_unavailable_stages_are_refused(stages: int | None, bits: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_stages(stages, bits, available=3, bits_per_stage=6)


PEAK = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from vtok.pipeline.decode import decode_file
from vtok.pipeline.encode import encode_file
from vtok.models.load import ModelCache, load
video, checkpoint = map(Path, sys.argv[1:])
codes = video.with_suffix(".vtok")
encode_file(video, codes, model=load(checkpoint))
decode_file(codes, video.with_suffix(".mkv"), model=ModelCache(checkpoint))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path, model: LoadedTokenizer) -> None:
    def peak(frames: int) -> int:
        source = make_video(tmp_path / f"{frames}.mp4", frames, width=128, height=96)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, source, model.info.path],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(Path(package.__file__).parent.parent)},
        )
        return int(done.stdout)

    assert peak(1500) < 1.05 * peak(150)
