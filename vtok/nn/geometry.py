"""Geometry of a tokenizer: its shapes, and how a video is divided into model calls.

Imports no torch, so that files and checkpoints can be described quickly.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from vtok.errors import OptionError, UsageError

MAX_SIZE = 1 << 20
LIMITS = {
    "temporal_compression": (1, 1024), "spatial_compression": (1, MAX_SIZE),
    "latent_dim": (1, MAX_SIZE), "entries": (2, 1 << 32), "num_codebooks": (1, 255),
    "num_stages": (1, 255), "size_multiple": (0, MAX_SIZE), "trained_frames": (1, 1 << 40),
}  # fmt: skip
OPTIONAL = {"entries", "trained_frames"}


@dataclass(frozen=True)
class Stream:
    """Plan of a causal tokenizer: consecutive model calls that pass a state on.

    Attributes:
        lookback: Latent steps before a frame that its pixels depend on; None if unbounded.
        lookahead: Latent steps after a step that its frames depend on.
    """

    lookback: int | None
    lookahead: int = 0


@dataclass(frozen=True)
class Window:
    """Plan of a tokenizer that cannot stream: independent windows, which may form a batch.

    Attributes:
        frames: Frames of a window, 1 + n * temporal_compression. The last window of a video is
            filled by repeating its last frame.
    """

    frames: int


@dataclass(frozen=True)
class Geometry:
    """Shapes of a tokenizer.

    T = 1 + n * temporal_compression frames give t = 1 + n latent steps.

    Attributes:
        temporal_compression: Frames per latent step.
        spatial_compression: Pixels per latent position on each side.
        latent_dim: Channels of the latents.
        entries: Entries of each codebook, which need not be a power of two; None for a continuous
            tokenizer, which has latents but no codes.
        num_codebooks: Parallel codebooks of a stage.
        num_stages: Residual stages; the first few can be decoded without the others.
        plan: How a video is divided into model calls.
        size_multiple: Height and width that a tokenizer needs to be multiples of this. Clips are
            padded; files have no room for the padding, so other frames are refused. 0 means
            `spatial_compression`, for frames of any size.
        square: Whether height and width must be equal.
        trained_frames: Longest clip of the published training, None if unknown. Longer ones work.

    Raises:
        OptionError: A number is out of range.
    """

    temporal_compression: int
    spatial_compression: int
    latent_dim: int
    entries: int | None
    num_codebooks: int = 1
    num_stages: int = 1
    plan: Stream | Window = Stream(None)
    size_multiple: int = 0
    square: bool = False
    trained_frames: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not (value is None and name in OPTIONAL):
                _check(name, value, low, high)
        if isinstance(self.plan, Window):
            _check("window", self.plan.frames, 1, MAX_SIZE)
            if (self.plan.frames - 1) % self.temporal_compression:
                expected = f"1 + a multiple of {self.temporal_compression} frames"
                raise OptionError("window", self.plan.frames, expected)
        else:
            if self.plan.lookback is not None:
                _check("lookback", self.plan.lookback, 0, MAX_SIZE)
            _check("lookahead", self.plan.lookahead, 0, 255)
        multiple = self.size_multiple or self.spatial_compression
        if multiple % self.spatial_compression:
            raise OptionError(
                "size_multiple", multiple, f"a multiple of {self.spatial_compression}"
            )

    @property
    def codebook_size(self) -> int:
        """Entries rounded up to a power of two, as code files store it; 0 without codes."""
        return 0 if self.entries is None else 1 << (self.entries - 1).bit_length()

    @property
    def bits_per_code(self) -> int:
        """Bits of a packed code; 0 without codes."""
        return max(0, self.codebook_size.bit_length() - 1)

    @property
    def stored_bits(self) -> int:
        """Bits that a code file stores of a position and stage; 0 without codes."""
        return self.num_codebooks * self.bits_per_code

    @property
    def bits_per_stage(self) -> float:
        """Information of a position and stage in bits: num_codebooks * log2(entries)."""
        return 0.0 if self.entries is None else self.num_codebooks * math.log2(self.entries)

    @property
    def lookback(self) -> int | None:
        """Latent steps that a decoder must see before a step; None if all of them."""
        return self.plan.lookback if isinstance(self.plan, Stream) else 0

    @property
    def lookahead(self) -> int:
        """Latent steps that a decoder must see after a step."""
        return self.plan.lookahead if isinstance(self.plan, Stream) else 0

    @property
    def window_steps(self) -> int | None:
        """Latent steps of a window; None for a stream."""
        if isinstance(self.plan, Stream):
            return None
        return 1 + (self.plan.frames - 1) // self.temporal_compression

    @property
    def compression(self) -> str:
        """Frames, rows and columns of a latent position, such as `4x8x8`."""
        return f"{self.temporal_compression}x{self.spatial_compression}x{self.spatial_compression}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Compute (h, w) of the latents of frames, padded to `size_multiple`."""
        space = self.spatial_compression
        multiple = self.size_multiple or space
        rows, columns = (-(-side // multiple) * (multiple // space) for side in (height, width))
        return rows, columns

    def other_size(self, height: int, width: int) -> str | None:
        """Describe the sizes of frames that files can have, if this one is not among them."""
        if self.square and height != width:
            return "a square"
        multiple = self.size_multiple
        if multiple > self.spatial_compression and (height % multiple or width % multiple):
            return f"multiples of {multiple}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; the plan by its kind."""
        kind = type(self.plan).__name__.lower()
        return {**asdict(self), "plan": {"kind": kind, **asdict(self.plan)}}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Geometry:
        """Read the result of `to_dict`.

        Raises:
            UsageError: A field is unknown, missing or out of range.
        """
        _check_keys("geometry", given, {field.name for field in fields(cls)})
        plan = given["plan"]
        kind = plan.get("kind") if isinstance(plan, dict) else None
        kinds: dict[Any, type[Stream | Window]] = {"stream": Stream, "window": Window}
        if kind not in kinds:
            raise OptionError("plan", str(plan)[:80], "a stream or a window")
        _check_keys("plan", plan, {"kind", *(field.name for field in fields(kinds[kind]))})
        if not isinstance(given["square"], bool):
            raise OptionError("square", str(given["square"])[:80], "true or false")
        arguments = {key: value for key, value in plan.items() if key != "kind"}
        return cls(**{**given, "plan": kinds[kind](**arguments)})


def _check(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise OptionError(name, str(value)[:80], f"a whole number from {low} to {high}")


def _check_keys(what: str, given: object, expected: set[str]) -> None:
    if not isinstance(given, dict) or set(given) != expected:
        found = sorted(map(str, given)) if isinstance(given, dict) else given
        raise UsageError(
            f"{what}: fields {str(found)[:80]}: expected {', '.join(sorted(expected))}"
        )
