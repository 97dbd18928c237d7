"""scripts/quality.py: metrics of each clip at every rate, and the distance to x264."""

import csv
import io
import json
import math
import runpy
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import tiny_checkpoint
from test_similarity import smooth

import vtok.evaluation.metrics
from vtok.evaluation.compare import compare_file
from vtok.evaluation.curves import quality_at
from vtok.evaluation.evaluate import EvalOptions, Part
from vtok.models.load import load
from vtok.video.writer import VideoWriter

SCRIPT = Path(__file__).parent.parent / "scripts" / "quality.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    write_clip(folder / "a.mp4", 9)
    write_clip(folder / "b.mp4", 5)
    tiny_checkpoint(folder)
    return folder


def write_clip(path: Path, count: int) -> None:
    """Write sliding noise, which takes x264 more bytes than the tiny model."""
    wide = smooth(48, 64 + 2 * count, 1)[0]
    with VideoWriter(path, width=64, height=48, fps=Fraction(30), crf=1) as writer:
        writer.write(np.stack([wide[:, 2 * k : 2 * k + 64] for k in range(count)]))


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    words = [str(SCRIPT), "a.mp4", "b.mp4", "--model", "tiny.safetensors", *arguments]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_quality_between_points_of_a_curve() -> None:
    curve = [(400.0, 35.0), (100.0, 29.0), (200.0, 32.0)]  # 3 a doubling
    assert quality_at(200, curve) == pytest.approx(32)
    assert quality_at(100 * math.sqrt(2), curve) == pytest.approx(30.5)
    assert quality_at(99, curve) is quality_at(401, curve) is quality_at(100, curve[:1]) is None
    assert quality_at(100, [*curve, (100.0, 28.0)]) == pytest.approx(29)  # the better of two


def test_x264_curve_ends_above_the_bytes(script: dict[str, Any], folder: Path) -> None:
    curve = script["x264_curve"](folder / "a.mp4", Part(), 3000)
    counts, decibels = zip(*curve, strict=True)
    assert max(counts[:-2]) <= 3000 < min(counts[-2:])
    whole = script["x264_curve"](folder / "a.mp4", Part(), 10_000)
    assert quality_at(3000, curve) == pytest.approx(quality_at(3000, whole), abs=1e-9)
    assert decibels[0] + 10 < decibels[-1]


def test_distance_is_that_of_an_x264_stream_of_the_same_bytes(
    script: dict[str, Any], folder: Path
) -> None:
    model, part = load(folder / "tiny.safetensors", dtype="float32"), Part()
    rows = script["measure"](model, folder / "a.mp4", [6, 18], full=True, part=part)
    assert [row["bits"] for row in rows] == [6, 18]
    options = EvalOptions(part, (6, 18), ("psnr",))
    source = folder / "a.mp4"
    with compare_file(source, model=model, codecs=["x264"], options=options) as comparison:
        ours, theirs = comparison.result.of("vtok"), comparison.result.of("x264")
    for row, one, other in zip(rows, ours, theirs, strict=True):
        assert row["coded_bytes"] == one.bytes
        assert row["raw_bytes"] == pytest.approx(one.raw_bpp * 64 * 48 * 9 / 8)
        assert row["psnr"] == pytest.approx(one.quality["psnr"])
        scale = math.log2(one.bytes / other.bytes)  # the search is within 2 % of the bytes
        expected = other.quality["psnr"] - one.quality["psnr"]
        assert row["below_x264_coded"] == pytest.approx(expected, abs=0.2 + 6 * abs(scale))
        assert row["below_x264_raw"] < row["below_x264_coded"]  # the tiny model packs in less


def test_mean_is_over_the_clips_that_have_a_value(script: dict[str, Any]) -> None:
    rows = [
        {"clip": "a", "bits": 18, "psnr": 20.0, "ms_ssim": None},
        {"clip": "a", "bits": 72, "psnr": 30.0, "ms_ssim": None},
        {"clip": "b", "bits": 18, "psnr": 22.0, "ms_ssim": 0.9},
        {"clip": "b", "bits": 72, "psnr": 32.0, "ms_ssim": None},
    ]
    assert script["mean_rows"](rows) == [
        {"clip": "mean", "bits": 18, "psnr": 21.0, "ms_ssim": 0.9},
        {"clip": "mean", "bits": 72, "psnr": 31.0, "ms_ssim": None},
    ]


def test_psnr_table_of_the_model_cards(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, monkeypatch)
    head, _, first, _, mean = capsys.readouterr().out.splitlines()
    assert head == "| clip | 6 bits | 12 bits | 18 bits |"
    assert first.startswith("| a.mp4 | ")
    assert mean.startswith("| mean | ")
    run(folder, monkeypatch, "--json", "--bits", "6,18")
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["a.mp4", "b.mp4", "mean"]
    assert found["mean"]["6"] == pytest.approx((found["a.mp4"]["6"] + found["b.mp4"]["6"]) / 2)
    assert f"{found['a.mp4']['6']:.2f}" in first


def test_full_output_as_csv_and_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vtok.evaluation.metrics, "has_vmaf", lambda: False)
    run(folder, monkeypatch, "--full", "--csv", "--bits", "18")
    shown = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    assert [row["clip"] for row in rows] == ["a.mp4", "b.mp4", "mean"]
    assert "VMAF is not available" in shown.err
    assert all(row["vmaf"] == row["ms_ssim"] == "" for row in rows)
    assert float(rows[2]["psnr"]) == pytest.approx(
        np.mean([float(row["psnr"]) for row in rows[:2]])
    )
    run(folder, monkeypatch, "--full", "--bits", "18")
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith("| VMAF | dB below x264, raw | dB below x264, coded |")
    assert len(lines) == 3
    assert all(line.count("|") == head.count("|") for line in lines)


def test_codes_far_below_x264_have_no_distance(script: dict[str, Any], folder: Path) -> None:
    curve = script["x264_curve"](folder / "b.mp4", Part(), 1)
    assert len(curve) == 2  # the lowest quality takes more bytes
    assert quality_at(1, curve) is None
