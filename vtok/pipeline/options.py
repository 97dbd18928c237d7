"""What is asked of the encoder; without torch, which takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vtok.errors import UsageError
from vtok.video.decoder_process import Decoder
from vtok.video.frames import parse_size
from vtok.video.reader import VideoReader, make_request

FORMATS = ("vtok", "npy", "safetensors")
MAX_SECONDS = 1e9  # 31 years; headers hold no more


@dataclass(frozen=True)
class Rate:
    """What is asked of every chunk; where both are given, the bits come first.

    Attributes:
        min_psnr: the fewest stages that give its frames this mean PSNR in dB, or all stages.
        max_bpp: the most stages with which the file so far, header and index included, takes no
            more bits a pixel: what one chunk leaves, later ones may take.

    Raises:
        UsageError: for numbers that are not above 0.
    """

    min_psnr: float | None = None
    max_bpp: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("--min-psnr", self.min_psnr), ("--max-bpp", self.max_bpp)):
            if value is not None and not 0 < value < 1000:
                raise UsageError(f"{option} {value:g}: expected a number above 0")

    def __bool__(self) -> bool:
        return self.min_psnr is not None or self.max_bpp is not None

    def __str__(self) -> str:
        asked = {"min-psnr": self.min_psnr, "max-bpp": self.max_bpp}
        return " ".join(f"{key} {value:g}" for key, value in asked.items() if value is not None)


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode one clip.

    Attributes:
        to: what to write: vtok, npy or safetensors.
        size: short side "256" or "WIDTHxHEIGHT"; the source's own if None.
        fps: frame rate to resample to; the source's own if None.
        start_seconds: where in the source to begin.
        duration_seconds: how much of it; up to its end if None.
        num_stages: stages of codes to keep; all if None.
        num_bits: in place of `num_stages`, as many stages as fit into so many bits a position.
        min_psnr: choose for each chunk the fewest stages that give its frames this PSNR in dB.
        max_bpp: choose for each chunk the most stages that keep the file to so many bits a pixel.
        compress: entropy-code the codes of a code file where that makes them fewer bytes.
        overwrite: whether an existing output may be replaced.
        timeout_seconds: how long the reader may go without giving frames.
    """

    to: str = "vtok"
    size: str | None = None
    fps: Fraction | None = None
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    num_stages: int | None = None
    num_bits: int | None = None
    min_psnr: float | None = None
    max_bpp: float | None = None
    compress: bool = True
    overwrite: bool = False
    timeout_seconds: float = 60.0

    @property
    def rate(self) -> Rate:
        """What chooses the number of stages chunk by chunk; false where nothing does."""
        return Rate(self.min_psnr, self.max_bpp)

    def __post_init__(self) -> None:
        """Refuse what no source and no model could make sense of.

        Raises:
            UsageError: naming the option.
        """
        if self.to not in FORMATS:
            raise UsageError(f"--to {self.to}: expected one of {', '.join(FORMATS)}")
        if not 0 <= self.start_seconds <= MAX_SECONDS:
            raise UsageError(f"--start {self.start_seconds:g}: expected 0 or more seconds")
        if self.duration_seconds is not None and not 0 < self.duration_seconds <= MAX_SECONDS:
            raise UsageError(f"--duration {self.duration_seconds:g}: expected more than 0 seconds")
        if not 0 < self.timeout_seconds <= MAX_SECONDS:
            raise UsageError(f"--timeout {self.timeout_seconds:g}: expected more than 0 seconds")
        if self.rate and self.to != "vtok":
            raise UsageError(f"--to {self.to}: an array has the same stages everywhere")
        if self.size is not None:
            parse_size(self.size, 16, 9)  # of no source in particular


def open_reader(
    source: Path, options: EncodeOptions, decoder: Decoder | None = None
) -> VideoReader:
    """The frames of a source that the options ask for; `decoder` as `VideoReader` takes it."""
    return VideoReader(
        source,
        start_seconds=options.start_seconds,
        duration_seconds=options.duration_seconds,
        fps=options.fps,
        size=options.size,
        timeout_seconds=options.timeout_seconds,
        decoder=decoder,
    )


def expect_video(source: Path, options: EncodeOptions, decoder: Decoder) -> None:
    """Have a decoder begin with what `open_reader` will soon be asked for."""
    if source.is_file():  # of anything else `open_reader` says what is wrong
        start, duration = options.start_seconds, options.duration_seconds
        decoder.expect(make_request(source, start, duration, options.fps, options.size))
