"""evaluate_file and compare_file: real bytes, the frames that a decoder gives, flat memory."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from commands import encode, tiny_checkpoint
from videos import make_video

from vtok.codefile.reader import CodeFileReader
from vtok.errors import InputError, ShapeError, UsageError, VideoError
from vtok.evaluation.compare import compare_file, deltas, write_side_by_side
from vtok.evaluation.evaluate import CARD, EvalOptions, Part, evaluate_file, open_clip, stages_of
from vtok.evaluation.metrics import psnr
from vtok.evaluation.results import ClipResult, CodeUsage, Point, mean_points, total_usage
from vtok.models.load import LoadedTokenizer, load
from vtok.pipeline.codec import CHUNK_STEPS, Decoder, Encoder
from vtok.pipeline.decode import read_codes
from vtok.pipeline.result import ChunkObserver, CodeChunk
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    make_video(folder / "a.mp4", 141)  # two chunks of the tiny model
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedTokenizer:
    return load(tiny_checkpoint(folder), dtype="float32")


@pytest.fixture(scope="module")
def result(folder: Path, model: LoadedTokenizer) -> ClipResult:
    return evaluate_file(folder / "a.mp4", model=model)


def read(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.concatenate(list(reader))


def test_says_what_was_measured(result: ClipResult) -> None:
    assert (result.width, result.height, result.frames, result.fps) == (64, 48, 141, 30)
    assert [point.bits for point in result.points] == [6, 12, 18]  # 1, 2 and all 3 stages
    assert result.encode_fps > 0
    assert all(point.decode_fps > 0 for point in result.points)


@pytest.mark.parametrize("compress", [False, True])
def test_bytes_are_those_of_the_files(folder: Path, model: LoadedTokenizer, compress: bool) -> None:
    options = EvalOptions(metrics=("psnr",), compress=compress)
    result = evaluate_file(folder / "a.mp4", model=model, options=options)
    for stages, point in enumerate(result.points, start=1):
        path = encode(
            folder / "a.mp4",
            folder / f"{stages}{compress}.vtok",
            model,
            num_stages=stages,
            compress=compress,
            overwrite=True,
        )
        assert point.bytes == path.stat().st_size
        assert point.bpp == pytest.approx(8 * point.bytes / (141 * 48 * 64))
        assert point.kbps == pytest.approx(8 * point.bytes / 1000 / 4.7)
        assert point.raw_bpp < point.bpp or compress


def test_quality_is_that_of_the_decoded_video(
    folder: Path, model: LoadedTokenizer, result: ClipResult
) -> None:
    for point, stages in zip(result.points, (1, 2, 3), strict=True):
        path = encode(folder / "a.mp4", folder / "q.vtok", model, num_stages=stages, overwrite=True)
        with path.open("rb") as file:
            chunks = read_codes(CodeFileReader(file))
            decoded = np.concatenate(list(Decoder(model, (48, 64)).decode(chunks)))
        assert point.quality["psnr"] == pytest.approx(psnr(decoded, read(folder / "a.mp4")))


def test_code_files_are_kept_where_asked(
    folder: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    options = EvalOptions(bits=(12,), metrics=("psnr",))
    result = evaluate_file(folder / "a.mp4", model=model, options=options, keep=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["12.vtok"]
    assert (tmp_path / "12.vtok").stat().st_size == result.points[0].bytes
    with (tmp_path / "12.vtok").open("rb") as file:
        chunks = list(CodeFileReader(file))
    usage = CodeUsage(64)
    for chunk in chunks:
        usage.add(chunk.codes[1])
    assert np.array_equal(result.usage[1].counts, usage.counts)
    assert len(result.usage) == 2


def test_parts(folder: Path, model: LoadedTokenizer) -> None:
    options = EvalOptions(Part(frames=10, size="32", start_seconds=0.5), metrics=("psnr",))
    result = evaluate_file(folder / "a.mp4", model=model, options=options)
    assert (result.width, result.height, result.frames) == (42, 32, 10)
    with open_clip(folder / "a.mp4", Part(frames=3, start_seconds=0.5)) as clip:
        shown = np.concatenate(list(clip))
    assert np.array_equal(shown, read(folder / "a.mp4")[15:18])


def test_the_cards_part(tmp_path: Path) -> None:
    make_video(tmp_path / "large.mp4", 2, width=800, height=400)
    make_video(tmp_path / "small.mp4", 40, width=70, height=90)
    with open_clip(tmp_path / "large.mp4", CARD) as clip:
        assert (clip.width, clip.height) == (256, 256)
        (frames,) = clip
    with VideoReader(tmp_path / "large.mp4", size=(768, 384)) as reader:
        (whole,) = reader
    assert np.array_equal(frames, whole[:, 64:320, 256:512])
    with open_clip(tmp_path / "small.mp4", CARD) as clip:  # not enlarged
        assert (clip.width, clip.height, clip.expected) == (64, 80, 33)
        assert sum(map(len, clip)) == 33


def test_rates_that_a_model_has(model: LoadedTokenizer) -> None:
    assert stages_of(model, EvalOptions()) == {6: 1, 12: 2, 18: 3}
    assert stages_of(model, EvalOptions(bits=(18, 6, 6))) == {6: 1, 18: 3}
    for bits in ((7,), (24,), (0,)):
        with pytest.raises(UsageError, match=f"bits={bits[0]}: expected one of 6, 12, 18"):
            stages_of(model, EvalOptions(bits=bits))


def test_bad_clips(folder: Path, model: LoadedTokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    make_video(tmp_path / "flat.mp4", 3, width=64, height=10)
    with pytest.raises(InputError, match="no such file"):
        evaluate_file(tmp_path / "missing.mp4", model=model)
    with pytest.raises(VideoError):
        evaluate_file(tmp_path / "text.mp4", model=model)
    with pytest.raises(ShapeError, match=r"flat.mp4: frames of 64x10: SSIM needs 11"):
        evaluate_file(tmp_path / "flat.mp4", model=model)
    with pytest.raises(VideoError, match="too small to crop"):
        evaluate_file(tmp_path / "flat.mp4", model=model, options=EvalOptions(CARD))


def test_chunk_observers_hold_the_frames_of_one_chunk(model: LoadedTokenizer) -> None:
    class Longest(ChunkObserver):
        most = shown = 0

        def on_pair(self, chunk: CodeChunk, frames: Frames) -> CodeChunk:
            self.most = max(self.most, len(frames) + sum(map(len, self._held)))
            self.shown += len(frames)
            return chunk

    frames, observer = np.zeros((300, 48, 64, 3), np.uint8), Longest()
    encoder = Encoder(model, 1, observers=[observer], pipelined=False)
    assert sum(1 for _ in encoder.encode(np.split(frames, 30))) == 3
    assert observer.shown == 300
    assert observer.most <= 4 * CHUNK_STEPS + 10  # a chunk, and a batch that was prefetched


def test_one_frame(folder: Path, model: LoadedTokenizer) -> None:
    result = evaluate_file(folder / "a.mp4", model=model, options=EvalOptions(Part(frames=1)))
    quality = result.points[0].quality
    assert quality["flicker"] is None
    assert quality["psnr"] > 0


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"size": "x"}, {"start_seconds": -1}, {"timeout_seconds": 0}]
)
def test_parts_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Part(**wrong)


def test_means(result: ClipResult) -> None:
    first = result.points[0]
    other = replace(
        first, bytes=first.bytes + 10, quality={**first.quality, "psnr": 50.0, "ssim": None}
    )
    second = replace(result, points=(other,))
    (mean,) = mean_points([result, second])  # what both have
    assert mean.bytes == first.bytes + 5
    assert mean.quality["psnr"] == pytest.approx((first.quality["psnr"] + 50) / 2)
    assert mean.quality["ssim"] is None  # one clip lacks it
    total = total_usage([result, result])
    assert [one.codes for one in total] == [2 * one.codes for one in result.usage]
    assert total[0].perplexity == pytest.approx(result.usage[0].perplexity)


def test_deltas_are_of_metrics_that_rise() -> None:
    def point(coder: str, bits: int, bpp: float, psnr: float) -> Point:
        quality = {"psnr": psnr, "ssim": None, "flicker": 1 / psnr}
        return Point(coder, "", bits, 1, bpp, None, 1.0, quality)

    points = [
        *(point("vtok", 9, 0.1, 20), point("vtok", 18, 0.2, 24)),
        *(point("x264", 9, 0.1, 23), point("x264", 18, 0.2, 27)),
    ]
    (delta,) = deltas(points)
    assert (delta.codec, delta.metric) == ("x264", "psnr")
    assert delta.quality == pytest.approx(-3)
    assert delta.rate == pytest.approx(100 * (2**0.75 - 1))  # 3 dB at 4 dB a doubling


def test_codecs_are_matched_to_the_bytes(
    folder: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    options = EvalOptions(Part(frames=12), bits=(12, 18), metrics=("psnr",))
    source = folder / "a.mp4"
    with compare_file(source, model=model, codecs=["x264"], options=options) as comparison:
        ours, theirs = comparison.result.of("vtok"), comparison.result.of("x264")
        for one, other in zip(ours, theirs, strict=True):
            stream = comparison.streams["x264"][other.bits]
            assert other.bytes == stream.stat().st_size
            assert other.bpp == pytest.approx(8 * other.bytes / (12 * 48 * 64))
            assert other.setting.startswith("crf ")
            assert other.bits == one.bits
        write_side_by_side(tmp_path / "s.mp4", comparison, bits=18)
        with pytest.raises(UsageError, match="show=6"):
            write_side_by_side(tmp_path / "t.mp4", comparison, bits=6)
        kept = comparison.folder
    assert not kept.exists()
    assert not (tmp_path / "t.mp4").exists()
    with VideoReader(tmp_path / "s.mp4") as reader:
        sheets = np.concatenate(list(reader))
        assert reader.output_fps == Fraction(30)
    assert len(sheets) == 12
    # three tiles of five times 64x48 in a row, margins of 6 between them, words below
    original = sheets[:, 6 : 6 + 240, 6 : 6 + 320]
    expected = read(source)[:12].repeat(5, 1).repeat(5, 2)
    assert psnr(np.ascontiguousarray(original), expected) > 28
    assert sheets.shape[1] % 2 == sheets.shape[2] % 2 == 0


@pytest.mark.parametrize("more", [{}, {"hysteresis": 0.2}])
def test_progress(folder: Path, model: LoadedTokenizer, more: dict) -> None:
    """It rises within a chunk, over the encoding and all rates, up to the number of frames."""
    seen: list[tuple[int, int | None]] = []
    options = EvalOptions(Part(frames=40), (6, 18), ("psnr",), **more)
    evaluate_file(
        folder / "a.mp4", model=model, options=options, progress=lambda *pair: seen.append(pair)
    )
    done = [frames for frames, _ in seen]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert seen[-1] == (40, 40)
