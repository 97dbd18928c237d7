"""Every kind of input is in the table of the page and comes out right; a phone's video does too."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from kinds import GROUPS, page_table
from makers import HEIGHT, PHONE_TIMES, patch_columns, phone
from test_frame_times import times_of
from test_sound import onsets
from videos import read_barcodes

from vtok.models.load import load
from vtok.pipeline.decode import decode_file
from vtok.pipeline.encode import encode_file
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reading_and_writing.md").read_text()


def test_page_has_a_row_for_every_kind() -> None:
    names = [kind.name for kinds in GROUPS.values() for kind in kinds]
    assert len(names) == len(set(names)) > 75
    begin, end = "<!-- begin kinds -->\n", "\n<!-- end kinds -->"
    assert PAGE.partition(begin)[2].partition(end)[0] == page_table()


@pytest.mark.slow
def test_script_finds_kinds_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ("mp4, H.264 with", "npy, uint8", "variable rate, mkv", "tar sample", "text file")
    path = str(ROOT / "scripts" / "odd_files.py")
    monkeypatch.setattr(sys, "argv", [path, "--only", *some])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(path, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.endswith("  right")] == []
    assert (ended.value.code, len(lines)) == (0, len(some))


def color_shares(frames: Frames) -> np.ndarray:
    """Return the shares of the channels in the red, the green and the blue patch."""
    patches = [frames[:, HEIGHT // 2 - 3 : HEIGHT // 2 + 3, patch_columns(n)] for n in range(3)]
    means = np.stack([patch[:, :, 4:12].mean(axis=(0, 1, 2)) for patch in patches])
    return means / means.sum(axis=1, keepdims=True)


def read(path: Path) -> Frames:
    with VideoReader(path) as reader:
        return np.concatenate(list(reader))


@pytest.mark.slow
def test_video_of_a_phone(tmp_path: Path) -> None:
    path, codes, again = phone(tmp_path), tmp_path / "a.vtok", tmp_path / "b.mp4"
    frames = read(path)
    assert read_barcodes(frames) == list(range(30))  # upright
    assert (np.diag(color_shares(frames)) > 0.5).all()
    model = load("vtok-base")
    encode_file(path, codes, model=model)
    decode_file(codes, again, model=model)
    decoded = read(again)
    assert decoded.shape == frames.shape
    assert np.abs(decoded.mean(axis=0) - frames.mean(axis=0)).mean() < 12  # upright, same levels
    assert (np.diag(color_shares(decoded)) > 0.5).all()
    assert times_of(again) == pytest.approx(PHONE_TIMES, abs=1e-3)
    assert onsets(again) == pytest.approx(onsets(path), abs=0.025)
    assert len(onsets(path)) == 5
