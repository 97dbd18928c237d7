"""`vtok eval` and `vtok compare`: tables, JSON, CSV, files and errors."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import rows, tiny_checkpoint, vtok
from videos import make_video

import vtok.evaluation.classic as classic

MODEL = ("--model", "tiny.safetensors", "--dtype", "float32")
FAST = (*MODEL, "--metrics", "psnr", "--frames", "9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    tiny_checkpoint(folder)
    make_video(folder / "a.mp4", 12)
    make_video(folder / "b.mp4", 12, width=48, height=64)
    (folder / "text.mp4").write_text("no video")
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_table() -> None:
    result = vtok("eval", "a.mp4", *MODEL)
    assert (result.exit_code, result.stderr) == (0, "")
    title, head, *lines = result.stdout.splitlines()
    assert title.startswith("a.mp4: 12 frames 64x48, encoded at ")
    for word in ("bits", "bytes", "bpp", "kbps", "PSNR dB", "SSIM", "MS-SSIM", "VMAF", "flicker"):
        assert word in head
    assert [line.split()[0] for line in lines[:3]] == ["6", "12", "18"]
    assert lines[4].split() == ["codebook", "1", "2", "3"]
    assert "\x1b" not in result.stdout


def test_json_has_clips_and_mean() -> None:
    result = vtok("eval", "a.mp4", "b.mp4", *MODEL, "--json")
    first, second, mean = rows(result)
    assert [row["kind"] for row in (first, second, mean)] == ["clip", "clip", "mean"]
    assert (first["input"], first["frames"], first["status"]) == ("a.mp4", 12, "ok")
    keys = {"coder", "setting", "bits", "bytes", "bpp", "raw_bpp", "kbps", "decode_fps"}
    keys |= {"psnr", "ssim", "ms_ssim", "vmaf", "flicker"}
    assert set(first["rates"][0]) == keys
    both = [row["rates"][2]["psnr"] for row in (first, second)]
    assert mean["rates"][2]["psnr"] == pytest.approx(sum(both) / 2, abs=1e-4)
    assert [one["size"] for one in first["codebooks"]] == [64, 64, 64]
    assert mean["clips"] == 2


def test_csv_has_one_row_per_rate() -> None:
    result = vtok("eval", "a.mp4", "b.mp4", *FAST, "--bits", "6,18", "--csv")
    table = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["input"], row["bits"]) for row in table] == [
        *(("a.mp4", "6"), ("a.mp4", "18"), ("b.mp4", "6"), ("b.mp4", "18")),
        *(("mean", "6"), ("mean", "18")),
    ]
    assert float(table[0]["psnr"]) > 0
    assert table[0]["vmaf"] == ""


def test_failed_clips_do_not_stop_the_others() -> None:
    result = vtok("eval", "text.mp4", "missing.mp4", "a.mp4", *FAST, "--json")
    assert result.exit_code == 3
    assert [row["status"] for row in rows(result)] == ["failed", "failed", "ok"]
    assert "2 of 3 inputs failed" in result.stderr
    result = vtok("eval", "missing.mp4", *FAST)
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr == "error: missing.mp4: no such file\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bits", "7"), "--bits 7: expected one of 6, 12, 18, the rates of tiny"),
        (("--bits", "6,x"), "--bits 6,x: expected numbers such as 9,18"),
        (("--bits", ""), "expected numbers"),
        (("--metrics", "lpips"), "--metrics 'lpips': expected some of psnr, ssim"),
        (("--frames", "0"), "--frames 0: expected 1 or more"),
        (("--json", "--csv"), "both need standard output"),
        (("--card", "--size", "64"), "leave out --frames, --size"),
    ],
)
def test_usage_errors_are_one_line(arguments: tuple[str, ...], words: str) -> None:
    for command in ("eval", "compare"):
        result = vtok(command, "a.mp4", *MODEL, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


def test_standard_input_is_refused() -> None:
    result = vtok("eval", "-", *FAST)
    assert result.exit_code == 2
    assert "standard input is not read here" in result.stderr


def test_compare_writes_a_folder() -> None:
    result = vtok(
        *("compare", "a.mp4", *MODEL, "--metrics", "psnr,ssim", "--frames", "9"),
        *("--with", "x264,x265", "--bits", "12,18", "--show", "12"),
    )
    assert result.exit_code == 0, result.stderr
    written = {path.name for path in Path("a.compare").iterdir()}
    assert written == {"curves.png", "curves.svg", "results.json", "side-by-side.mp4"}
    facts = json.loads(Path("a.compare/results.json").read_text())
    assert [rate["coder"] for rate in facts["rates"]] == [
        *("vtok", "vtok", "x264", "x264", "x265", "x265")
    ]
    assert {delta["metric"] for delta in facts["deltas"]} == {"psnr", "ssim"}
    assert Path("a.compare/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "x265" in Path("a.compare/curves.svg").read_text()
    assert "Bjontegaard deltas of vtok" in result.stdout
    again = vtok("compare", "a.mp4", *FAST, "--with", "x264")
    assert again.exit_code == 1
    assert "exists already" in again.stderr


def test_compare_json_is_one_line() -> None:
    result = vtok(
        "compare", "a.mp4", *FAST, "--with", "x264", "--bits", "18", "-o", "out", "--json", "-q"
    )
    (row,) = rows(result)
    assert (row["kind"], row["status"], row["folder"]) == ("comparison", "ok", "out")
    assert row["deltas"][0]["bd_quality"] is None  # one point makes no curve
    assert result.stderr == ""


def test_compare_checks_options_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, words in (
        (("--with", "h266"), "--with h266: expected some of x264"),
        (("--show", "9"), "--show 9: expected one of 6, 12, 18"),
    ):
        result = vtok("compare", "a.mp4", *FAST, *arguments, "-o", "early")
        assert (result.exit_code, words in result.stderr) == (2, True), result.stderr
    monkeypatch.setattr(classic, "ffmpeg_lists", lambda kind: frozenset())
    result = vtok("compare", "a.mp4", *FAST, "--with", "av1", "-o", "early")
    assert result.exit_code == 2
    assert "this ffmpeg has no libsvtav1 or libaom-av1" in result.stderr
    assert not Path("early").exists()


def test_failed_compare_leaves_no_folder() -> None:
    result = vtok("compare", "text.mp4", *FAST, "--with", "x264")
    assert result.exit_code == 5
    assert not Path("text.compare").exists()


def test_compare_works_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = vtok("compare", "a.mp4", *FAST, "--with", "x264", "--bits", "18", "-o", "plain")
    assert result.exit_code == 0
    assert "pip install 'vtok[plot]'" in result.stderr
    assert "side-by-side.mp4" in {path.name for path in Path("plain").iterdir()}


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from vtok.cli.app import app; app(['eval', '--help'], standalone_mode=False);"
        "print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.split() == ["False", "False"]
