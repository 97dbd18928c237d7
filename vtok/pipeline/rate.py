"""Observers of the encoder that decode: PSNR measurement, rate control and encoding effort."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vtok.codefile.header import Header
from vtok.codefile.packing import encode_parts
from vtok.codefile.records import FOOTER_BYTES, ROW, ChunkHead, preamble_to_bytes
from vtok.errors import OptionError, ShapeError
from vtok.models.load import LoadedTokenizer
from vtok.nn.geometry import Window
from vtok.nn.interface import StreamState
from vtok.pipeline.codec import Decoder, codes_of_grid
from vtok.pipeline.options import Rate
from vtok.pipeline.result import ChunkObserver, CodeChunk, Observer
from vtok.video.frames import Frames

IDENTICAL_DB = 100.0
"""PSNR of equal frames, so that means stay finite."""
LEARNING_RATE, MOMENTUM = 0.2, 0.9
"""Parameters of the steps of `Effort`; the rate, relative to the quantization error, falls to 0."""
CHANGE_WEIGHT = 0.9
"""Weight of the mean change of a latent, relative to the error at the first step."""


def psnr_per_frame(a: Frames, b: Frames) -> npt.NDArray[np.float64]:
    """Compute the PSNR of each frame in dB, 10 log10(255^2 / MSE), at most `IDENTICAL_DB`.

    Args:
        a, b: uint8 [T, H, W, 3] of equal shapes. They are cast before they are subtracted:
            uint8 would wrap around.

    Returns:
        float64 [T].

    Raises:
        ShapeError: for other types, or for shapes that differ.
    """
    check_pair(a, b)
    # one frame at a time: float64 takes eight times the memory of uint8
    errors = np.array(
        [np.square(x.astype(np.float64) - y).mean() for x, y in zip(a, b, strict=True)]
    )
    with np.errstate(divide="ignore"):
        ratios: npt.NDArray[np.float64] = 10 * np.log10(255.0**2 / errors)
    return ratios.clip(max=IDENTICAL_DB)


def check_pair(a: Frames, b: Frames) -> None:
    """Check that two videos are uint8 [T, H, W, 3] of equal shapes.

    Raises:
        ShapeError: otherwise.
    """
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ShapeError(f"frames of {a.dtype} and {b.dtype}: expected uint8")
    if a.shape != b.shape or a.ndim != 4:
        raise ShapeError(
            f"frames of shape {list(a.shape)} and {list(b.shape)}: "
            "expected two of one shape [T, H, W, 3]"
        )


class Originals:
    """Source frames that wait for their decoded frames, which may come later."""

    def __init__(self) -> None:
        self._held: list[Frames] = []

    def add(self, frames: Frames) -> None:
        """Add source frames."""
        self._held.append(frames)

    def pair(self, decoded: Iterable[Frames]) -> Iterator[tuple[Frames, Frames]]:
        """Yield decoded frames, each batch with its source frames."""
        for frames in decoded:
            held = np.concatenate(self._held)
            self._held = [held[len(frames) :]]
            yield frames, held[: len(frames)]


class PsnrMeter(ChunkObserver):
    """Measure the PSNR of chunks against their source frames while they are encoded.

    Args:
        model: tokenizer to decode with.
        size: (height, width) of the frames.
    """

    def __init__(self, model: LoadedTokenizer, size: tuple[int, int]) -> None:
        super().__init__()
        self._decoder = Decoder(model, size)
        self._decibels, self._count = 0.0, 0
        self._originals = Originals()

    @property
    def psnr(self) -> float:
        """Mean over all frames so far, in dB."""
        return self._decibels / max(1, self._count)

    def on_pair(self, chunk: CodeChunk, frames: Frames) -> CodeChunk:
        """Decode a chunk and compare."""
        self._originals.add(frames)
        self._measure(self._decoder.decode_next(chunk))
        return chunk

    def on_end(self) -> None:
        """Compare the last frames."""
        self._measure(self._decoder.finish())

    def _measure(self, decoded: Iterator[Frames]) -> None:
        for shown, frames in self._originals.pair(decoded):
            self._decibels += float(psnr_per_frame(shown, frames).sum())
            self._count += len(frames)


class RateControl(ChunkObserver):
    """Choose the number of stages of each chunk by PSNR, by file size, or by both.

    Args:
        model: tokenizer to decode with.
        header: header of the code file, with the most stages that a chunk may have.
        rate: limits to keep.
        compress: whether parts are entropy-coded.
    """

    def __init__(
        self, model: LoadedTokenizer, header: Header, rate: Rate, compress: bool = False
    ) -> None:
        super().__init__()
        self._header, self._rate, self._compress = header, rate, compress
        self._decoder = Decoder(model, (header.transform.height, header.transform.width))
        self._bytes = len(preamble_to_bytes(header)) + FOOTER_BYTES
        self._frames = 0
        self._decibels = 0.0  # summed over frames

    @property
    def psnr(self) -> float | None:
        """Mean over all frames so far in dB; None if the rate sets no PSNR."""
        return None if self._rate.min_psnr is None else self._decibels / max(1, self._frames)

    def on_pair(self, chunk: CodeChunk, frames: Frames) -> CodeChunk:
        """Cut a chunk to the chosen stages; the result carries its coded parts."""
        parts = encode_parts(chunk.codes, self._header.format, compress=self._compress)
        self._frames += len(frames)
        sizes = np.cumsum([len(part.data) for part in parts]).tolist()
        sizes = [size + ChunkHead.length(1 + k) + ROW.itemsize for k, size in enumerate(sizes)]
        stages = len(parts)
        if self._rate.max_bpp is not None:
            left = self._allowed_bytes() - self._bytes
            stages = max(1, sum(size <= left for size in sizes))
        if self._rate.min_psnr is not None:
            stages = self._fewest_stages(chunk, frames, stages)
        self._bytes += sizes[stages - 1]
        return replace(chunk, codes=chunk.codes[:stages], parts=parts[:stages])

    def on_end(self) -> None:
        """Check the size of the file.

        Raises:
            OptionError: if one stage per chunk already exceeds `max_bpp`.
        """
        if self._rate.max_bpp is not None and self._bytes > self._allowed_bytes():
            bpp = 8 * self._bytes / self._pixels()
            expected = f"at least {bpp:.3g}, the bits per pixel of one stage"
            raise OptionError("max_bpp", f"{self._rate.max_bpp:g}", expected)

    def _fewest_stages(self, chunk: CodeChunk, frames: Frames, most: int) -> int:
        """Find the fewest stages that reach the PSNR, and keep the decoder that used them."""
        for stages in range(1, most + 1):
            decoder = self._decoder.fork()
            trial = replace(chunk, codes=chunk.codes[:stages])
            decibels = psnr_per_frame(np.concatenate(list(decoder.decode_next(trial))), frames)
            if decibels.mean() >= (self._rate.min_psnr or 0):
                break
        self._decoder = decoder
        self._decibels += float(decibels.sum())
        return stages

    def _pixels(self) -> int:
        return self._frames * self._header.transform.width * self._header.transform.height

    def _allowed_bytes(self) -> float:
        """Bytes that the frames so far may take."""
        return (self._rate.max_bpp or 0) * self._pixels() / 8


class Effort(Observer):
    """Search for latents of each model call that decode to better frames than the encoder's.

    Only encoding takes longer: the codes are ordinary ones of the same model. Each step lowers the
    squared error of the decoded frames of the call; the gradient passes straight through the
    quantizer. Steps are those of Adam, but with one scale per latent dimension instead of one per
    number, so that numbers of little effect keep their codes. The scale is a share of the
    quantization error: dimensions of many bits take small steps. A second term penalizes changes
    between latent steps, which cost most in the entropy coder: files stay about as large.

    Earlier codes of the video are fixed in the state of the decoder and later ones are unknown, so
    memory does not grow with the length of a video.

    The latents are improved for `num_stages`. Rate control may then keep fewer stages of a chunk;
    the next chunk is decoded after those.

    Args:
        model: tokenizer of the codes.
        steps: gradient steps per model call.
        num_stages: stages of codes to decode; all by default.
    """

    sequential = True  # a call needs the codes of the previous one

    def __init__(self, model: LoadedTokenizer, steps: int, num_stages: int | None = None) -> None:
        self._name, self._tokenizer, self._steps = model.info.name, model.tokenizer, steps
        self._stages: int = num_stages or model.geometry.num_stages
        self._device, self._windowed = model.device, isinstance(model.geometry.plan, Window)
        self._state = self._before = self._tokenizer.new_state()  # of the next call, of its chunk
        self._last: Tensor | None = None  # latent step before the next call

    def on_latents(self, latents: Tensor, clip: Tensor, begins: bool) -> Tensor:
        """Return latents whose codes decode to frames of the least error that was found.

        Args:
            latents: [1, D, t, h, w], as encoded; they are returned if no others are better.
            clip: frames [1, C, T, H, W] in -1..1 that they show.
            begins: whether they are the first of a video.

        Returns:
            float32 [1, D, t, h, w].

        Raises:
            OptionError: if the decoder of the model is not differentiable.
        """
        if begins:
            self._state, self._last = self._tokenizer.new_state(), None
            self._before = self._state
        with torch.inference_mode(False), torch.enable_grad():
            # copies, since tensors of inference mode cannot take part in a gradient
            found, self._state = self._search(latents.float().clone(), clip.float().clone())
        self._last = found[:, :, -1:]
        return found

    def on_chunk(self, chunk: CodeChunk) -> CodeChunk:
        """Decode a chunk again of which rate control kept fewer stages."""
        if len(chunk.codes) < self._stages and not self._windowed:
            self._state = self._before.clone()
            codes = codes_of_grid(torch.from_numpy(chunk.codes)).to(self._device)
            with torch.inference_mode(False), torch.no_grad():
                self._tokenizer.decode(codes, state=self._state)
        self._before = self._state
        return chunk

    def _search(self, first: Tensor, clip: Tensor) -> tuple[Tensor, StreamState]:
        """Return the best latents, and the state of the decoder after their codes."""
        best, lowest = first, float("inf")
        latents = first.clone().requires_grad_()
        bound = self._tokenizer.latent_bound
        unit = first.std().item() if bound is None else bound / 2
        momentum, power = torch.zeros_like(first), first.new_zeros(1, first.shape[1], 1, 1, 1)
        for step in range(self._steps):
            quantized = self._tokenizer.quantize(latents, self._stages)
            error, _ = self._decode(quantized, clip)
            if not error.requires_grad:
                expected = f"0: the decoder of {self._name} is not differentiable"
                raise OptionError("effort", self._steps, expected)
            if step == 0:
                weight = CHANGE_WEIGHT * error.item()
                rest = (quantized.detach() - first).square().mean((0, 2, 3, 4), keepdim=True).sqrt()
            if error.item() < lowest:
                best, lowest = latents.detach().clone(), error.item()
            change = self._mean_change(latents, unit, quantized.detach() != 0)
            (gradient,) = torch.autograd.grad(error + weight * change, latents)
            momentum.lerp_(gradient, 1 - MOMENTUM)
            power += gradient.square().mean((0, 2, 3, 4), keepdim=True)
            scale = LEARNING_RATE * rest * (1 - step / self._steps) / (1 - MOMENTUM ** (step + 1))
            move = scale * momentum / (power / (step + 1)).sqrt().clamp(min=1e-12)
            with torch.no_grad():
                latents.sub_(move)
                if bound is not None:
                    latents.clamp_(-bound, bound)
        with torch.no_grad():
            for found in (latents.detach(), best):
                codes = self._tokenizer.to_codes(found, self._stages)
                error, state = self._decode(codes, clip)
                if error.item() < lowest:
                    break
        return found, state

    def _mean_change(self, latents: Tensor, unit: float, used: Tensor) -> Tensor:
        """Return the mean change of the used numbers from step to step, 0..2, mostly of signs."""
        before = latents[:, :, :1] if self._last is None else self._last
        soft = torch.tanh(torch.cat((before, latents), dim=2) * (2 / unit))
        return (soft.diff(dim=2).abs() * used).sum() / used.sum()

    def _decode(self, codes_or_latents: Tensor, clip: Tensor) -> tuple[Tensor, StreamState]:
        """Decode after the earlier codes; return the squared error, a sum, and the new state."""
        state = None if self._windowed else self._state.clone()
        size = (clip.shape[3], clip.shape[4])
        frames = self._tokenizer.decode(
            codes_or_latents, num_frames=clip.shape[2], size=size, state=state
        )
        # a sum, since the gradients of a mean are too small for float16 and for Adam
        return (frames.float().clamp(-1, 1) - clip).square().sum(), state or self._state
