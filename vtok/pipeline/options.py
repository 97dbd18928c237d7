"""Options of each job on one video; imports no torch, which takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from vtok._times import MAX_SECONDS, Part
from vtok.codefile.header import LATENT_TYPES, CodeFormat
from vtok.errors import OptionError, UsageError
from vtok.video.frames import DEFAULT_READING, ReadOptions, parse_size

if TYPE_CHECKING:
    from vtok.models.checkpoint import CheckpointInfo  # imports torch

FORMATS = ("vtok", "npy", "safetensors", "pt")
DUMP_KINDS = ("jsonl", "text", "bin")
MAX_EFFORT = 1000


@dataclass(frozen=True)
class Rate:
    """Limits by which the number of stages of each chunk is chosen; bits take precedence.

    Attributes:
        min_psnr: use the fewest stages that give the chunk's frames this mean PSNR in dB, or all.
        max_bpp: use the most stages with which the file so far, header and index included, has at
            most this many bits per pixel; bits that a chunk leaves are available to later ones.

    Raises:
        OptionError: for numbers that are not above 0.
    """

    min_psnr: float | None = None
    max_bpp: float | None = None

    def __post_init__(self) -> None:
        for field, value in (("min_psnr", self.min_psnr), ("max_bpp", self.max_bpp)):
            if value is not None and not 0 < value < 1000:
                raise OptionError(field, f"{value:g}", "a number above 0")

    def __bool__(self) -> bool:
        return self.min_psnr is not None or self.max_bpp is not None

    def __str__(self) -> str:
        limits = {"min-psnr": self.min_psnr, "max-bpp": self.max_bpp}
        return " ".join(f"{key} {value:g}" for key, value in limits.items() if value is not None)


class _HasPart:
    """Options with a part of a video."""

    start_seconds: float
    duration_seconds: float | None
    start_frame: int | None
    num_frames: int | None

    @property
    def part(self) -> Part:
        """The part of the video; raises as `Part` does."""
        return Part(self.start_seconds, self.duration_seconds, self.start_frame, self.num_frames)


ITEM_FIELDS = ("item_id", "item_index")
"""Options that select the item of a shard."""

PART_KEYS = ("start_frame", "num_frames")
"""Keys of a header's metadata for a part in frames."""


def part_metadata(part: Part) -> dict[str, str]:
    """Return the metadata of a header that states a part in frames."""
    given = ((key, getattr(part, key)) for key in PART_KEYS)
    return {key: str(value) for key, value in given if value is not None}


@dataclass(frozen=True)
class EncodeOptions(_HasPart):
    """Options of encoding one video.

    Attributes:
        to: output format: vtok, npy, safetensors or pt.
        size: short side "256" or "WIDTHxHEIGHT"; the source's size if None.
        fps: frame rate to resample to; the source's rate if None.
        depth_range: values that become black and white, for gray sources of 16 bits or floats.
        on_damage: choice for damaged frames: fail, skip (leave them out) or stop (end before them).
        video_stream: number of the video stream to read, from 0.
        tone_map: map HDR (PQ, HLG) to SDR; without it, HDR is an error.
        deinterlace: make whole frames of interlaced ones.
        background: color behind transparent pixels: a CSS name such as white, or #rrggbb.
        start_seconds: start time in the source.
        duration_seconds: length to encode; to the end if None.
        start_frame: number of the first frame, in place of `start_seconds`.
        num_frames: number of frames of the source, in place of `duration_seconds`.
        num_stages: stages of codes to keep; all if None.
        num_bits: bits per position, as an alternative to `num_stages`.
        min_psnr: choose the fewest stages per chunk that reach this PSNR in dB.
        max_bpp: choose the most stages per chunk that keep the file to these bits per pixel.
        fast: leave out the second pass of the encoder.
        effort: gradient steps per model call that improve the latents of the encoder, 0 to 1000.
        hysteresis: how far a latent passes the border of its cell before its code changes from that
            of the step before: 0, at the border, to 1, at the middle of the next cell.
        compress: entropy-code the codes where that makes them smaller.
        latent_dtype: type of the latents of a tokenizer without codes: float16 or float32.
        audio: copy to keep the compressed sound of the source in a code file, or none; None keeps
            it where `to` is vtok.
        overwrite: replace an existing output.
        timeout_seconds: longest time that the reader may take for the next frames.

    Raises:
        OptionError: for values that no source and no model allows.
    """

    to: str = "vtok"
    size: str | None = None
    fps: Fraction | None = None
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    start_frame: int | None = None
    num_frames: int | None = None
    num_stages: int | None = None
    num_bits: int | None = None
    min_psnr: float | None = None
    max_bpp: float | None = None
    fast: bool = False
    effort: int = 0
    hysteresis: float = 0.0
    depth_range: tuple[float, float] | None = None
    on_damage: str = "fail"
    video_stream: int = 0
    tone_map: bool = True
    deinterlace: bool = False
    background: str = "black"
    compress: bool = True
    latent_dtype: str = "float16"
    audio: str | None = None
    overwrite: bool = False
    timeout_seconds: float = 60.0

    @property
    def reading(self) -> ReadOptions:
        """Choices of what is read; raises as `ReadOptions` does."""
        return ReadOptions(**{field: getattr(self, field) for field in vars(DEFAULT_READING)})

    @property
    def keeps_sound(self) -> bool:
        """True if the sound of the source is kept."""
        return self.to == "vtok" and self.audio != "none"

    @property
    def rate(self) -> Rate:
        """Limits for the stages of each chunk; false if there are none."""
        return Rate(self.min_psnr, self.max_bpp)

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise OptionError("to", self.to, f"one of {', '.join(FORMATS)}")
        _ = self.part, self.reading  # checks them
        if not 0 < self.timeout_seconds <= MAX_SECONDS:
            raise OptionError("timeout_seconds", f"{self.timeout_seconds:g}", "more than 0 seconds")
        check_effort(self.effort)
        check_hysteresis(self.hysteresis)
        if self.latent_dtype not in LATENT_TYPES:
            raise OptionError("latent_dtype", self.latent_dtype, " or ".join(LATENT_TYPES))
        if self.audio not in (None, "copy", "none"):
            raise OptionError("audio", self.audio, "copy or none")
        if self.audio == "copy" and self.to != "vtok":
            raise OptionError("audio", self.audio, f"none: {self.to} files hold no sound")
        if self.rate and self.to != "vtok":
            raise OptionError("to", self.to, "vtok: an array has the same stages in every chunk")
        if self.size is not None:
            parse_size(self.size, 16, 9)  # checks the syntax


