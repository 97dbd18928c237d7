"""The header of a code file: all that a reader needs to make the codes into the same video again.

It travels as canonical JSON (see `canonical`), so that equal headers are equal bytes.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from math import gcd
from typing import Any, NoReturn

from vtok.codefile import canonical
from vtok.codefile.canonical import MAX_INTEGER
from vtok.errors import CodeFileError

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: cannot be printed or encoded
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def refuse(key: str, value: object, expected: str) -> NoReturn:
    """Raise the `CodeFileError` of a header field that is wrong."""
    raise CodeFileError(f"header: {key} is {repr(value)[:80]}, it must be {expected}")


def check_integer(key: str, value: object, low: int, high: int) -> None:
    """Refuse all but an integer low..high."""
    if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance
        refuse(key, value, f"an integer {low}..{high}")


def check_rational(key: str, value: object) -> None:
    """Refuse all but a `Fraction` of at least 0 that JSON can hold."""
    if not isinstance(value, Fraction):
        refuse(key, value, "a Fraction")
    check_integer(f"{key} numerator", value.numerator, 0, MAX_INTEGER)
    check_integer(f"{key} denominator", value.denominator, 1, MAX_INTEGER)


def check_rate(key: str, value: object) -> None:
    """Refuse all but a `Fraction` above 0 that JSON can hold."""
    check_rational(key, value)
    if not value:
        refuse(key, value, "above 0")


def read_rational(key: str, value: object) -> Fraction:
    """The Fraction of a JSON `[numerator, denominator]` in lowest terms; refuse all else."""
    if not isinstance(value, list) or len(value) != 2:
        refuse(key, value, "[numerator, denominator]")
    top, bottom = value
    check_integer(key, top, 0, MAX_INTEGER)
    check_integer(key, bottom, 1, MAX_INTEGER)
    if gcd(top, bottom) != 1:
        refuse(key, value, "in lowest terms")
    return Fraction(top, bottom)


def check_name(key: str, value: object) -> None:
    """Refuse all but text of one line and 1 to 255 characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 255 or _CONTROL.search(value):
        refuse(key, value, "1 to 255 characters without control characters")


def check_text(key: str, value: object) -> None:
    """Refuse all but text that can be encoded."""
    if not isinstance(value, str) or _SURROGATE.search(value):
        refuse(key, value, "text")


def source_name(path: str) -> str:
    """The file name of a path as a header may hold it: no folder, no control characters."""
    name = re.split(r"[/\\]", path)[-1]
    name = _CONTROL.sub("_", name)[-255:]
    return name if name not in ("", ".", "..") else "_"


MAX_HEADER_BYTES = 1 << 20
MAX_CHUNK_CODES = 1 << 28  # all stages of a chunk together
_MAX_SIDE = 1 << 20  # pixels


