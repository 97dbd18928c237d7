"""Sizes and lengths of videos that a tokenizer does not take, or was not trained for."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import make_toy
from videos import make_video

from vtok.errors import OptionError
from vtok.evaluation.evaluate import EvalOptions, Part, evaluate_file
from vtok.models.load import LoadedTokenizer, resolve
from vtok.pipeline.decode import decode_file
from vtok.pipeline.encode import encode_file
from vtok.pipeline.options import EncodeOptions
from vtok.video.reader import VideoReader

FRAMES, SIZE = 12, (18, 26)  # height and width, not on the grid of 4x4 pixels


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sizes") / "clip.mp4"
    make_video(path, FRAMES, width=SIZE[1], height=SIZE[0])
    return path


def toy(kind: str = "plain", **changes: object) -> LoadedTokenizer:
    """A tokenizer with another geometry."""
    made = make_toy(kind)
    made.geometry = replace(made.geometry, **changes)
    return resolve(made)


@pytest.mark.parametrize("kind", ["plain", "window", "latents"])
@pytest.mark.parametrize(
    ("limit", "expected", "size"),
    [({"square": True}, "a square", "16x16"), ({"size_multiple": 8}, "multiples of 8", "24x16")],
)
def test_other_sizes_are_refused(
    kind: str, limit: dict, expected: str, size: str, clip: Path, tmp_path: Path
) -> None:
    model, to = toy(kind, **limit), "safetensors" if kind == "latents" else "vtok"
    output = tmp_path / f"a.{to}"
    with pytest.raises(OptionError) as caught:
        encode_file(clip, output, model=model, options=EncodeOptions(to))
    assert str(caught.value) == (
        f"size=source: expected {expected}: unnamed takes no frames of 26x18"
    )
    with pytest.raises(OptionError, match=expected):
        evaluate_file(clip, model=model, options=EvalOptions(metrics=("psnr",)))
    assert not output.exists()
    encode_file(clip, output, model=model, options=EncodeOptions(to, size=size))
    decode_file(output, tmp_path / "a.mp4", model=model)
    with VideoReader(tmp_path / "a.mp4") as reader:
        frames = np.concatenate(list(reader))
    assert (f"{frames.shape[2]}x{frames.shape[1]}", len(frames)) == (size, FRAMES)
    part = Part(size=size)
    assert evaluate_file(clip, model=model, options=EvalOptions(part, metrics=("psnr",))).points


def test_clips_are_padded_to_the_multiple() -> None:
    model = toy(size_multiple=8)
    latents = model.encode(torch.zeros(1, 3, 3, *SIZE))
    assert latents.shape[3:] == model.geometry.grid(*SIZE) == (6, 8)
    assert model.decode(latents).shape == (1, 3, 3, 24, 32)


@pytest.mark.parametrize("kind", ["plain", "window", "latents"])
def test_clips_longer_than_in_training_are_remarked(kind: str, clip: Path, tmp_path: Path) -> None:
    model, to = toy(kind, trained_frames=5), "safetensors" if kind == "latents" else "vtok"
    options = EncodeOptions(to, overwrite=True)
    result = encode_file(clip, tmp_path / "a", model=model, options=options)
    expected = "run on 12 frames at once, trained on 5: quality may suffer"
    assert result.note == (None if kind == "window" else expected)
    short = replace(options, num_frames=5, fps=Fraction(30))
    assert encode_file(clip, tmp_path / "a", model=model, options=short).note is None
    longer = toy(kind, trained_frames=3)
    assert encode_file(clip, tmp_path / "a", model=longer, options=options).note is not None
