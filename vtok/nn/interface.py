"""The tokenizer interface: all that the code above `nn` knows of an architecture."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtok.errors import ShapeError
from vtok.nn.geometry import Geometry, Stream, Window

__all__ = [
    "Config",
    "Geometry",
    "Stream",
    "StreamState",
    "Tokenizer",
    "Window",
    "crop",
    "mark",
    "pad_clip",
]


@dataclass
class StreamState:
    """State of the encoder or the decoder over one video, carried from chunk to chunk.

    Start each video with a new one. Each causal layer stores the past frames that it needs for its
    next output.

    Attributes:
        memory: Tensors stored by layers; a layer replaces its tensor and never changes it in place.
        started: Whether the state has seen the first chunk, which the tokenizer sets after it.
    """

    memory: dict[nn.Module, Tensor] = field(default_factory=dict)
    started: bool = False

    def past(self, layer: nn.Module) -> Tensor | None:
        """Return what `layer` stored at the previous chunk; None at the start of the video."""
        return self.memory.get(layer)

    def keep(self, layer: nn.Module, recent: Tensor) -> None:
        """Store `recent` for `layer` until the next chunk."""
        self.memory[layer] = recent

    def clone(self) -> StreamState:
        """Copy the state, to try a chunk without committing to it."""
        memory = {layer: past.clone() for layer, past in self.memory.items()}
        return StreamState(memory, self.started)


class Config(Protocol):
    """Configuration of an architecture: a frozen dataclass of plain values."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        ...


