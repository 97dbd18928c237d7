"""Properties of a tokenizer that take a run: digests of a built-in clip, and cost per pixel."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from vtok.errors import VtokError
from vtok.models.checkpoint import CheckpointInfo, build_tokenizer
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.codec import clip_to_frames, frames_to_clip

FRAMES = 17
SIZES = ((64, 64), (96, 128))  # height and width of the clip
SHOWN_CODES = 8
COST_FRAMES, COST_SIDE = 129, 256


@dataclass(frozen=True)
class Digest:
    """Result for one size of the clip.

    Attributes:
        size: Width and height, such as `64x64`.
        codes_sha256: SHA-256 of the codes [K, t, h, w] as little-endian int32; None if continuous.
        codes_shape: Shape of that array; empty if continuous.
        some_codes: Eight codes at equal distances in it; empty if continuous.
        latents_mean, latents_std: Of the encoder's output.
        frames_sha256: SHA-256 of the decoded frames [T, H, W, 3] as uint8.
        frames_mean: Of these frames. Unlike the digests, hardly affected by the order of rounding,
            which differs between processors.
    """

    size: str
    codes_sha256: str | None
    codes_shape: tuple[int, ...]
    some_codes: tuple[int, ...]
    latents_mean: float
    latents_std: float
    frames_sha256: str
    frames_mean: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def check_frames(height: int, width: int) -> NDArray[np.uint8]:
    """Make the clip, [17, H, W, 3]: (3x + 5y + 7t + xy // 16 + 40c) mod 256 for channel c."""
    t, y, x, c = np.ogrid[:FRAMES, :height, :width, :3]
    levels = (3 * x + 5 * y + 7 * t + x * y // 16 + 40 * c) % 256
    return np.asarray(levels, np.uint8)


@torch.no_grad()
def make_digests(model: LoadedTokenizer) -> list[Digest]:
    """Encode and decode the built-in clip at two sizes, each in one model call.

    Args:
        model: The digests of different installations are comparable in float32 on a CPU.
    """
    tokenizer, digests = model.tokenizer, []
    for height, width in SIZES:
        if tokenizer.geometry.square and height != width:
            continue
        latents = tokenizer.encode_latents(frames_to_clip(check_frames(height, width), model))
        codes = None if tokenizer.geometry.entries is None else tokenizer.to_codes(latents)
        clip = tokenizer.decode(
            latents if codes is None else codes, num_frames=FRAMES, size=(height, width)
        )
        frames = clip_to_frames(clip)
        numbers = np.array([]) if codes is None else codes[0].cpu().numpy().astype("<i4")
        step = numbers.size // SHOWN_CODES
        digests.append(
            Digest(
                size=f"{width}x{height}",
                codes_sha256=None if codes is None else _sha256(numbers),
                codes_shape=() if codes is None else numbers.shape,
                some_codes=tuple(numbers.ravel()[:: max(1, step)][:SHOWN_CODES].tolist()),
                latents_mean=round(latents.float().mean().item(), 4),
                latents_std=round(latents.float().std().item(), 4),
                frames_sha256=_sha256(frames),
                frames_mean=round(float(frames.mean()), 2),
            )
        )
    return digests


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@torch.no_grad()
def cost_of(info: CheckpointInfo) -> tuple[float, float]:
    """Count the multiplications for a window, or 129 frames, of 256x256; computes nothing.

    Returns:
        Thousands of multiplications per pixel of the encoder and of the decoder.

    Raises:
        VtokError: They cannot be counted.
    """
    frames = getattr(info.geometry.plan, "frames", COST_FRAMES)
    pixels = frames * COST_SIDE**2
    with torch.device("meta"):
        tokenizer = build_tokenizer(info)
    try:
        with FlopCounterMode(display=False) as encoding:
            clip = torch.empty(1, 3, frames, COST_SIDE, COST_SIDE, device="meta")
            latents = tokenizer.encode_latents(clip)
        with FlopCounterMode(display=False) as decoding:
            tokenizer.decode(latents)
    except (RuntimeError, NotImplementedError) as exc:
        raise VtokError(f"{info.name}: the cost cannot be counted") from exc
    encoder, decoder = (x.get_total_flops() / 2000 / pixels for x in (encoding, decoding))
    return encoder, decoder
