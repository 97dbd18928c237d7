"""Tables of evaluation results, and the page of scripts/results.py."""

import csv
import importlib.util
import io
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from vtok.cli.tables import FIELDS, Printer
from vtok.evaluation.compare import deltas
from vtok.evaluation.results import ClipResult, CodeUsage, Point

ROOT = Path(__file__).parent.parent


def result(name: str = "a.mp4", codebooks: int = 4, lost: float = 0) -> ClipResult:
    def point(coder: str, bits: int, psnr: float) -> Point:
        quality = {"psnr": psnr - lost, "ssim": psnr / 50, "ms_ssim": None, "vmaf": psnr}
        quality["flicker"] = 50 / psnr
        fps = 43.0 if coder == "vtok" else None
        raw = 0.004 * bits if coder == "vtok" else None
        return Point(
            coder, f"crf {bits}.75", bits, 1234 * bits, 0.005 * bits, raw, 99.5, quality, fps
        )

    points = [point("vtok", bits, 20 + bits / 9) for bits in (9, 18)]
    points += [point("x264", bits, 20.5 + bits / 9) for bits in (9, 18)]
    usage = [CodeUsage(8) for _ in range(codebooks)]
    for one in usage:
        one.add(np.array([1, 1, 5, 5]))
    return ClipResult(name, 64, 48, 9, Fraction(30), tuple(points), tuple(usage), 87.0)


def shown(monkeypatch, capsys, clip: ClipResult, width: int) -> str:
    printer = Printer(as_json=False, as_csv=False)
    monkeypatch.setattr(printer, "_room", lambda: width)
    printer.clip(clip)
    printer.deltas(deltas(clip.points))
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [50, 80, 200])
def test_tables_show_all_figures_at_any_width(monkeypatch, capsys, width: int) -> None:
    text = shown(monkeypatch, capsys, result(), width)
    assert "…" not in text
    for figure in (
        "crf 9.75",
        "11,106",
        "0.0450",
        "99.5",
        "21.00",
        "0.4200",
        "2.38",
        "43 frames/s",
    ):
        assert figure in text, figure
    assert "Bjontegaard" in text
    assert ("bytes" in next(line for line in text.splitlines() if "PSNR" in line)) == (width > 90)


def test_many_codebooks_are_rows(monkeypatch, capsys) -> None:
    assert "perplexity " in shown(monkeypatch, capsys, result(codebooks=8), 80)
    lines = shown(monkeypatch, capsys, result(codebooks=20), 80).splitlines()
    assert [line.split() for line in lines].count(["20", "25.0%", "2"]) == 1


def test_csv_rows_of_the_mean_have_no_file(capsys) -> None:
    printer = Printer(as_json=False, as_csv=True)
    clips = [result(), result("b.mp4", lost=2)]
    for clip in clips:
        printer.clip(clip)
    printer.mean(clips)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 12
    assert [rows[-1][field] for field in FIELDS] == ["mean", "", "", "", ""]
    assert float(rows[8]["psnr"]) == 20.0


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "results.py"
    spec = importlib.util.spec_from_file_location("results_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_page(script: ModuleType) -> None:
    model = SimpleNamespace(info=SimpleNamespace(name="tiny", weights_sha256="0123456789abcdef"))
    clips = [result("x/a.mp4"), result("x/b.mp4", lost=2)]
    page = script.page(model, clips, ["x264"], "results.svg")
    assert "`tiny` of weights\n`0123456789ab` and x264, preset medium." in page
    assert "| vtok | 9 | 11,106 | 0.0450 | 20.00 |" in page  # the mean of 21 and 19
    assert "| PSNR dB | x264 > vtok | x264 > vtok |" in page
    assert "| flicker | x264 > vtok | x264 > vtok |" in page  # lower is better
    assert "MS-SSIM" not in page  # no clip is large enough
    assert "### a.mp4, 9 frames 64x48" in page
    assert "measured on other clips" in page
    table = script.summary(script.mean_points(clips)).splitlines()
    assert table[0] == "| bits per position | bytes | vtok | x264 |"
    assert table[2].startswith("| 9 | 11,106 | 20.00 |")
    for name in ("Cosmos", "VidTok", "OmniTokenizer", "MAGVIT-v2"):
        assert name in page
    columns = {line.count("|") for line in script.published().splitlines()}
    assert columns == {9}
