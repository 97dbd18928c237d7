"""Header of a code file: everything that a decoder needs besides the codes.

Stored as canonical JSON, so that equal headers are equal bytes: ASCII, sorted keys, no spaces,
integers of at most 2**53 - 1, no floats. A rational is `[numerator, denominator]` in lowest terms.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from math import gcd
from typing import Any, NoReturn, TypeVar

from vtok.errors import CodeFileError

MAX_INTEGER = 2**53 - 1  # the largest integer that every JSON reader keeps exactly
MAX_HEADER_BYTES = 1 << 20
MAX_CHUNK_CODES = 1 << 28  # all stages of a chunk together
_MAX_SIDE = 1 << 20  # pixels
LATENT_TYPES = ("float16", "float32")
ADDED = ("entries", "decoder_lookahead", "window")  # to the format in version 1.2
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: cannot be printed or encoded
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def dump_json(value: object) -> bytes:
    """Write canonical JSON of dicts, lists, strings, integers, booleans, None and Fractions."""

    def _pair(fraction: Fraction) -> list[int]:
        return [fraction.numerator, fraction.denominator]

    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_pair)
    return text.encode("ascii")


def load_json(data: bytes, *, canonical: bool = True) -> Any:
    """Read JSON without floats and long integers.

    Raises:
        ValueError: for anything else, and if `canonical` for any spelling but that of `dump_json`.
    """
    try:
        value = json.loads(
            data.decode("ascii" if canonical else "utf-8"),
            parse_int=_parse_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
        if canonical and dump_json(value) != data:
            raise ValueError("not in canonical form")
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    return value


def source_name(path: str) -> str:
    """Return the file name of a path without folder or control characters, as headers store it."""
    name = re.split(r"[/\\]", path)[-1]
    name = _CONTROL.sub("_", name)[-255:]
    return name if name not in ("", ".", "..") else "_"


def rational(seconds: float | Fraction | None) -> Fraction | None:
    """Convert seconds to a fraction, exact to the microsecond, as headers store it."""
    return None if seconds is None else Fraction(seconds).limit_denominator(1_000_000)


@dataclass(frozen=True)
class CodeFormat:
    """Layout of the codes, and what they compress.

    Attributes:
        codebook_size: entries of a codebook, a power of two from 2 to 2**32.
        num_codebooks: parallel codebooks K of each stage, 1..255.
        num_stages: residual stages S in this file, 1..255; a cut file may have fewer than its
            model.
        temporal_compression: frames per latent step, 1..1024.
        spatial_compression: pixels per latent position on each side, 1..2**20.
        grid: (h, w) of the latents.
        chunk_steps: maximum latent steps of a chunk, 1..65536.
        decoder_lookback: latent steps that the decoder must see before a chunk to give the same
            pixels as a decode from the start; None if it must see all of them.
        entries: entries of a codebook that is no power of two, whose codes are below it;
            `codebook_size` is then the next power of two. None if all entries exist.
        decoder_lookahead: latent steps that the decoder must see after a step, 0..255.
        window: latent steps of a window, a group of frames that is decoded by itself: each is one
            chunk and starts a segment. None for a stream.
    """

    codebook_size: int
    num_codebooks: int
    num_stages: int
    temporal_compression: int
    spatial_compression: int
    grid: tuple[int, int]
    chunk_steps: int
    decoder_lookback: int | None
    entries: int | None = None
    decoder_lookahead: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        _check_integer("format.codebook_size", self.codebook_size, 2, 2**32)
        if self.codebook_size & (self.codebook_size - 1):
            _refuse("format.codebook_size", self.codebook_size, "a power of two")
        _check_integer("format.num_codebooks", self.num_codebooks, 1, 255)
        _check_integer("format.num_stages", self.num_stages, 1, 255)
        _check_integer("format.temporal_compression", self.temporal_compression, 1, 1024)
        _check_integer("format.spatial_compression", self.spatial_compression, 1, _MAX_SIDE)
        if not isinstance(self.grid, tuple) or len(self.grid) != 2:
            _refuse("format.grid", self.grid, "two integers (h, w)")
        for side in self.grid:
            _check_integer("format.grid", side, 1, _MAX_SIDE)
        _check_integer("format.chunk_steps", self.chunk_steps, 1, 1 << 16)
        if self.decoder_lookback is not None:
            _check_integer("format.decoder_lookback", self.decoder_lookback, 0, MAX_INTEGER)
        if self.entries is not None:
            half, most = self.codebook_size // 2, self.codebook_size - 1
            _check_integer("format.entries", self.entries, half + 1, most)
        _check_integer("format.decoder_lookahead", self.decoder_lookahead, 0, 255)
        if self.window is not None:
            _check_integer("format.window", self.window, 1, 1 << 16)
        chunk_codes = self.num_stages * self.codes_per_step * self.chunk_steps
        if chunk_codes > MAX_CHUNK_CODES:
            raise CodeFileError(
                f"header: a chunk would hold {chunk_codes} codes, the limit is {MAX_CHUNK_CODES}"
            )

    @property
    def num_entries(self) -> int:
        """Number of different codes, at most `codebook_size`."""
        return self.entries or self.codebook_size

    @property
    def added(self) -> dict[str, int]:
        """Keys of version 1.2 and their values; each is left out of a header at its default."""
        values = {name: getattr(self, name) for name in ADDED}
        return {name: value for name, value in values.items() if value}

    @property
    def bits_per_code(self) -> int:
        """Bits of a packed code, 1..32."""
        return self.codebook_size.bit_length() - 1

    @property
    def codes_per_step(self) -> int:
        """Codes of one stage of a latent step: num_codebooks * h * w."""
        return self.num_codebooks * self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class LatentFormat:
    """Layout of the latents of a tokenizer without codes, and what they compress.

    Attributes:
        latent_dim: channels, 1..2**20.
        dtype: float16 or float32.
        temporal_compression, spatial_compression, grid: as in `CodeFormat`.
        decoder_lookahead, window: likewise.
    """

    latent_dim: int
    dtype: str
    temporal_compression: int
    spatial_compression: int
    grid: tuple[int, int]
    decoder_lookahead: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        _check_integer("format.latent_dim", self.latent_dim, 1, 1 << 20)
        if self.dtype not in LATENT_TYPES:
            _refuse("format.dtype", self.dtype, " or ".join(LATENT_TYPES))
        # the other fields have the limits of codes
        CodeFormat(
            2, 1, 1, self.temporal_compression, self.spatial_compression, self.grid, 1, None,
            None, self.decoder_lookahead, self.window,
        )  # fmt: skip


@dataclass(frozen=True)
class ModelIdentity:
    """The model that made the codes, and its number type and device.

    Attributes:
        name: name of the preset or checkpoint.
        config_sha256: SHA-256 of its config, 64 lowercase hex digits.
        weights_sha256: SHA-256 of its weights, likewise.
        dtype: number type it ran in, such as `float32`.
        device: kind of device it ran on, such as `cpu`.
    """

    name: str
    config_sha256: str
    weights_sha256: str
    dtype: str
    device: str

    def __post_init__(self) -> None:
        _check_name("model.name", self.name)
        for key in ("config_sha256", "weights_sha256"):
            value = getattr(self, key)
            if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
                _refuse(f"model.{key}", value, "64 lowercase hex digits")
        _check_name("model.dtype", self.dtype)
        _check_name("model.device", self.device)


@dataclass(frozen=True)
class SourceVideo:
    """The encoded video, as read.

    Attributes:
        width: pixels, after rotation.
        height: pixels, after rotation.
        fps: frames per second, exact; the average where it varies.
        num_frames: frames of the whole source, or None if unknown when the header was written. The
            footer has the number of frames in this file.
        rotation: degrees clockwise that the reader turned the frames: 0, 90, 180 or 270.
        variable_frame_rate: true if the time between frames varies.
        name: file name without folder, or None; see `source_name`.
    """

    width: int
    height: int
    fps: Fraction
    num_frames: int | None = None
    rotation: int = 0
    variable_frame_rate: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        _check_integer("source.width", self.width, 1, _MAX_SIDE)
        _check_integer("source.height", self.height, 1, _MAX_SIDE)
        _check_rational("source.fps", self.fps, positive=True)
        if self.num_frames is not None:
            _check_integer("source.num_frames", self.num_frames, 0, MAX_INTEGER)
        _check_integer("source.rotation", self.rotation, 0, 270)
        if self.rotation % 90:
            _refuse("source.rotation", self.rotation, "0, 90, 180 or 270")
        if not isinstance(self.variable_frame_rate, bool):
            _refuse("source.variable_frame_rate", self.variable_frame_rate, "true or false")
        if self.name is not None:
            _check_name("source.name", self.name)
            if self.name != source_name(self.name):
                _refuse("source.name", self.name, "a file name without folder")


@dataclass(frozen=True)
class Transform:
    """Changes made to the source before encoding; decoders crop to this size.

    Attributes:
        width, height: pixels before padding to whole latent positions.
        fps: frames per second of the encoded frames.
        start: start of the part in seconds from the start of the source; None for the start.
        duration: seconds of the part; None for the rest.
        colour: colour space and range of the frames, such as `rgb full`.
    """

    width: int
    height: int
    fps: Fraction
    start: Fraction | None = None
    duration: Fraction | None = None
    colour: str = "rgb full"

    def __post_init__(self) -> None:
        _check_integer("transform.width", self.width, 1, _MAX_SIDE)
        _check_integer("transform.height", self.height, 1, _MAX_SIDE)
        _check_rational("transform.fps", self.fps, positive=True)
        if self.start is not None:
            _check_rational("transform.start", self.start)
        if self.duration is not None:
            _check_rational("transform.duration", self.duration)
        _check_name("transform.colour", self.colour)


H = TypeVar("H", bound="VideoHeader")


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """Fields that the headers of code files and of latents have in common. Building one checks all.

    Raises:
        CodeFileError: naming the wrong field.

    Attributes:
        model: model that encoded.
        source: the encoded video.
        transform: changes made to it first.
        writer: program and version that wrote the file, e.g. `vtok 1.0.0`.
        metadata: free text of the user, by key.
    """

    model: ModelIdentity
    source: SourceVideo
    transform: Transform
    writer: str
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("writer", self.writer)
        if not isinstance(self.metadata, dict):
            _refuse("metadata", self.metadata, "text by key")
        for key, value in self.metadata.items():
            _check_name("metadata key", key)
            if not isinstance(value, str) or _SURROGATE.search(value):
                _refuse(f"metadata.{key}", value, "text")

    def to_json(self) -> bytes:
        """Write the header as canonical JSON.

        Raises:
            CodeFileError: if longer than `MAX_HEADER_BYTES`.
        """
        value = asdict(self)
        for name in ADDED:
            if not value["format"].get(name):
                value["format"].pop(name, None)
        data = dump_json(value)
        if len(data) > MAX_HEADER_BYTES:
            raise CodeFileError(
                f"header: {len(data)} bytes, the limit is {MAX_HEADER_BYTES}: shorten metadata"
            )
        return data

    @classmethod
    def from_json(cls: type[H], data: bytes, *, newer: bool = False) -> H:
        """Read the result of `to_json`.

        Args:
            data: the JSON.
            newer: true if a newer minor version wrote it. Unknown keys are then ignored; else
                they are errors.

        Raises:
            CodeFileError: for JSON that is not canonical, and naming a missing, unknown or wrong
                field.
        """
        try:
            parsed = load_json(data)
        except ValueError as exc:
            raise CodeFileError(f"header: not canonical JSON ({exc})") from exc
        header: H = _build(cls, parsed, "header", newer)
        return header

    def _check_grid(self, layout: CodeFormat | LatentFormat) -> None:
        size = layout.spatial_compression
        grid = (-(-self.transform.height // size), -(-self.transform.width // size))
        if layout.grid != grid:
            raise CodeFileError(
                f"header: format.grid is {layout.grid}, but {self.transform.width}x"
                f"{self.transform.height} pixels at {size} to a position make {grid}"
            )


@dataclass(frozen=True, kw_only=True)
class Header(VideoHeader):
    """Header of a code file.

    Attributes:
        format: layout of the codes.
    """

    format: CodeFormat

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_grid(self.format)


@dataclass(frozen=True, kw_only=True)
class LatentHeader(VideoHeader):
    """Header of a file of latents.

    Attributes:
        format: layout of the latents.
        num_frames: frames of video.
    """

    format: LatentFormat
    num_frames: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_grid(self.format)
        _check_integer("num_frames", self.num_frames, 0, MAX_INTEGER)


_PARTS = {
    kind.__name__: kind
    for kind in (CodeFormat, LatentFormat, ModelIdentity, SourceVideo, Transform)
}


def _build(kind: type, value: object, where: str, newer: bool) -> Any:
    """Make a dataclass from a JSON object that has exactly its fields."""
    if not isinstance(value, dict):
        _refuse(where, value, "an object")
    names = [item.name for item in fields(kind)]
    missing = [name for name in names if name not in value and name not in ADDED]
    unknown = [name for name in value if name not in names]
    if missing:
        raise CodeFileError(f"header: {where} has no {', '.join(missing)}")
    if unknown and not newer:
        raise CodeFileError(f"header: {where} has unknown keys: {str(sorted(unknown))[:80]}")
    arguments = {}
    for item in fields(kind):
        if item.name not in value:
            continue
        part = value[item.name]
        if item.name in ADDED and not part:
            _refuse(f"{where}.{item.name}", part, "left out")
        if item.type in _PARTS:
            part = _build(_PARTS[item.type], part, item.name, newer)
        elif "Fraction" in item.type and part is not None:
            part = _read_rational(f"{where}.{item.name}", part)
        elif item.type == "tuple[int, int]" and isinstance(part, list):
            part = tuple(part)
        arguments[item.name] = part
    return kind(**arguments)


def _refuse(key: str, value: object, expected: str) -> NoReturn:
    raise CodeFileError(f"header: {key} is {repr(value)[:80]}, it must be {expected}")


def _check_integer(key: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance
        _refuse(key, value, f"an integer {low}..{high}")


def _check_rational(key: str, value: object, *, positive: bool = False) -> None:
    """Check for a `Fraction` of at least 0, or above 0, that JSON can hold."""
    if not isinstance(value, Fraction):
        _refuse(key, value, "a Fraction")
    _check_integer(f"{key} numerator", value.numerator, 0, MAX_INTEGER)
    _check_integer(f"{key} denominator", value.denominator, 1, MAX_INTEGER)
    if positive and not value:
        _refuse(key, value, "above 0")


def _read_rational(key: str, value: object) -> Fraction:
    """Read a JSON `[numerator, denominator]` in lowest terms."""
    if not isinstance(value, list) or [type(part) for part in value] != [int, int]:
        _refuse(key, value, "[numerator, denominator]")
    if value[1] < 1 or gcd(*value) != 1:
        _refuse(key, value, "in lowest terms")
    return Fraction(*value)


def _check_name(key: str, value: object) -> None:
    """Check for text of one line and 1 to 255 characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 255 or _CONTROL.search(value):
        _refuse(key, value, "1 to 255 characters without control characters")


def _parse_integer(digits: str) -> int:
    # Check the length first: converting a million digits takes minutes.
    if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
        _refuse_number(digits)
    return int(digits)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not an integer of 53 bits")
