"""Writers of frames: a video, one picture per frame, or an array."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vtok._files import atomic_output
from vtok.errors import OptionError, OutputError
from vtok.video.frames import Frames
from vtok.video.images import PICTURE_SUFFIXES, write_picture
from vtok.video.suffixes import OUTPUT_FORMATS, find_numbered, has_number, with_number
from vtok.video.writer import FrameWriter, VideoWriter

_NPY_HEAD = 128  # bytes of the header, which is written last


def is_picture_pattern(output: Path | BinaryIO) -> bool:
    """Return True for a name of numbered pictures, such as `frame_%04d.png`."""
    if not isinstance(output, Path) or output.suffix.lower() not in PICTURE_SUFFIXES:
        return False
    return has_number(output)


def open_writer(
    output: Path | BinaryIO,
    *,
    width: int,
    height: int,
    fps: Fraction,
    crf: int,
    to: str | None = None,
    overwrite: bool = False,
    spool: bool = False,
) -> FrameWriter:
    """Open a writer of frames, atomic as `VideoWriter` is.

    Args:
        output: Video or picture to write, with the suffix of a known format; a `.npy` file, which
            gets uint8 [T, H, W, 3]; a pattern such as `frame_%04d.png`, which gets a picture for
            each frame, numbered from 0; or a binary stream.
        width: Width in pixels.
        height: Height in pixels.
        fps: Exact frame rate; npy and pictures do not store it.
        crf: Quality of videos; see `VideoWriter`.
        to: One of `OUTPUT_FORMATS`; by default that of the suffix, and mp4 for a stream.
        overwrite: Replace existing files.
        spool: Times or sound may follow the frames; see `VideoWriter`.

    Raises:
        OptionError: `to` is unknown, or not the format of the output.
        UsageError, OutputError: As for `VideoWriter`.
    """
    if to is not None and to not in OUTPUT_FORMATS:
        raise OptionError("to", to, f"one of {', '.join(OUTPUT_FORMATS)}")
    shape = (height, width, 3)
    if isinstance(output, Path):
        if to is not None and output.suffix.lower() != f".{to}":
            raise OptionError("to", to, f"the format of {output}, or a name that ends in .{to}")
        if is_picture_pattern(output):
            return PictureWriter(output, shape, overwrite)
        if output.suffix.lower() == ".npy":
            return ArrayWriter(output, shape, overwrite)
    elif to == "png":
        raise OptionError("to", to, "a video format or npy: pictures need a folder or a pattern")
    elif to == "npy":
        return ArrayWriter(output, shape, overwrite)
    return VideoWriter(
        output,
        width=width,
        height=height,
        fps=fps,
        crf=crf,
        to=to,
        overwrite=overwrite,
        spool=spool and to != "y4m",
    )


class PictureWriter(FrameWriter):
    """Writer of one picture per frame; the pictures get their names when all are written.

    Args:
        output: Pattern with one number, such as `frame_%04d.png`; its folder must exist.
        shape: (height, width, 3).
        overwrite: Replace pictures whose names fit the pattern; others of them are removed.

    Raises:
        OutputError: Such pictures exist, or the folder cannot be written.
    """

    def __init__(self, output: Path, shape: tuple[int, int, int], overwrite: bool) -> None:
        super().__init__(output, shape)
        self._pattern, self._overwrite = output, overwrite
        self._check_existing()
        try:
            temporary = tempfile.TemporaryDirectory(".part", ".vtok-", output.parent)
        except OSError as exc:
            raise self._failed(exc) from exc
        self._folder = Path(self._stack.enter_context(temporary))

    def _add(self, frames: Frames) -> None:
        for number, frame in enumerate(frames, start=self.frames_written):
            path, suffix = self._folder / str(number), self._pattern.suffix.lower()
            write_picture(path, frame, suffix, self._name)

    def _finish(self) -> None:
        self._check_existing()
        moved: list[Path] = []
        try:
            for number in range(self.frames_written):
                target = with_number(self._pattern, number)
                (self._folder / str(number)).replace(target)
                moved.append(target)
        except OSError:
            for path in () if self._overwrite else moved:
                with suppress(OSError):
                    path.unlink()
            raise
        for path in set(find_numbered(self._pattern).values()) - set(moved):
            path.unlink()

    def _check_existing(self) -> None:
        found = {} if self._overwrite else find_numbered(self._pattern)
        for path in found.values():
            raise OutputError(
                f"{path}: exists already (`overwrite` replaces it, or give another name)"
            )


class ArrayWriter(FrameWriter):
    """Writer of a npy file, uint8 [T, H, W, 3].

    Args:
        output: File, or a binary stream, which receives the array at the end.
        shape: (height, width, 3).
        overwrite: Replace an existing file.

    Raises:
        OutputError: The file exists or cannot be written.
    """

    def __init__(
        self, output: Path | BinaryIO, shape: tuple[int, int, int], overwrite: bool
    ) -> None:
        super().__init__(output, shape)
        with ExitStack() as stack:
            try:
                if isinstance(output, Path):
                    path = stack.enter_context(atomic_output(output, overwrite))
                    self._file: BinaryIO = stack.enter_context(path.open("w+b"))
                else:
                    self._file = stack.enter_context(tempfile.TemporaryFile(prefix="vtok-"))
                self._file.write(bytes(_NPY_HEAD))
            except OSError as exc:
                raise self._failed(exc) from exc
            self._stack = stack.pop_all()

    def _add(self, frames: Frames) -> None:
        self._file.write(np.ascontiguousarray(frames).data)

    def _finish(self) -> None:
        shape = (self.frames_written, *self._shape)
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
        start = b"\x93NUMPY\x01\x00" + (_NPY_HEAD - 10).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(start + text.ljust(_NPY_HEAD - 11).encode() + b"\n")
        self._file.flush()
        if not isinstance(self._output, Path):
            self._file.seek(0)
            shutil.copyfileobj(self._file, self._output, 1 << 20)
            self._output.flush()