@dataclass(frozen=True)
class CodeFormat:
    """How the codes are laid out, and what they compress.

    Attributes:
        codebook_size: entries of a codebook, a power of two from 2 to 2**32.
        num_codebooks: parallel codebooks K of each stage, 1..255.
        num_stages: residual stages S in this file, 1..255; a file that was cut has fewer than
            its model.
        temporal_compression: frames per latent step, 1..1024.
        spatial_compression: pixels per latent position on each side, 1..2**20.
        grid: (h, w) of the latents.
        chunk_steps: the most latent steps that a chunk holds, 1..65536.
        decoder_lookback: latent steps before a chunk that the decoder must see to give the same
            pixels as a decode from the start; None where it must see all of them.
    """

    codebook_size: int
    num_codebooks: int
    num_stages: int
    temporal_compression: int
    spatial_compression: int
    grid: tuple[int, int]
    chunk_steps: int
    decoder_lookback: int | None

    def __post_init__(self) -> None:
        check_integer("format.codebook_size", self.codebook_size, 2, 2**32)
        if self.codebook_size & (self.codebook_size - 1):
            refuse("format.codebook_size", self.codebook_size, "a power of two")
        check_integer("format.num_codebooks", self.num_codebooks, 1, 255)
        check_integer("format.num_stages", self.num_stages, 1, 255)
        check_integer("format.temporal_compression", self.temporal_compression, 1, 1024)
        check_integer("format.spatial_compression", self.spatial_compression, 1, _MAX_SIDE)
        if not isinstance(self.grid, tuple) or len(self.grid) != 2:
            refuse("format.grid", self.grid, "two integers (h, w)")
        for side in self.grid:
            check_integer("format.grid", side, 1, _MAX_SIDE)
        check_integer("format.chunk_steps", self.chunk_steps, 1, 1 << 16)
        if self.decoder_lookback is not None:
            check_integer("format.decoder_lookback", self.decoder_lookback, 0, MAX_INTEGER)
        chunk_codes = self.num_stages * self.codes_per_step * self.chunk_steps
        if chunk_codes > MAX_CHUNK_CODES:
            raise CodeFileError(
                f"header: a chunk would hold {chunk_codes} codes, at most {MAX_CHUNK_CODES} may be"
            )

    @property
    def bits_per_code(self) -> int:
        """Bits that one code takes when packed, 1..32."""
        return self.codebook_size.bit_length() - 1

    @property
    def codes_per_step(self) -> int:
        """Codes of one stage of one latent step: num_codebooks * h * w."""
        return self.num_codebooks * self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class ModelIdentity:
    """The model that made the codes, and how it was run.

    Attributes:
        name: name of the preset or checkpoint.
        config_sha256: SHA-256 of its config, 64 lowercase hex digits.
        weights_sha256: SHA-256 of its weights, likewise.
        dtype: number type it was run in, such as `float32`.
        device: kind of device it was run on, such as `cpu`.
    """

    name: str
    config_sha256: str
    weights_sha256: str
    dtype: str
    device: str

    def __post_init__(self) -> None:
        check_name("model.name", self.name)
        for key in ("config_sha256", "weights_sha256"):
            value = getattr(self, key)
            if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
                refuse(f"model.{key}", value, "64 lowercase hex digits")
        check_name("model.dtype", self.dtype)
        check_name("model.device", self.device)