class Tokenizer(nn.Module):
    """Base class of tokenizers of every architecture.

    A subclass sets `arch` and `geometry`, stores its `config`, and defines `encode_clip`,
    `decode_latents`, `to_codes` and `from_codes`.

    Attributes:
        arch: Name of the architecture in checkpoints.
        config: Configuration, which rebuilds the module with `from_config`.
        geometry: Shapes and plan.
        latent_bound: Largest absolute value of the latents; None if they are unbounded.
    """

    arch: ClassVar[str]
    latent_bound: ClassVar[float | None] = None
    config: Any
    geometry: Geometry

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Tokenizer:
        """Create a tokenizer with random weights."""

    @abstractmethod
    def encode_clip(self, clip: Tensor, state: StreamState | None) -> Tensor:
        """Encode a padded clip [B, 3, T, H, W] in -1..1 to latents [B, D, t, h, w].

        Args:
            clip: 1 + n * temporal_compression frames at the start of a video, and
                n * temporal_compression later in a stream.
            state: State of the stream, None if the clip is the whole video.
        """

    @abstractmethod
    def decode_latents(self, latents: Tensor, state: StreamState | None, ahead: int) -> Tensor:
        """Decode latents [B, D, t, h, w] to frames [B, 3, T, H, W], about -1..1.

        Args:
            latents: Quantized latents of a discrete tokenizer.
            state: State of the stream, None if the latents are the whole video.
            ahead: How many of the last steps are only looked at: they give no frames, and the
                state does not advance over them. At most `geometry.lookahead`.

        Returns:
            1 + n * temporal_compression frames at the start of a video, and
            n * temporal_compression later in a stream.
        """

    def to_codes(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Quantize latents [B, D, t, h, w] to codes, int64 [B, K, t, h, w].

        Args:
            latents: As `encode_latents` returns them.
            num_stages: Stages of codes to return, the outer part of K; default: all.

        Raises:
            ShapeError: The tokenizer has no codes, or not as many stages.
        """
        raise ShapeError(f"{self.arch} is a continuous tokenizer: it has latents, but no codes")

    def from_codes(self, codes: Tensor) -> Tensor:
        """Convert codes [B, K, t, h, w] to quantized latents, float32 [B, D, t, h, w].

        Raises:
            ShapeError: The tokenizer has no codes, or a code is out of range.
        """
        raise ShapeError(f"{self.arch} is a continuous tokenizer: it has latents, but no codes")

    def quantize(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Quantize latents [B, D, t, h, w] with a straight-through gradient; same shape.

        Args:
            latents: As `encode_latents` returns them.
            num_stages: Stages to use; default: all.

        Raises:
            ShapeError: The tokenizer has no codes, or not as many stages.
        """
        with torch.no_grad():
            quantized = self.from_codes(self.to_codes(latents, num_stages))
        return latents + (quantized - latents).detach()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, also the type of all computations."""
        return next(self.parameters()).dtype

    def new_state(self) -> StreamState:
        """Create the state of the encoder or the decoder at the start of a video."""
        return StreamState()

    def encode_latents(
        self, video: Tensor, state: StreamState | None = None, *, num_stages: int | None = None
    ) -> Tensor:
        """Encode a clip [B, 3, T, H, W] in -1..1 of any size and length to latents [B, D, t, h, w].

        The clip is padded to whole latent steps and positions by repeating its last frame and its
        edges.

        Args:
            video: The clip. In a stream, only the last call may have a number of frames that is
                not a whole number of latent steps.
            state: State of the stream, None if the clip is the whole video.
            num_stages: Largest number of stages that the latents will be quantized to; default:
                all. Some tokenizers encode faster for few stages.
        """
        return mark(state, self.encode_clip(self.padded(video, state), state))

    def decode(
        self,
        codes_or_latents: Tensor,
        *,
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        state: StreamState | None = None,
        ahead: int = 0,
    ) -> Tensor:
        """Decode codes [B, K, t, h, w] or float latents [B, D, t, h, w] to a clip.

        Args:
            codes_or_latents: Codes of all stages or the first few; or floats.
            num_frames: Largest number of frames to keep; default: all.
            size: (height, width) to keep, at most the decoded size; default: all.
            state: State of the stream, None if the input is the whole video.
            ahead: How many of the last steps are only looked at; see `decode_latents`.

        Returns:
            The clip [B, 3, T, H, W], about -1..1, not clamped.
        """
        latents = self.as_latents(codes_or_latents).to(self.dtype)
        clip = self.decode_latents(latents, state, ahead)
        return crop(mark(state, clip), num_frames, size)

    def padded(self, video: Tensor, state: StreamState | None) -> Tensor:
        """Pad a clip to whole latent steps and positions, in the type of the weights."""
        geometry, first = self.geometry, state is None or not state.started
        multiple = geometry.size_multiple or geometry.spatial_compression
        return pad_clip(video, geometry.temporal_compression, multiple, first=first).to(self.dtype)

    def as_latents(self, codes_or_latents: Tensor) -> Tensor:
        """Convert codes, also [B, t, h, w] if K is 1, to latents and check the shape.

        Raises:
            ShapeError: The shape is wrong, or a code is out of range.
        """
        latents = codes_or_latents
        if not latents.is_floating_point():
            single = self.geometry.num_stages * self.geometry.num_codebooks == 1
            latents = self.from_codes(latents[:, None] if single and latents.ndim == 4 else latents)
        dim = self.geometry.latent_dim
        if latents.ndim != 5 or latents.shape[1] != dim or 0 in latents.shape:
            expected = f"[B, {dim}, t, h, w]"
            raise ShapeError(f"latents of shape {list(latents.shape)}: expected {expected}")
        return latents


def mark(state: StreamState | None, result: Tensor) -> Tensor:
    """Mark a state as started, and return the result of the call."""
    if state is not None:
        state.started = True
    return result


def pad_clip(clip: Tensor, temporal: int, multiple: int, *, first: bool) -> Tensor:
    """Pad [B, C, T, H, W] to whole latent steps and positions by repeating frames and edges.

    Args:
        clip: The clip.
        temporal: Frames per latent step.
        multiple: What height and width are padded to a multiple of.
        first: Whether the clip begins a video, so that its first frame is a step by itself.
    """
    frames = -(clip.shape[2] - first) % temporal
    rows, columns = (-n % multiple for n in clip.shape[-2:])
    if not (frames or rows or columns):
        return clip
    return F.pad(clip, (0, columns, 0, rows, 0, frames), mode="replicate")


def crop(clip: Tensor, num_frames: int | None, size: tuple[int, int] | None) -> Tensor:
    """Keep at most `num_frames` frames of [B, C, T, H, W] and their top left (height, width).

    Raises:
        ShapeError: The number of frames is negative, or the size is larger than the frames.
    """
    if num_frames is not None and num_frames < 0:
        raise ShapeError(f"{num_frames} frames: expected 0 or more")
    height, width = size or clip.shape[-2:]
    if not (0 < height <= clip.shape[-2] and 0 < width <= clip.shape[-1]):
        most = " x ".join(map(str, clip.shape[-2:]))
        raise ShapeError(f"size {height} x {width}: expected 1 x 1 to {most}")
    return clip[:, :, :num_frames, :height, :width]
