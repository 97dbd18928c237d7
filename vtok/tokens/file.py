"""Learned tokens as a safetensors file, read a few latent steps at a time.

Two tensors: `tokens`, float16 [t, S, dim], and `times`, float64 [t, 2], the start and end of each
step in seconds of the source. The metadata, canonical JSON under the single key `vtok`, holds the
header of a code file and the origin of the tokens. The same tokens give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from vtok._times import Part
from vtok.codefile.header import Header, dump_json, load_json
from vtok.errors import CodeFileError
from vtok.nn.config import MOST_TOKENS
from vtok.pipeline import Extension
from vtok.pipeline.files import HEADER_OFFSET, open_input, safetensors_head
from vtok.pipeline.inspect import origin_facts, video_facts
from vtok.tokens import ORIGIN_KEY

if TYPE_CHECKING:
    from vtok.tokens.model import TokenModels

FORMAT, VERSION = "vtok.tokens", 1
CHECKPOINT_FORMAT = "vtok.tokens_checkpoint"
STEPS_AT_A_TIME = 1 << 12
MAX_DIM = 4096

Tokens = npt.NDArray[np.float16]
"""float16 [t, S, dim]."""


@dataclass(frozen=True)
class TokenOrigin:
    """Token pipeline that made some tokens.

    Attributes:
        name: name of its checkpoint.
        learner: v10, v11 or grouped.
        config_sha256, weights_sha256: fingerprints of the checkpoint.
    """

    name: str
    learner: str
    config_sha256: str
    weights_sha256: str


@dataclass(frozen=True)
class TokenFileInfo:
    """Metadata of a file of tokens.

    Attributes:
        header: tokenizer, source and transform, as in a code file.
        origin: token pipeline.
        num_frames: frames of video.
        shape: (t, S, dim).
    """

    header: Header
    origin: TokenOrigin
    num_frames: int
    shape: tuple[int, int, int]

    def times(self, first: int, last: int) -> npt.NDArray[np.float64]:
        """Return start and end of steps in seconds of the source, float64 [last - first, 2]."""
        fps, start = self.header.transform.fps, self.header.transform.start or 0
        bounds = step_frames(np.arange(first, last + 1), self.header.format.temporal_compression)
        seconds = bounds.clip(max=self.num_frames) / float(fps) + float(start)
        return np.stack([seconds[:-1], seconds[1:]], axis=1)


def step_frames(steps: npt.NDArray[np.int64], temporal: int) -> npt.NDArray[np.int64]:
    """Return the first frame of each latent step: step 0 has one frame, the others `temporal`."""
    return np.maximum(0, 1 + (steps - 1) * temporal)


def write_token_file(stream: BinaryIO, info: TokenFileInfo, tokens: BinaryIO) -> None:
    """Write a whole file.

    Args:
        stream: binary, writable.
        info: metadata.
        tokens: little-endian float16 numbers of all tokens, read from the current position.
    """
    steps = info.shape[0]
    times, numbers = 16 * steps, 2 * int(np.prod(info.shape))
    tensors = {"times": ("F64", (steps, 2), times), "tokens": ("F16", info.shape, numbers)}
    stream.write(safetensors_head(tensors, {"vtok": _to_json(info)}))
    for first in range(0, steps, STEPS_AT_A_TIME):
        part = info.times(first, min(steps, first + STEPS_AT_A_TIME))
        stream.write(part.astype("<f8").tobytes())
    shutil.copyfileobj(tokens, stream, 1 << 20)


class TokenFile:
    """File of tokens, opened for reading; only the steps requested are read.

    Attributes:
        info: metadata.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Open a file and check everything but the numbers.

        Args:
            path: the file.
            name: name of the file in errors.

        Raises:
            InputError: if it is missing or cannot be read.
            CodeFileError: if it is damaged, cut, or no file of tokens.
        """
        self.name = name
        with open_input(path):  # raises the error if it cannot be opened
            pass
        try:
            with safe_open(path, framework="np") as file:
                self.info = _read_info(file.metadata(), name)
                self._tokens = file.get_slice("tokens")
                found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                kinds = {key: (x.get_dtype(), x.get_shape()) for key, x in found.items()}
        except (SafetensorError, OSError, ValueError) as exc:
            raise CodeFileError(f"{name}: damaged or cut, or no safetensors file ({exc})") from exc
        steps = self.info.shape[0]
        expected = {"times": ("F64", [steps, 2]), "tokens": ("F16", list(self.info.shape))}
        if kinds != expected:
            raise CodeFileError(f"{name}: its tensors do not match its metadata")

    def read(self, first: int, last: int, num_tokens: int | None = None) -> Tokens:
        """Read steps, float16 [last - first, S, dim], with the first `num_tokens` of each.

        Raises:
            CodeFileError: for numbers that are not finite.
        """
        tokens: Tokens = self._tokens[first:last, :num_tokens]
        if not np.isfinite(tokens).all():
            raise CodeFileError(
                f"{self.name}: holds NaN or infinities in steps {first} to {last - 1}: damaged"
            )
        return tokens

    def chunks(
        self, steps: range, size: int, num_tokens: int | None = None
    ) -> Iterator[tuple[Tokens, int]]:
        """Read a range of steps, `size` at a time, each part with the number of its first step."""
        for first in range(steps.start, steps.stop, size):
            yield self.read(first, min(steps.stop, first + size), num_tokens), first


def is_token_file(path: Path) -> bool:
    """Return whether the metadata of a file says that it holds tokens; False if unreadable."""
    return _format_of(path) == FORMAT


def _format_of(path: Path) -> str | None:
    try:
        with safe_open(path, framework="np") as file:
            return str(json.loads((file.metadata() or {})["vtok"])["format"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def token_origin(header: Header, name: str) -> TokenOrigin | None:
    """Return the token pipeline that made the codes of a file; None if a tokenizer made them.

    Raises:
        CodeFileError: if the metadata is malformed.
    """
    if ORIGIN_KEY not in header.metadata:
        return None
    try:
        origin = TokenOrigin(**json.loads(header.metadata[ORIGIN_KEY]))
    except (ValueError, TypeError, RecursionError) as exc:
        raise CodeFileError(f"{name}: does not name the token learner that made it") from exc
    if not all(isinstance(text, str) and text.isprintable() for text in asdict(origin).values()):
        raise CodeFileError(f"{name}: does not name the token learner that made it")
    return origin


def seems_tokens(source: Path | BinaryIO) -> bool:
    """Return whether an input is a safetensors file, not a code file, by its first bytes.

    Nothing is consumed of a stream: it must have `peek`, as standard input has.
    """
    if isinstance(source, Path):
        if not source.is_file():
            return False  # reading from a pipe would consume the data
        try:
            with source.open("rb") as file:
                head = file.read(HEADER_OFFSET + 1)
        except OSError:
            return False  # the error is raised when the file is opened
    else:
        peek = getattr(source, "peek", None)
        head = b"" if peek is None else peek(HEADER_OFFSET + 1)
    return head[HEADER_OFFSET : HEADER_OFFSET + 1] == b"{"


def _to_json(info: TokenFileInfo) -> str:
    about = {
        "format": FORMAT,
        "version": VERSION,
        "header": load_json(info.header.to_json()),
        "tokens": asdict(info.origin),
        "num_frames": info.num_frames,
        "shape": list(info.shape),
    }
    return dump_json(about).decode()


def _read_info(metadata: dict[str, str] | None, name: str) -> TokenFileInfo:
    try:
        about = load_json((metadata or {})["vtok"].encode())
        if about["format"] != FORMAT:
            raise CodeFileError(f"{name}: a safetensors file, but not of learned tokens")
        if about["version"] != VERSION:
            raise CodeFileError(f"{name}: of a later version of vtok: update vtok")
        header = Header.from_json(dump_json(about["header"]))
        origin = TokenOrigin(**about["tokens"])
        info = TokenFileInfo(header, origin, about["num_frames"], tuple(about["shape"]))
        _check_info(info, name)
    except (KeyError, TypeError, ValueError) as exc:
        raise CodeFileError(f"{name}: a safetensors file, but not of learned tokens") from exc
    except CodeFileError as exc:
        raise CodeFileError(f"{name}: {str(exc).removeprefix(f'{name}: ')}") from exc
    return info


def _check_info(info: TokenFileInfo, name: str) -> None:
    numbers: tuple[Any, ...] = (*info.shape, info.num_frames)
    if len(info.shape) != 3 or any(type(n) is not int or n < 1 for n in numbers):
        raise CodeFileError(f"{name}: its shape or number of frames is invalid")
    if not all(isinstance(text, str) and len(text) < 256 for text in asdict(info.origin).values()):
        raise CodeFileError(f"{name}: does not name the token learner that made it")
    steps, count, dim = info.shape
    if count > MOST_TOKENS or dim > MAX_DIM:
        raise CodeFileError(
            f"{name}: {count} tokens of {dim} numbers: expected at most {MOST_TOKENS} of {MAX_DIM}"
        )
    temporal = info.header.format.temporal_compression
    if not (steps - 2) * temporal + 1 < info.num_frames <= (steps - 1) * temporal + 1:
        raise CodeFileError(f"{name}: {steps} steps cannot show {info.num_frames} frames")


class _Extension(Extension):
    """Files of tokens in the pipeline."""

    def unpacker(self) -> TokenModels:
        from vtok.tokens.model import TokenModels  # imports torch

        return TokenModels()

    def describe(self, header: Header, name: str) -> dict[str, Any]:
        origin = token_origin(header, name)
        return {"token_learner": origin and origin.name}

    def inspect(self, path: Path) -> dict[str, Any] | None:
        kind = _format_of(path)
        if kind == FORMAT:
            return _inspect_tokens(path)
        return _inspect_checkpoint(path) if kind == CHECKPOINT_FORMAT else None

    def contents(self, path: Path, part: Part) -> tuple[Header, int] | None:
        if not is_token_file(path):
            return None
        info = TokenFile(path, str(path)).info
        first, end = part.frames(info.num_frames, info.header.transform.fps)
        return info.header, end - first


EXTENSION = _Extension()


def _inspect_tokens(path: Path) -> dict[str, Any]:
    info = TokenFile(path, str(path)).info
    layout = info.header.format
    seconds = max(1e-9, float(info.num_frames / info.header.transform.fps))
    size, space = path.stat().st_size, layout.spatial_compression
    return {
        "kind": "learned tokens",
        "name": str(path),
        **video_facts(info.header, info.num_frames),
        "tokens": list(info.shape),
        "tokens_per_second": round(info.shape[0] * info.shape[1] / seconds, 2),
        "token_learner": info.origin.name,
        "token_learner_sha256": info.origin.weights_sha256,
        "compression": f"{layout.temporal_compression}x{space}x{space}",
        "bytes": size,
        "kbps": round(8 * size / 1000 / seconds, 2),
        **origin_facts(info.header),
    }


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    from vtok.tokens.model import read_token_info  # imports torch

    info = read_token_info(path)
    return {
        "kind": "token learner",
        "name": info.name,
        "path": str(path),
        "bytes": path.stat().st_size,
        "learner": info.config.learner,
        "token": f"{info.config.dim} numbers, or {info.config.token_bits} bits",
        "most_tokens": info.config.max_tokens,
        "weights_sha256": info.weights_sha256,
        "config_sha256": info.config_sha256,
        "tokenizer": info.tokenizer_name,
        "tokenizer_sha256": info.tokenizer_sha256,
    }
