"""Published families go through code files and files of latents as the shipped model does."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vtok.codefile.edit import cut
from vtok.codefile.reader import CodeFileReader
from vtok.models.checkpoint import save_checkpoint
from vtok.models.cosmos import CosmosConfig
from vtok.models.emu3 import Emu3Config
from vtok.models.load import LoadedTokenizer, load
from vtok.models.open_magvit2_layers import OpenMagvit2Config
from vtok.models.registry import ARCHITECTURES
from vtok.models.taehv import TaehvConfig
from vtok.models.vidtok import VidTokConfig
from vtok.nn.interface import Tokenizer, Window
from vtok.pipeline.array_files import LatentFile
from vtok.pipeline.codec import Decoder, clip_to_frames, fill, frames_to_clip
from vtok.pipeline.decode import read_codes, read_frames
from vtok.pipeline.encode import encode_file
from vtok.pipeline.options import EncodeOptions
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader

CLIP = Path(__file__).parents[1] / "examples" / "bee.mp4"
SIZE, FRAMES = (36, 44), 22  # not on any grid
COSMOS: dict[str, Any] = {
    "channels": 4, "encoder_widths": (8, 12, 12), "decoder_widths": (8, 12, 12),
}  # fmt: skip
VIDTOK: dict[str, Any] = {
    "latent_dim": 4, "width": 8, "multipliers": (1, 2, 2), "blocks": 1,
    "encoder_space": (0, 1), "encoder_time": (0, 1),
    "decoder_space": (1, 2), "decoder_time": (1, 2), "fsq_levels": (8,) * 4,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, Any]] = {
    "cosmos": ("cosmos", CosmosConfig(**COSMOS)),
    "cosmos, streamed": ("cosmos", CosmosConfig(**COSMOS, window=0)),
    "cosmos, continuous": (
        "cosmos",
        CosmosConfig(
            **{**COSMOS, "decoder_widths": (8, 12)},
            temporal_compression=4, levels=(), latent_dim=16,
        ),
    ),
    "vidtok 1.0": ("vidtok", VidTokConfig("1.0", **VIDTOK)),
    "vidtok 1.1": ("vidtok", VidTokConfig("1.1", **VIDTOK)),
    "vidtok, not causal": ("vidtok", VidTokConfig("1.0", causal=False, **VIDTOK)),
    "o2": (
        "open_magvit2",
        OpenMagvit2Config("o2", multipliers=(1, 2, 2), time_strides=(2, 2), adaptive=True,
                          channels=32, blocks=1, bits=6),
    ),
    "1x": (
        "open_magvit2",
        OpenMagvit2Config("image", multipliers=(1, 2), time_strides=(1,), channels=32, blocks=1,
                          bits=6),
    ),
    "open-magvit2 video": (
        "open_magvit2",
        OpenMagvit2Config("video", multipliers=(1, 2, 2), time_strides=(2, 2), adaptive=True,
                          channels=32, blocks=1, bits=6),
    ),
    "emu3": (
        "emu3",
        Emu3Config(entries=50, channels=32, multipliers=(1, 1), blocks=1, attention=(1,),
                   time_halvings=2),
    ),
    "taehv": ("taehv", TaehvConfig(latent_dim=6, encoder_dim=8, decoder_dims=(16, 12, 8, 8))),
}  # fmt: skip


def make(arch: str, config: Any) -> Tokenizer:
    """A tokenizer whose random weights are large enough for many different codes."""
    torch.manual_seed(0)
    made = ARCHITECTURES[arch].build(config.to_dict()).eval()
    with torch.no_grad():
        for weights in made.parameters():
            if weights.ndim > 1:
                weights.normal_(std=1.6 / weights[0].numel() ** 0.5)
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LoadedTokenizer:
    """A family with random weights, saved and loaded."""
    arch, config = FAMILIES[request.param]
    made = make(arch, config)
    path = tmp_path_factory.mktemp("family") / f"{arch}.safetensors"
    save_checkpoint(path, made, arch)
    return load(path, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def frames() -> Frames:
    with VideoReader(CLIP, size=f"{SIZE[1]}x{SIZE[0]}") as reader:
        return np.concatenate(list(reader))[:FRAMES]


def direct(model: LoadedTokenizer, frames: Frames) -> Frames:
    """Decoded frames, by calls of the tokenizer on the whole video or on each window."""
    plan, shown = model.geometry.plan, []
    length = plan.frames if isinstance(plan, Window) else len(frames)
    for start in range(0, len(frames), length):
        part = frames[start : start + length]
        with torch.inference_mode():
            latents = model.tokenizer.encode_latents(frames_to_clip(fill(part, length), model))
            codes = latents if model.geometry.entries is None else model.tokenizer.to_codes(latents)
            clip = model.tokenizer.decode(codes, size=SIZE, num_frames=len(part))
        shown.append(clip_to_frames(clip))
    return np.concatenate(shown)


def test_files_decode_to_frames_of_the_tokenizer(
    model: LoadedTokenizer, frames: Frames, tmp_path: Path
) -> None:
    continuous = model.geometry.entries is None
    to = "safetensors" if continuous else "vtok"
    options = EncodeOptions(
        to, size=f"{SIZE[1]}x{SIZE[0]}", num_frames=FRAMES, latent_dtype="float32"
    )
    path = tmp_path / f"a.{to}"
    encode_file(CLIP, path, model=model, options=options)
    decoder, whole = Decoder(model, SIZE), direct(model, frames)
    if continuous:
        file = LatentFile(path, "a")
        for first, end in ((0, FRAMES), (9, 19)):
            shown = decoder.decode(file.chunks((first, end), model.geometry.lookback))
            assert_near(np.concatenate(list(shown)), whole[first:end])
        return
    reader = CodeFileReader(io.BytesIO(path.read_bytes()))
    assert len(np.unique(next(iter(reader)).codes)) > 5
    data = path.read_bytes()
    shown = decoder.decode(read_codes(CodeFileReader(io.BytesIO(data))))
    assert_near(np.concatenate(list(shown)), whole)
    reader, part = CodeFileReader(io.BytesIO(data)), io.BytesIO()
    shown = decoder.decode(read_frames(reader, model, (9, 19)))
    assert_near(np.concatenate(list(shown)), whole[9:19])
    list(cut(reader, part, frames=(9, 19)))
    shown = decoder.decode(read_codes(CodeFileReader(io.BytesIO(part.getvalue()))))
    assert_near(np.concatenate(list(shown)), whole[9:19])


def assert_near(found: Frames, expected: Frames) -> None:
    """Allow for sums in another order: a level of few pixels, and a code of few positions."""
    assert found.shape == expected.shape
    apart = np.abs(found.astype(int) - expected)
    assert (apart > 1).mean() < 0.01