@dataclass(frozen=True)
class DecodeOptions(_HasPart):
    """Options of decoding one file.

    Attributes:
        num_stages: stages to use; all that the file has if None.
        num_bits: bits per position, as an alternative to `num_stages`.
        num_tokens: learned tokens per latent step to use, of a file of learned tokens.
        crf: quality of the written video's compression, 0 (lossless) to 51.
        to: format of the output: mp4, mkv, mov, webm, gif, y4m, npy or png; that of its suffix,
            and mp4 for a stream, if None.
        constant_rate: show all frames equally long, also those of a source of a variable rate.
        audio: write the sound that the file holds.
        overwrite: replace an existing output.
        salvage: decode the readable part of a cut or damaged file instead of refusing it.
        start_seconds: start time in the video. Only the codes needed are read, and the frames are
            equal to those of the whole file; a model with unbounded lookback is decoded from the
            start.
        duration_seconds: length to decode; to the end if None.
        start_frame: number of the first frame, in place of `start_seconds`.
        num_frames: number of frames, in place of `duration_seconds`.
        fps: frame rate of an array of codes that states none; 25 if None.
        size: "WIDTHxHEIGHT" of an array of codes that states none; its whole grid if None.
        item_id: id of an item in a shard of a data set.
        item_index: number of the item from 0, in place of `item_id`.

    Raises:
        OptionError: for a size that is no width and height.
    """

    num_stages: int | None = None
    num_bits: int | None = None
    num_tokens: int | None = None
    crf: int = 16
    to: str | None = None
    constant_rate: bool = False
    audio: bool = True
    overwrite: bool = False
    salvage: bool = False
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    start_frame: int | None = None
    num_frames: int | None = None
    fps: Fraction | None = None
    size: str | None = None
    item_id: str | None = None
    item_index: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and "x" not in self.size:
            raise OptionError("size", self.size, "WIDTHxHEIGHT such as 640x360")
        if self.size is not None:
            parse_size(self.size, 16, 9)  # checks the syntax

    @property
    def is_part(self) -> bool:
        """True if less than the whole video is requested."""
        return not self.part.is_whole

    def check_stated(self, name: str, *, is_shard: bool = False) -> None:
        """Refuse options for arrays and shards, for a file that states its size and frame rate.

        Raises:
            OptionError: for a frame rate or a size; for an item unless the file is in a shard.
        """
        refused = {key: f"none: {name} states its {key}" for key in ("fps", "size")}
        if not is_shard:
            refused |= dict.fromkeys(ITEM_FIELDS, f"none: {name} is no shard of a data set")
        for key, expected in refused.items():
            if (value := getattr(self, key)) is not None:
                raise OptionError(key, value, expected)


