"""Learned tokens as a safetensors file: written in any length, read a few steps at a time.

Two tensors: `tokens`, float16 [t, S, dim], and `times`, float64 [t, 2], at which second of the
source each step begins and ends. The metadata, canonical JSON under the one key `vtok`, holds the
header of a code file and what the tokens came from. The same tokens give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from vtok.codefile import Header
from vtok.codefile.header import dump_json, load_json
from vtok.errors import CodeFileError
from vtok.nn.config import MOST_TOKENS
from vtok.pipeline.files import open_input

FORMAT, VERSION = "vtok.tokens", 1
ORIGIN_KEY = "token_learner"
"""Key of the metadata of a code file of quantized tokens, under which their origin is JSON."""
SUFFIX = ".tokens.safetensors"
HEADER_OFFSET = 8  # a safetensors file is the length of its header, the header, the numbers
STEPS_AT_A_TIME = 1 << 12
MAX_DIM = 4096

Tokens = npt.NDArray[np.float16]
"""float16 [t, S, dim]."""


@dataclass(frozen=True)
class TokenOrigin:
    """The token pipeline that made some tokens.

    Attributes:
        name: of its checkpoint.
        learner: v10, v11 or grouped.
        config_sha256, weights_sha256: of the checkpoint.
    """

    name: str
    learner: str
    config_sha256: str
    weights_sha256: str


@dataclass(frozen=True)
class TokenFileInfo:
    """What a file of tokens says of itself.

    Attributes:
        header: as in a code file: the tokenizer, the source, and what was done to it.
        origin: the token pipeline.
        num_frames: of video.
        shape: (t, S, dim).
    """

    header: Header
    origin: TokenOrigin
    num_frames: int
    shape: tuple[int, int, int]

    def times(self, first: int, last: int) -> npt.NDArray[np.float64]:
        """When steps begin and end in the source, in seconds, float64 [last - first, 2]."""
        fps, start = self.header.transform.fps, self.header.transform.start or 0
        bounds = step_frames(np.arange(first, last + 1), self.header.format.temporal_compression)
        seconds = bounds.clip(max=self.num_frames) / float(fps) + float(start)
        return np.stack([seconds[:-1], seconds[1:]], axis=1)


def step_frames(steps: npt.NDArray[np.int64], temporal: int) -> npt.NDArray[np.int64]:
    """The first frame of each latent step: step 0 has one frame, the others `temporal`."""
    return np.maximum(0, 1 + (steps - 1) * temporal)


def write_token_file(stream: BinaryIO, info: TokenFileInfo, tokens: BinaryIO) -> None:
    """Write a whole file.

    Args:
        stream: binary, writable.
        info: what is in it.
        tokens: the numbers of all tokens, little-endian, to be read from where it stands.
    """
    steps = info.shape[0]
    times, numbers = 16 * steps, 2 * int(np.prod(info.shape))
    entries = {
        "__metadata__": {"vtok": _to_json(info)},
        "times": {"dtype": "F64", "shape": [steps, 2], "data_offsets": [0, times]},
        "tokens": {
            "dtype": "F16",
            "shape": list(info.shape),
            "data_offsets": [times, times + numbers],
        },
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_OFFSET)  # so that the numbers are aligned
    stream.write(len(text).to_bytes(HEADER_OFFSET, "little") + text)
    for first in range(0, steps, STEPS_AT_A_TIME):
        part = info.times(first, min(steps, first + STEPS_AT_A_TIME))
        stream.write(part.astype("<f8").tobytes())
    shutil.copyfileobj(tokens, stream, 1 << 20)


class TokenFile:
    """A file of tokens, opened for reading; only what is asked for is read.

    Attributes:
        info: what it says of itself.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Open a file and check all but its numbers.

        Args:
            path: the file.
            name: what errors call it.

        Raises:
            InputError: if it is missing or cannot be read.
            CodeFileError: if it is damaged, cut, or no file of tokens.
        """
        self.name = name
        with open_input(path):  # says why a file cannot be opened
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
            raise CodeFileError(f"{name}: its tensors are not those that its metadata tells of")

    def read(self, first: int, last: int, num_tokens: int | None = None) -> Tokens:
        """Some steps, float16 [last - first, S, dim]; of each the first `num_tokens`.

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
        """A run of steps, so many at a time, each with the number of its first step."""
        for first in range(steps.start, steps.stop, size):
            yield self.read(first, min(steps.stop, first + size), num_tokens), first


def is_token_file(path: Path) -> bool:
    """Whether a file is one of tokens by its metadata; false for what cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})["vtok"])
            return bool(about["format"] == FORMAT)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def token_origin(header: Header, name: str) -> TokenOrigin | None:
    """The token learner that made the codes of a file; None where they are a tokenizer's.

    Raises:
        CodeFileError: where it is not named as it should be.
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
    """Whether an input is a safetensors file rather than a code file, by its first bytes.

    Of a stream nothing is taken: it must be one that can be peeked into, as standard input can.
    """
    if isinstance(source, Path):
        if not source.is_file():
            return False  # what is read of a pipe is gone
        try:
            with source.open("rb") as file:
                head = file.read(HEADER_OFFSET + 1)
        except OSError:
            return False  # whoever opens it next says why
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
            raise CodeFileError(f"{name}: a safetensors file, but none of learned tokens")
        if about["version"] != VERSION:
            raise CodeFileError(f"{name}: of a later version of vtok: update vtok")
        header = Header.from_json(dump_json(about["header"]))
        origin = TokenOrigin(**about["tokens"])
        info = TokenFileInfo(header, origin, about["num_frames"], tuple(about["shape"]))
        _check_info(info, name)
    except (KeyError, TypeError, ValueError) as exc:
        raise CodeFileError(f"{name}: a safetensors file, but none of learned tokens") from exc
    except CodeFileError as exc:
        raise CodeFileError(f"{name}: {str(exc).removeprefix(f'{name}: ')}") from exc
    return info


def _check_info(info: TokenFileInfo, name: str) -> None:
    numbers: tuple[Any, ...] = (*info.shape, info.num_frames)
    if len(info.shape) != 3 or any(type(n) is not int or n < 1 for n in numbers):
        raise CodeFileError(f"{name}: its shape and number of frames are none")
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
