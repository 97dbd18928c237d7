"""Rate control: limits are kept, and static scenes take the fewest stages."""

import io
from pathlib import Path

import numpy as np
import pytest
from commands import rows, vtok
from videos import LOSSLESS, barcode_frames, run_ffmpeg

from vtok.codefile.reader import CodeFileReader
from vtok.errors import UsageError
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.codec import Decoder
from vtok.pipeline.decode import read_codes
from vtok.pipeline.edit import cut_file
from vtok.pipeline.encode import encode_file
from vtok.pipeline.inspect import is_encoded
from vtok.pipeline.options import CutOptions, EncodeOptions
from vtok.pipeline.rate import psnr_per_frame
from vtok.video.reader import VideoReader

FRAMES = 70  # in chunks of 29, 32 and 9


# files without a rate have chunks as with one
pytestmark = pytest.mark.usefixtures("short_chunks")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey and still at first, then pictures that change."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    frames = barcode_frames(range(FRAMES), 48, 32)
    frames[:40] = 128
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x32", "-r", "25")
    run_ffmpeg(*source, "-i", "-", *LOSSLESS, path, data=frames.tobytes())
    return path


def encode(video: Path, model: LoadedTokenizer, **options: float) -> tuple[bytes, dict]:
    out = io.BytesIO()
    result = encode_file(video, out, model=model, options=EncodeOptions(**options))
    assert result.bytes == len(out.getvalue())
    return out.getvalue(), result.to_json()


def stages(data: bytes) -> list[int]:
    return [len(chunk.codes) for chunk in CodeFileReader(io.BytesIO(data))]


def quality(data: bytes, video: Path, model: LoadedTokenizer) -> list[float]:
    """PSNR of each frame of a file."""
    reader = CodeFileReader(io.BytesIO(data))
    shown = np.concatenate(list(Decoder(model, (32, 48)).decode(read_codes(reader))))
    with VideoReader(video) as frames:
        return list(psnr_per_frame(shown, np.concatenate(list(frames))))


def by_chunk(values: list[float]) -> list[float]:
    return [float(np.mean(values[a:b])) for a, b in ((0, 29), (29, 61), (61, 70))]


def test_min_psnr_uses_fewest_stages(video: Path, model: LoadedTokenizer) -> None:
    """Against decodes of whole files with every choice for one chunk, the others fixed."""
    every, _ = encode(video, model)
    alone = [by_chunk(quality(encode(video, model, num_stages=k)[0], video, model)) for k in (1, 2)]
    target = (alone[0][0] + alone[1][0]) / 2  # between one stage and two of the first chunk
    data, row = encode(video, model, min_psnr=target)
    found = quality(data, video, model)
    chosen = stages(data)
    reader = CodeFileReader(io.BytesIO(data))
    assert reader.version == (1, 1)
    assert reader.header.metadata == {"rate": f"min-psnr {target:g}"}
    for ours, theirs in zip(reader, CodeFileReader(io.BytesIO(every)), strict=True):
        np.testing.assert_array_equal(ours.codes, theirs.codes[: len(ours.codes)])
    for count, decibels in zip(chosen, by_chunk(found), strict=True):
        assert decibels >= target or count == 3
    assert chosen[0] == (2 if alone[1][0] > alone[0][0] else 1)
    assert row["psnr"] == pytest.approx(np.mean(found), abs=2e-3)
    assert sum(row["chunk_stages"].values()) == 3
    assert row["codes"] == sum(chunk.codes.size for chunk in CodeFileReader(io.BytesIO(data)))


@pytest.mark.parametrize(("target", "expected"), [(0.1, [1, 1, 1]), (99, [3, 3, 3])])
def test_min_psnr_always_or_never_reached(
    video: Path, model: LoadedTokenizer, target: float, expected: list[int]
) -> None:
    data, row = encode(video, model, min_psnr=target)
    assert stages(data) == expected
    assert row["chunk_stages"] == {str(expected[0]): 3}
    if expected[0] == 3:  # no other codes than without a rate
        every = CodeFileReader(io.BytesIO(encode(video, model)[0]))
        for ours, theirs in zip(CodeFileReader(io.BytesIO(data)), every, strict=True):
            np.testing.assert_array_equal(ours.codes, theirs.codes)


