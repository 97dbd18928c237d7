"""The streaming quality meter, VMAF against ffmpeg, and code usage."""

import math
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from test_similarity import noisy, smooth

import vtok.evaluation.metrics
from vtok.errors import ShapeError, UsageError
from vtok.evaluation.metrics import (
    METRICS,
    QualityMeter,
    Vmaf,
    check_metrics,
    psnr,
    similarities_per_frame,
)
from vtok.evaluation.results import CodeUsage


def measure(frames: np.ndarray, reference: np.ndarray, batch: int = 100, metrics=None) -> dict:
    height, width = frames.shape[1:3]
    with QualityMeter(width, height, metrics) as meter:
        for k in range(0, len(frames), batch):
            meter.add(frames[k : k + batch], reference[k : k + batch])
        return meter.finish()


def test_metrics_are_means_over_frames() -> None:
    reference = smooth(40, 64, 5)
    frames = noisy(reference)
    quality = measure(frames, reference)
    assert set(quality) == set(METRICS)
    assert quality["psnr"] == pytest.approx(psnr(frames, reference))
    single, _ = similarities_per_frame(frames, reference, multi_scale=False)
    assert quality["ssim"] == pytest.approx(single.mean())


def test_result_does_not_depend_on_batches() -> None:
    reference = smooth(40, 64, 5)
    frames = noisy(reference)
    whole = measure(frames, reference)
    for batch in (1, 2):
        parts = measure(frames, reference, batch)
        assert {k: v for k, v in parts.items() if v} == pytest.approx(
            {k: v for k, v in whole.items() if v}
        )


def test_flicker_is_the_change_of_the_error() -> None:
    reference = np.full((4, 12, 12, 3), 100, np.uint8)
    reference[2] = 200  # motion of the original is not flicker
    frames = reference + np.uint8(7)  # a constant error is not flicker
    assert measure(frames, reference, 2, ("flicker",)) == {"flicker": 0.0}
    frames[3] -= np.uint8(10)  # 7, 7, 7, -3: changes of 0, 0 and 10
    assert measure(frames, reference, 3, ("flicker",))["flicker"] == pytest.approx(10 / 3)


def test_metrics_of_small_or_short_clips_are_none() -> None:
    frame = smooth(16, 16, 1)
    quality = measure(frame, frame)
    assert (quality["psnr"], quality["ssim"]) == (100.0, pytest.approx(1))
    assert quality["flicker"] is quality["ms_ssim"] is quality["vmaf"] is None


def test_small_frames_raise_only_if_ssim_is_measured() -> None:
    with pytest.raises(ShapeError, match="SSIM needs 11 pixels"):
        QualityMeter(10, 64)
    tiny = smooth(4, 4, 2)
    assert measure(tiny, tiny, metrics=("psnr", "flicker")) == {"psnr": 100.0, "flicker": 0.0}


def test_unknown_metrics_raise() -> None:
    assert check_metrics(["ssim", "psnr"]) == ("psnr", "ssim")
    for names in (["lpips"], []):
        with pytest.raises(UsageError, match="expected some of psnr, ssim"):
            check_metrics(names)


def test_vmaf_without_libvmaf_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtok.evaluation.metrics, "has_vmaf", lambda: False)
    assert check_metrics(None) == ("psnr", "ssim", "ms_ssim", "flicker")
    with pytest.raises(UsageError, match="no libvmaf"):
        check_metrics(["vmaf"])


@pytest.mark.parametrize(("height", "width"), [(64, 96), (49, 65)])
def test_vmaf_matches_ffmpeg_on_files(tmp_path: Path, height: int, width: int) -> None:
    reference = smooth(height, width, 4)
    frames = noisy(reference, 25)
    inputs = []
    for name, data in (("a", frames), ("b", reference)):
        (tmp_path / name).write_bytes(data.tobytes())
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        inputs += [*raw, "-i", tmp_path / name]
    luma = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd,format=yuv444p"
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *inputs, "-f", "null", "-lavfi",
         f"[0]{luma}[x];[1]{luma}[y];[x][y]libvmaf", "-"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    theirs = float(re.findall(r"VMAF score: ([\d.]+)", done.stderr)[-1])
    assert 1 < theirs < 99
    assert measure(frames, reference, 3, ("vmaf",))["vmaf"] == pytest.approx(theirs, abs=0.05)


def test_meter_stops_its_process_on_an_error() -> None:
    with pytest.raises(RuntimeError), QualityMeter(64, 64, ("vmaf",)) as meter:
        raise RuntimeError
    process = meter._vmaf._process
    assert process.poll() is not None
    vmaf = Vmaf(64, 64)
    vmaf.close()
    vmaf.close()


def test_code_usage_of_known_codes() -> None:
    usage = CodeUsage(8)
    assert (usage.codes, usage.used, usage.perplexity) == (0, 0, 0)
    usage.add(np.array([[1, 1], [5, 5]]))
    assert (usage.codes, usage.used, usage.perplexity) == (4, 0.25, 2)
    usage.add(np.array([5, 7]))  # 2, 3 and 1 of 6
    entropy = -sum(n / 6 * math.log2(n / 6) for n in (2, 3, 1))
    assert usage.used == 3 / 8
    assert usage.perplexity == pytest.approx(2**entropy)


def test_code_usage_sums_without_changing_its_operands() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**20, 1000)
    parts = [CodeUsage(2**20), CodeUsage(2**20)]
    whole = CodeUsage(2**20)
    whole.add(codes)
    parts[0].add(codes[:300])
    parts[1].add(codes[300:])
    total = parts[0] + parts[1]
    assert np.array_equal(total.entries, whole.entries)
    assert np.array_equal(total.counts, whole.counts)
    assert parts[0].codes == 300
