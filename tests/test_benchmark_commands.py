"""scripts/benchmark_commands.py: contents of its tables."""

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark_commands.py"


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def row(coder: str, seconds: float, frames: int, **more: Any) -> dict[str, Any]:
    return {"coder": coder, "encode s": seconds, "decode s": 2 * seconds,
            "encode fps": frames / seconds, "decode fps": frames / seconds / 2, **more}  # fmt: skip


def test_start_up_time_is_separated_from_speed(bench: dict[str, Any]) -> None:
    found = {
        "100": [row("command", 2.0, 100, bytes=1), row("part", 1.0, 100)],
        "1000": [row("command", 11.0, 1000, bytes=9), row("part", 9.0, 1000)],
    }
    shown = bench["start_and_rate"](found)
    assert "| command | 1.00 | 100 | 2.00 | 50 |" in shown
    assert "part" not in shown
    faster = {"100": found["1000"], "1000": found["100"]}  # as on a busy machine
    assert "| command |  |  |  |  |" in bench["start_and_rate"](faster)


def test_unknown_figures_are_empty_cells(bench: dict[str, Any]) -> None:
    whole = row("command", 2.0, 100, bytes=12345, bpp=0.25, psnr=28.561)
    whole |= {"encode MB": 1234.4, "decode MB": 500.0}
    lines = bench["table"]([whole, row("part", 1.0, 100)]).splitlines()
    assert lines[2] == "| command | 12,345 | 0.2500 | 28.56 | 50 | 25 | 1,234 | 500 |"
    assert lines[3] == "| part |  |  |  | 100 | 50 |  |  |"


def test_every_codec_has_a_quality_option(bench: dict[str, Any], tmp_path: Path) -> None:
    codecs = {codec for group in bench["CODECS"].values() for codec in group}
    assert {codec.encoder for codec in codecs} == set(bench["QUALITY"])
    for codec in codecs:
        words = bench["encoding"](tmp_path / "a.mp4", tmp_path / "b.mkv", codec, 30.5)
        assert any("30.5" in str(word) for word in words)