@dataclass(frozen=True)
class SourceVideo:
    """The video that was encoded, as its reader gave it.

    Attributes:
        width: pixels, after rotation.
        height: pixels, after rotation.
        fps: frames per second, exact; the average where it varies.
        num_frames: frames of the whole source, or None where they were not known beforehand. The
            frames of this file are counted in its footer.
        rotation: degrees clockwise that the reader turned the frames: 0, 90, 180 or 270.
        variable_frame_rate: whether the time between frames varies.
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
        check_integer("source.width", self.width, 1, _MAX_SIDE)
        check_integer("source.height", self.height, 1, _MAX_SIDE)
        check_rate("source.fps", self.fps)
        if self.num_frames is not None:
            check_integer("source.num_frames", self.num_frames, 0, MAX_INTEGER)
        check_integer("source.rotation", self.rotation, 0, 270)
        if self.rotation % 90:
            refuse("source.rotation", self.rotation, "0, 90, 180 or 270")
        if not isinstance(self.variable_frame_rate, bool):
            refuse("source.variable_frame_rate", self.variable_frame_rate, "true or false")
        if self.name is not None:
            check_name("source.name", self.name)
            if self.name != source_name(self.name):
                refuse("source.name", self.name, "a file name without folder")


@dataclass(frozen=True)
class Transform:
    """What was done to the source before the model saw it; the decoder crops back to this.

    Attributes:
        width: pixels that the model saw, before padding to whole latent positions.
        height: pixels likewise.
        fps: frames per second of the frames that the model saw.
        start: seconds into the source at which the part begins, or None for its beginning.
        duration: seconds of the part, or None for up to the end.
        colour: colour space and range of the frames, such as `rgb full`.
    """

    width: int
    height: int
    fps: Fraction
    start: Fraction | None = None
    duration: Fraction | None = None
    colour: str = "rgb full"

    def __post_init__(self) -> None:
        check_integer("transform.width", self.width, 1, _MAX_SIDE)
        check_integer("transform.height", self.height, 1, _MAX_SIDE)
        check_rate("transform.fps", self.fps)
        if self.start is not None:
            check_rational("transform.start", self.start)
        if self.duration is not None:
            check_rational("transform.duration", self.duration)
        check_name("transform.colour", self.colour)


@dataclass(frozen=True)
class Header:
    """Everything about a code file but its codes.

    Every field is checked when the header is built, by whomever; a `CodeFileError` names the
    field that is wrong.

    Attributes:
        format: layout of the codes.
        model: the model that made them.
        source: the video that was encoded.
        transform: what was done to it first.
        writer: program and version that wrote the file, such as `vtok 1.0.0`.
        metadata: free text of the user, by key.
    """

    format: CodeFormat
    model: ModelIdentity
    source: SourceVideo
    transform: Transform
    writer: str
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.format.spatial_compression
        grid = (-(-self.transform.height // size), -(-self.transform.width // size))
        if self.format.grid != grid:
            raise CodeFileError(
                f"header: format.grid is {self.format.grid}, but {self.transform.width}x"
                f"{self.transform.height} pixels at {size} to a position make {grid}"
            )
        check_name("writer", self.writer)
        if not isinstance(self.metadata, dict):
            refuse("metadata", self.metadata, "text by key")
        for key, value in self.metadata.items():
            check_name("metadata key", key)
            check_text(f"metadata.{key}", value)

    def to_json(self) -> bytes:
        """Canonical JSON of the header.

        Raises:
            CodeFileError: if it is longer than `MAX_HEADER_BYTES`.
        """
        data = canonical.dumps(asdict(self))
        if len(data) > MAX_HEADER_BYTES:
            raise CodeFileError(
                f"header: {len(data)} bytes, at most {MAX_HEADER_BYTES} may be: shorten metadata"
            )
        return data

    @classmethod
    def from_json(cls, data: bytes, *, newer: bool = False) -> Header:
        """Read what `to_json` made.

        Args:
            data: the JSON.
            newer: whether a newer minor version wrote it: then unknown keys are ignored, and
                otherwise they are errors.

        Raises:
            CodeFileError: for JSON that is not canonical, and for every missing, unknown or wrong
                field, by name.
        """
        try:
            parsed = canonical.loads(data)
        except ValueError as exc:
            raise CodeFileError(f"header: not canonical JSON ({exc})") from exc
        top = _keys(cls, parsed, "header", newer)
        code_format = _keys(CodeFormat, top["format"], "format", newer)
        if isinstance(code_format["grid"], list):
            code_format["grid"] = tuple(code_format["grid"])
        model = _keys(ModelIdentity, top["model"], "model", newer)
        source = _keys(SourceVideo, top["source"], "source", newer)
        source["fps"] = read_rational("source.fps", source["fps"])
        transform = _keys(Transform, top["transform"], "transform", newer)
        transform["fps"] = read_rational("transform.fps", transform["fps"])
        for key in ("start", "duration"):
            if transform[key] is not None:
                transform[key] = read_rational(f"transform.{key}", transform[key])
        return cls(
            CodeFormat(**code_format),
            ModelIdentity(**model),
            SourceVideo(**source),
            Transform(**transform),
            top["writer"],
            top["metadata"],
        )


def _keys(kind: type, value: object, where: str, newer: bool) -> dict[str, Any]:
    """The JSON object as arguments of a dataclass: all of its fields, and no others."""
    if not isinstance(value, dict):
        refuse(where, value, "an object")
    names = [item.name for item in fields(kind)]
    missing = [name for name in names if name not in value]
    unknown = [name for name in value if name not in names]
    if missing:
        raise CodeFileError(f"header: {where} has no {', '.join(missing)}")
    if unknown and not newer:
        raise CodeFileError(f"header: {where} has unknown keys: {str(sorted(unknown))[:80]}")
    return {name: value[name] for name in names}