@dataclass(frozen=True)
class CutOptions(_HasPart):
    """Options of copying part of a code file.

    Attributes:
        num_stages: stages of each chunk to keep; all if None.
        num_bits: bits per position, as an alternative to `num_stages`.
        start_seconds: start time in the video.
        duration_seconds: length to keep; to the end if None.
        start_frame: number of the first frame, in place of `start_seconds`.
        num_frames: number of frames, in place of `duration_seconds`.
        max_bytes: drop the last stages until the file is no longer than this.
        audio: keep the sound.
        overwrite: replace an existing output.
    """

    num_stages: int | None = None
    num_bits: int | None = None
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    start_frame: int | None = None
    num_frames: int | None = None
    max_bytes: int | None = None
    audio: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class DumpOptions:
    """Options of dumping a code file.

    Attributes:
        kind: jsonl, text or bin.
        num_stages: stages of each chunk to write; all if None.
        num_bits: bits per position, as an alternative to `num_stages`.
        overwrite: replace an existing output.

    Raises:
        OptionError: for an unknown kind.
    """

    kind: str = "jsonl"
    num_stages: int | None = None
    num_bits: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.kind not in DUMP_KINDS:
            raise OptionError("kind", self.kind, f"one of {', '.join(DUMP_KINDS)}")


def check_effort(steps: int) -> None:
    """Check a number of gradient steps.

    Raises:
        OptionError: if it is out of range.
    """
    if not 0 <= steps <= MAX_EFFORT:
        raise OptionError("effort", steps, f"0 to {MAX_EFFORT} steps")


def check_hysteresis(width: float, model: CheckpointInfo | None = None) -> None:
    """Check the width of a hysteresis, and that a model can have one.

    Raises:
        OptionError: if it is out of range, or the model is of another architecture than vtok's.
    """
    if not 0 <= width <= 1:
        raise OptionError("hysteresis", f"{width:g}", "0 to 1")
    if width and model and model.arch != "vtok":
        expected = f"0: models such as {model.name}, of the architecture {model.arch}, have none"
        raise OptionError("hysteresis", f"{width:g}", expected)


def check_fast(fast: bool, model: CheckpointInfo) -> None:
    """Check that a model has a second pass of the encoder to leave out.

    Raises:
        UsageError: if it has none.
    """
    if fast and getattr(model.config, "second_pass", None) is None:
        raise UsageError(f"`fast` does not apply to {model.name}: its encoder has a single pass")


def choose_stages(
    num_stages: int | None, num_bits: int | None, available: int, bits_per_stage: int
) -> int:
    """Return the number of stages that options select; all if both numbers are None.

    Args:
        num_stages: number of stages.
        num_bits: bits per position, as an alternative: as many stages as fit.
        available: stages that the model or the file has.
        bits_per_stage: bits per position of one stage.

    Raises:
        UsageError: if both numbers are given, or one is out of range.
    """
    if num_stages is not None and num_bits is not None:
        raise UsageError("`num_stages` and `num_bits` set the same thing: give one of them")
    if num_bits is not None:
        if num_bits < bits_per_stage:
            raise OptionError("num_bits", num_bits, f"{bits_per_stage} or more, one stage")
        return min(num_bits // bits_per_stage, available)
    if num_stages is not None and not 1 <= num_stages <= available:
        expected = f"1 to {available}" if available > 1 else "1, the only stage"
        raise OptionError("num_stages", num_stages, expected)
    return num_stages or available


def select_stages(options: EncodeOptions, model: CheckpointInfo) -> int:
    """Return the number of stages that options select of a model; see `choose_stages`.

    Args:
        options: rate and format.
        model: to encode with.

    Raises:
        UsageError: if the model cannot have one of the options.
    """
    check_fast(options.fast, model)
    geometry, name = model.geometry, model.name
    if geometry.entries is None:
        for field in ("num_stages", "num_bits", "min_psnr", "max_bpp", "effort", "hysteresis"):
            if value := getattr(options, field):
                raise OptionError(field, value, f"none: {name} has latents and no codes")
        if options.to == "vtok":
            expected = f"safetensors, npy or pt: {name} has latents and no codes"
            raise OptionError("to", options.to, expected)
        return 1
    if geometry.num_stages == 1:
        for field in ("min_psnr", "max_bpp"):
            if (value := getattr(options, field)) is not None:
                raise OptionError(field, f"{value:g}", f"none: {name} has a single stage")
    check_hysteresis(options.hysteresis, model)
    stages, bits = geometry.num_stages, geometry.stored_bits
    return choose_stages(options.num_stages, options.num_bits, stages, bits)


def stages_of_file(layout: CodeFormat, options: DecodeOptions | CutOptions | DumpOptions) -> int:
    """Return the number of stages that options select of a code file; see `choose_stages`."""
    per_stage = layout.num_codebooks * layout.bits_per_code
    return choose_stages(options.num_stages, options.num_bits, layout.num_stages, per_stage)