def test_max_bpp(video: Path, model: LoadedTokenizer) -> None:
    sizes = [8 * len(encode(video, model, num_stages=k)[0]) / (FRAMES * 48 * 32) for k in (1, 3)]
    for share in (0.5, 0.8, 3):
        limit = sizes[0] + share * (sizes[1] - sizes[0])
        data, row = encode(video, model, max_bpp=limit)
        assert row["bpp"] <= limit
        assert row["psnr"] is None
        chosen = stages(data)
        assert sum(chosen) > 3 if share < 1 else chosen == [3, 3, 3]
    both, row = encode(video, model, max_bpp=limit, min_psnr=0.1)
    assert stages(both) == [1, 1, 1]
    assert row["psnr"] is not None
    with pytest.raises(UsageError, match=r"^max_bpp=0.01: expected at least [0-9.]+, the bits"):
        encode(video, model, max_bpp=0.01)


def test_cut_keeps_stages_of_chunks(video: Path, model: LoadedTokenizer) -> None:
    sizes = [8 * len(encode(video, model, num_stages=k)[0]) / (FRAMES * 48 * 32) for k in (1, 3)]
    data, _ = encode(video, model, max_bpp=sum(sizes) / 2)
    out = io.BytesIO()
    cut_file(io.BytesIO(data), out, options=CutOptions(num_stages=2))
    assert stages(out.getvalue()) == [min(2, count) for count in stages(data)]


def test_command_options(tmp_path: Path, video: Path, model: LoadedTokenizer) -> None:
    out, checkpoint = tmp_path / "a.vtok", model.info.path
    arguments = ["encode", video, "-o", out, "--model", checkpoint, "--json"]
    (row,) = rows(vtok(*arguments, "--min-psnr", 0.1, "--bits", 12))
    assert row["chunk_stages"] == {"1": 3}
    assert is_encoded(out, video, model, EncodeOptions(min_psnr=0.1, num_bits=12))
    assert not is_encoded(out, video, model, EncodeOptions(num_bits=12))
    said = vtok("encode", video, "-o", out, "--model", checkpoint, "--overwrite", "--min-psnr", 1)
    assert " dB, " in said.stderr
    (facts,) = rows(vtok("info", out, "--json"))
    assert facts["chunk_bytes"]["least"] <= facts["chunk_bytes"]["mean"]
    assert (facts["rate"], facts["chunk_stages"]) == ("min-psnr 1", {"1": 3})
    for options, message in (
        (["--min-psnr", -1], "error: --min-psnr -1: expected a number above 0\n"),
        (["--max-bpp", 0], "error: --max-bpp 0: expected a number above 0\n"),
        (
            ["--to", "npy", "--max-bpp", 1],
            "error: --to npy: expected vtok: an array has the same",
        ),
    ):
        result = vtok(*arguments[:4], *options, "--model", checkpoint, "--overwrite")
        assert result.exit_code == 2
        assert result.stderr.startswith(message)


def test_compression_keeps_codes(video: Path, model: LoadedTokenizer) -> None:
    packed, _ = encode(video, model, compress=False)
    coded, row = encode(video, model)
    assert len(coded) < 0.9 * len(packed)
    assert row["bytes"] == len(coded)
    for ours, theirs in zip(*(CodeFileReader(io.BytesIO(d)) for d in (coded, packed)), strict=True):
        assert np.array_equal(ours.codes, theirs.codes)
    most = 8 * len(coded) / (FRAMES * 48 * 32)
    spent = [sum(stages(encode(video, model, compress=c, max_bpp=most)[0])) for c in (True, False)]
    assert spent[0] > spent[1]  # what is saved buys stages
