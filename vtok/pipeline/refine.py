"""Observers of the encoder that change its latents: hysteresis and encoding effort."""

from __future__ import annotations

import torch
from torch import Tensor

from vtok.errors import OptionError
from vtok.models.load import LoadedTokenizer
from vtok.nn.geometry import Window
from vtok.nn.interface import StreamState
from vtok.nn.quantize import LFQ
from vtok.pipeline.codec import codes_of_grid
from vtok.pipeline.options import check_hysteresis
from vtok.pipeline.result import CodeChunk, Observer

LEARNING_RATE, MOMENTUM = 0.2, 0.9
"""Parameters of the steps of `Effort`; the rate, relative to the quantization error, falls to 0."""
CHANGE_WEIGHT = 0.9
"""Weight of the mean change of a latent, relative to the error at the first step."""


def refiners(
    model: LoadedTokenizer, effort: int, hysteresis: float, num_stages: int
) -> list[Observer]:
    """Return the observers for options of that name, of `EncodeOptions`."""
    held = Hysteresis(model, hysteresis, num_stages) if hysteresis else None
    if effort:
        return [Effort(model, effort, num_stages, held)]
    return [held] if held else []


class Hysteresis(Observer):
    """Keep the quantized value of the step before where a latent has hardly left its cell.

    Without it, noise at the border of two cells changes codes, which takes bytes and makes pictures
    flicker. A dimension keeps its value p while |x - p| <= (1 + width) h, for its latent x and half
    the width h of its cells.

    Args:
        model: tokenizer of the codes.
        width: how far latents pass a border, from 0 to 1, the middle of the next cell.
        num_stages: stages of codes; more stages have smaller cells.

    Raises:
        OptionError: if the model is of another architecture than vtok's.
    """

    sequential = True  # a call needs the codes of the previous one

    def __init__(self, model: LoadedTokenizer, width: float, num_stages: int) -> None:
        check_hysteresis(width, model.info)
        quantizer = model.tokenizer.quantizer
        assert isinstance(quantizer, LFQ)  # that of the architecture
        self._quantizer, self._width, self._stages = quantizer, width, num_stages
        self._last: Tensor | None = None  # quantized latent step before the next call

    def on_latents(self, latents: Tensor, clip: Tensor, begins: bool) -> Tensor:
        """Return quantized latents [1, D, t, h, w]; see `Observer`."""
        held = self.hold(latents, None if begins else self._last)
        self._last = held[:, :, -1:]
        return held

    def hold(self, latents: Tensor, before: Tensor | None) -> Tensor:
        """Quantize latents that follow a step.

        Args:
            latents: [1, D, t, h, w].
            before: quantized latents of the step before [1, D, 1, h, w]; None at the start.

        Returns:
            float32 [1, D, t, h, w]; zero in dimensions that the stages do not use.
        """
        latents = latents.float()
        codes = self._quantizer.latents_to_codes(latents, self._stages)
        nearest = self._quantizer.codes_to_quantized(codes)
        cells = self._quantizer.half_cells(self._stages).to(latents.device)
        reach = (1 + self._width) * cells.view(1, -1, 1, 1, 1)
        held = [] if before is None else [before]
        for x, near in zip(
            torch.split(latents, 1, dim=2), torch.split(nearest, 1, dim=2), strict=True
        ):
            if held:
                near = torch.where((x - held[-1]).abs() <= reach, held[-1], near)
            held.append(near)
        return torch.cat(held[-latents.shape[2] :], dim=2)


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
        hysteresis: of the latents that are found.
    """

    sequential = True  # a call needs the codes of the previous one

    def __init__(
        self,
        model: LoadedTokenizer,
        steps: int,
        num_stages: int | None = None,
        hysteresis: Hysteresis | None = None,
    ) -> None:
        self._hysteresis = hysteresis
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
            ends = [self._finish(found, clip) for found in (best, latents.detach())]
        _, found, state = min(ends, key=lambda end: end[0])
        return found, state

    def _finish(self, found: Tensor, clip: Tensor) -> tuple[float, Tensor, StreamState]:
        """Return the squared error of latents, these after the hysteresis, and the new state."""
        if self._hysteresis:
            found = self._hysteresis.hold(found, self._last)
        error, state = self._decode(self._tokenizer.to_codes(found, self._stages), clip)
        return error.item(), found, state

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
