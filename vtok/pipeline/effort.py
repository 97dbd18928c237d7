"""Encoding effort: improve the latents of the encoder by gradient steps through the decoder.

Only encoding takes longer: the codes are ordinary ones of the same model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtok.errors import OptionError
from vtok.models.load import LoadedTokenizer
from vtok.nn.quantize import FIRST_SCALE
from vtok.nn.streaming import StreamState
from vtok.pipeline.result import CodeChunk, Observer

LEARNING_RATE = 0.06
"""Of the first step; it falls linearly to 0."""


class Effort(Observer):
    """Search for better latents of each model call of an `Encoder`, and observer of its chunks.

    Each step of Adam lowers the squared error of the decoded frames of the call; the gradient
    passes straight through the quantizer. Earlier codes of the video are fixed in the state of the
    decoder and later ones are unknown, so memory does not grow with the length of a video.

    The latents are improved for `num_stages`. Rate control may then keep fewer stages of a chunk;
    the next chunk is decoded after those.

    Args:
        model: tokenizer of the codes.
        steps: gradient steps per model call.
        num_stages: stages of codes to decode; all by default.
    """

    def __init__(self, model: LoadedTokenizer, steps: int, num_stages: int | None = None) -> None:
        self._name, self._tokenizer, self._steps = model.info.name, model.tokenizer, steps
        self._stages = num_stages or model.tokenizer.quantizer.num_stages
        self._used = torch.tensor([self._stages], device=model.device)
        self._state = self._before = StreamState()  # of the next call, and before its chunk

    def improve(self, latents: Tensor, clip: Tensor, *, begins: bool) -> Tensor:
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
            self._state = self._before = StreamState()
        with torch.inference_mode(False), torch.enable_grad():
            # copies, since tensors of inference mode cannot take part in a gradient
            found, self._state = self._search(latents.float().clone(), clip.float().clone())
        return found

    def on_chunk(self, chunk: CodeChunk) -> CodeChunk:
        """Decode a chunk again of which rate control kept fewer stages."""
        if len(chunk.codes) < self._stages:
            self._state = StreamState(dict(self._before.memory))
            codes = torch.from_numpy(chunk.codes).flatten(0, 1).unsqueeze(0)
            with torch.no_grad():
                self._tokenizer.decode(codes.to(self._used.device), state=self._state)
        self._before = self._state
        return chunk

    def _search(self, first: Tensor, clip: Tensor) -> tuple[Tensor, StreamState]:
        """Return the best latents, and the state of the decoder after their codes."""
        best, lowest = first, float("inf")
        latents = first.clone().requires_grad_()
        adam = torch.optim.Adam([latents])
        for step in range(self._steps):
            error, _ = self._decode(self._tokenizer.quantizer(latents, self._used), clip)
            if not error.requires_grad:
                expected = f"0: the decoder of {self._name} is not differentiable"
                raise OptionError("effort", self._steps, expected)
            if error.item() < lowest:
                best, lowest = latents.detach().clone(), error.item()
            (latents.grad,) = torch.autograd.grad(error, latents)
            adam.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / self._steps)
            adam.step()
            with torch.no_grad():
                latents.clamp_(-2 * FIRST_SCALE, 2 * FIRST_SCALE)
        with torch.no_grad():
            for found in (latents.detach(), best):
                codes = self._tokenizer.quantizer.latents_to_codes(found, self._stages)
                error, state = self._decode(codes, clip)
                if error.item() < lowest:
                    break
        return found, state

    def _decode(self, codes_or_latents: Tensor, clip: Tensor) -> tuple[Tensor, StreamState]:
        """Decode after the earlier codes; return the squared error, a sum, and the new state."""
        state = StreamState(dict(self._state.memory))
        size = (clip.shape[3], clip.shape[4])
        frames = self._tokenizer.decode(
            codes_or_latents, num_frames=clip.shape[2], size=size, state=state
        )
        # a sum, since the gradients of a mean are too small for float16 and for Adam
        return (frames.float().clamp(-1, 1) - clip).square().sum(), state
