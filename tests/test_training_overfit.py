"""Training on a single clip from random weights reaches 30 dB."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training import Recorder
from videos import run_ffmpeg

from vtok.training.config import TrainingConfig
from vtok.training.trainer import train

SIZE, FRAMES = 64, 12
SMALL = {
    "linear_path": False,
    "stage_plan": [0, 0, 0, 0, 1, 1, 2, 2],
    "patch_size": 4,
    "init_dim": 32,
    "layers": [["space_time_patch", 128], ["causal_depthwise", 128]],
    "decoder_init_dim": 32,
    "decoder_layers": [
        ["depthwise", 32],
        ["space_time_patch", 128],
        *[["causal_depthwise", 128]] * 2,
    ],
}


def write_moving_clip(path: Path) -> None:
    """Write a panning smooth texture with a red square that moves the other way."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(128, 45, (1, 3, 14, 14))).float()
    wide = torch.nn.functional.interpolate(coarse, (SIZE + 24, SIZE + 24), mode="bicubic")
    picture = wide[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
    frames = []
    for k in range(FRAMES):
        frame = picture[k : k + SIZE, 2 * k : 2 * k + SIZE].copy()
        frame[20 + k : 36 + k, 40 - 2 * k : 56 - 2 * k] = (220, 60, 40)
        frames.append(frame)
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIZE}x{SIZE}", "-r", "30", "-i", "-")
    lossless = ("-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p")
    run_ffmpeg(*raw, *lossless, path, data=np.stack(frames).tobytes())


@pytest.mark.slow
def test_one_clip_is_learned_to_30_db(tmp_path: Path) -> None:
    write_moving_clip(tmp_path / "one.mkv")
    config = TrainingConfig(
        model=SMALL, steps=160, frames=9, crop=SIZE, base_stages=8, base_share=1.0, all_share=0.0,
        workers=1, learning_rate=0.02, adamw_learning_rate=0.004, warm_up=20, validate_every=80,
        precision="float32",
    )  # fmt: skip
    notes = Recorder()
    train([tmp_path / "one.mkv"], tmp_path / "run", config, observer=notes, device="cpu")
    psnr = notes.validations[-1].psnr
    assert psnr[8] > 30
    assert not notes.alarms or {alarm.kind for alarm in notes.alarms} == {"stalled_data"}
