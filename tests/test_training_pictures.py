"""Pictures of validation clips above their reconstructions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vtok.errors import OutputError
from vtok.evaluation.pictures import LINE, MARGIN, draw_sheet
from vtok.training.metrics import MIN_WIDTH, Measured, write_comparison


def flat(*levels: int, side: int = 200) -> torch.Tensor:
    """Return uniform gray pictures as floats."""
    gray = torch.tensor(levels).float() / 127.5 - 1
    return gray.view(-1, 1, 1, 1).expand(-1, 3, side, side)


def test_originals_are_above_their_reconstructions(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    psnr = {1: [20.0, 21.0, 22.0], 3: [0.0] * 3, 4: [24.0, 25.0, 26.0]}
    frames = {1: flat(40, 50, 60), 3: flat(0, 0, 0), 4: flat(70, 80, 90)}
    clips = torch.stack([flat(0, 0, 0), flat(10, 20, 30), flat(0, 0, 0)], 2)
    for _ in range(2):  # as a resumed run does
        write_comparison(path, clips, Measured(psnr, frames, 1.0), base_stages=9)
    sheet = np.asarray(Image.open(path))
    step = 200 + MARGIN
    assert sheet.shape == (MARGIN + 3 * (step + LINE), MARGIN + 3 * step, 3)
    for row in range(3):
        for column in range(3):
            top, left = MARGIN + row * (step + LINE), MARGIN + column * step
            expected = 10 * (1 + 3 * row + column)
            assert (sheet[top : top + 200, left : left + 200] == expected).all()
            caption = sheet[top + 200 : top + 200 + LINE, left : left + 200]
            assert caption.max() > 200  # contains letters


def test_each_clip_has_its_caption() -> None:
    black = np.zeros((32, 160, 3), dtype=np.uint8)
    rows = [[black, black]]
    one, same = (draw_sheet(rows, captions=[["20.00 dB", "20.00 dB"]]) for _ in range(2))
    other = draw_sheet(rows, captions=[["20.00 dB", "21.00 dB"]])
    half = MARGIN + 160
    assert (one == same).all()
    assert (one[:, :half] == other[:, :half]).all()
    assert (one[:, half:] != other[:, half:]).any()


def test_small_pictures_are_enlarged_without_smoothing(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    picture = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    write_comparison(path, picture[:, :, None], Measured({1: [99.0]}, {1: picture}, 1.0), 1)
    times = MIN_WIDTH // 32
    shown = np.asarray(Image.open(path))[MARGIN:][: 16 * times, MARGIN:][:, : 32 * times]
    expected = ((picture[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    for offset in (0, times - 1):
        assert (shown[offset::times, offset::times] == expected).all()


def test_unwritable_picture_is_an_output_error(tmp_path: Path) -> None:
    measured = Measured({1: [1.0]}, {1: flat(2)}, 1.0)
    with pytest.raises(OutputError, match="does not exist"):
        write_comparison(tmp_path / "no" / "x.png", flat(1)[:, :, None], measured, 1)
