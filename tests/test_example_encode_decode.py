"""examples/encode_decode.py on the example video."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))

import encode_decode  # noqa: E402


def test_output_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encode_decode, "SIZE", "64")
    monkeypatch.setattr(encode_decode, "SECONDS", 1.1)
    video = ROOT / "examples" / "bee.mp4"
    monkeypatch.setattr(sys, "argv", ["encode_decode.py", str(video), "--out", str(tmp_path)])
    encode_decode.main()
    shown = capsys.readouterr().out
    quality = [float(text) for text in re.findall(r"PSNR ([\d.]+) dB", shown)]
    assert len(quality) == 4
    assert quality == sorted(quality)
    assert quality[-1] > quality[0] + 1
    (equal,) = re.findall(r"chunks, ([\d.]+) % of the codes", shown)
    assert float(equal) > 99
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"clip.vtok", "two_stages.mp4", "part.mp4"}


def test_missing_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["encode_decode.py", "nothing.mp4", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        encode_decode.main()
    assert ended.value.code == 5
    assert capsys.readouterr().err == "error: nothing.mp4: no such file\n"
