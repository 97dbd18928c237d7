"""Tiny architectures for tests of the tokenizer interface, with random weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtok.errors import OptionError, UsageError
from vtok.models import registry
from vtok.models.registry import Architecture
from vtok.nn.fsq import FSQ
from vtok.nn.geometry import Geometry, Stream, Window
from vtok.nn.interface import StreamState, Tokenizer

TIME, SPACE, WIDTH = 2, 4, 8
LEVELS = (5, 4, 3)  # 60 entries


@dataclass(frozen=True)
class ToyConfig:
    """Configuration of `ToyTokenizer`: number of frames of a window, or 0; and kind of latents."""

    window: int = 0
    lookahead: int = 0
    continuous: bool = False

    def __post_init__(self) -> None:
        if type(self.lookahead) is not int or not 0 <= self.lookahead <= 1:
            raise OptionError("lookahead", self.lookahead, "0 or 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> ToyConfig:
        """Read the result of `to_dict`."""
        if set(given) != {"window", "lookahead", "continuous"}:
            raise UsageError("toy: expected window, lookahead and continuous")
        return cls(**given)


class ToyTokenizer(Tokenizer):
    """Linear maps of blocks of pixels, mixed with neighbouring steps.

    A step of the decoder also depends on the step before it; with look-ahead on the one after it;
    in a window on the mean of all steps.
    """

    arch = "toy"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config, block = config, 3 * TIME * SPACE**2
        self.window = config.window
        self.down, self.up = nn.Linear(block, WIDTH), nn.Linear(WIDTH, block)
        self.to_latents, self.from_latents = nn.Linear(WIDTH, 3), nn.Linear(3, WIDTH)
        self.fsq = FSQ(LEVELS)
        self.geometry = Geometry(
            temporal_compression=TIME,
            spatial_compression=SPACE,
            latent_dim=3,
            entries=None if config.continuous else self.fsq.entries,
            plan=Window(config.window) if config.window else Stream(1, config.lookahead),
        )

    @classmethod
    def from_config(cls, config: ToyConfig) -> ToyTokenizer:
        """Create a tokenizer with random weights."""
        return cls(config)

    def encode_clip(self, clip: Tensor, state: StreamState | None) -> Tensor:
        """Encode blocks; the first frame is repeated to fill a step."""
        if state is None or not state.started:
            clip = torch.cat([clip[:, :, :1].expand(-1, -1, TIME - 1, -1, -1), clip], dim=2)
        b, c, t, h, w = clip.shape
        blocks = clip.view(b, c, t // TIME, TIME, h // SPACE, SPACE, w // SPACE, SPACE)
        steps = self.down(blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4))
        if self.window:
            steps = steps + steps.mean(1, keepdim=True)
        return 3 * self.to_latents(steps).movedim(-1, 1)

    def decode_latents(self, latents: Tensor, state: StreamState | None, ahead: int) -> Tensor:
        """Decode blocks; see the class."""
        steps = self.from_latents(latents.movedim(1, -1))
        first = state is None or not state.started
        past = None if state is None else state.past(self)
        past = steps[:, :1] if past is None else past
        own = steps.shape[1] - ahead
        if state is not None:
            state.keep(self, steps[:, own - 1 : own].clone())
        before = torch.cat([past, steps[:, :-1]], dim=1)
        after = torch.cat([steps[:, 1:], steps[:, -1:]], dim=1)
        mixed = steps + 0.5 * before + (0.5 * after if self.config.lookahead else 0)
        if self.window:
            mixed = mixed + steps.mean(1, keepdim=True)
        blocks = self.up(mixed[:, :own]).unflatten(-1, (3, TIME, SPACE, SPACE))
        clip = blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(2, 3).flatten(3, 4).flatten(4, 5)
        return clip[:, :, TIME - 1 if first else 0 :]

    def to_codes(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Quantize to 60 entries."""
        if self.config.continuous:
            return super().to_codes(latents, num_stages)
        return self.fsq.to_codes(latents)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Convert codes to latents."""
        return super().from_codes(codes) if self.config.continuous else self.fsq.from_codes(codes)


KINDS = {
    "window": ToyConfig(window=5),
    "ahead": ToyConfig(lookahead=1),
    "plain": ToyConfig(),
    "latents": ToyConfig(continuous=True),
}


def register_toy() -> None:
    """Make checkpoints of the architecture loadable."""
    registry.ARCHITECTURES["toy"] = Architecture("toy", __name__, "ToyConfig", "ToyTokenizer")


def make_toy(kind: str, seed: int = 0) -> ToyTokenizer:
    """A tokenizer of one of `KINDS`."""
    torch.manual_seed(seed)
    return ToyTokenizer(KINDS[kind]).eval()
