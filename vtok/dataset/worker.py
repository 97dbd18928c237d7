"""One clip from its source to its codes: whatever goes wrong becomes a record, and nothing more."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from vtok._files import atomic_output
from vtok.dataset.fetch import digest, fetched, signature
from vtok.dataset.item import Entry
from vtok.errors import OutputError, VideoError, VtokError
from vtok.pipeline.files import CountingStream, open_reader
from vtok.pipeline.result import CodeChunk, Observer, Result, make_result
from vtok.video.decoder_process import Decoder
from vtok.video.frames import Frames

if TYPE_CHECKING:
    from vtok.models.load import LoadedTokenizer
    from vtok.pipeline.options import EncodeOptions

T = TypeVar("T")

STAGES = ("fetch", "decode", "model", "write")


class Clock(Observer):
    """Seconds by stage: the innermost stage that is entered is the one that runs.

    Attributes:
        seconds: so far, by stage.
        failed: the innermost stage that an exception came out of.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.failed: str | None = None
        self._stack: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time in the block for a stage, and not for the one around it."""
        self._switch()
        self._stack.append(name)
        try:
            yield
        except Exception:
            self.failed = self.failed or name
            raise
        finally:
            self._switch()
            self._stack.pop()

    def frames(self, batches: Iterator[Frames]) -> Iterator[Frames]:
        """Forward frames; the time to produce them counts for the stage `decode`."""
        return self.follow("decode", batches)

    def chunks(self, chunks: Iterator[CodeChunk]) -> Iterator[CodeChunk]:
        """Forward chunks; the time to produce them counts for the stage `model`."""
        return self.follow("model", chunks)

    def follow(self, name: str, items: Iterator[T]) -> Iterator[T]:
        """Pass items on; the time that it takes to make them counts for a stage."""
        while True:
            with self.stage(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


def current_signature(entry: Entry, record: Record, recipe: str, scratch: Path) -> str | None:
    """The signature of a clip's source, if its codes are what they would become now; else None.

    The bytes are read only where size or time of change say that they may be others. A source
    that is gone cannot become anything else: its codes stay.

    Args:
        entry: the clip as it is now.
        record: what the journal says of it.
        recipe: digest of how codes are made now.
        scratch: folder for what is fetched or unpacked.
    """
    known = str(record.get("signature"))
    part = (record.get("start"), record.get("end"))
    if record.get("recipe") != recipe or part != (entry.start, entry.end):
        return None
    try:
        found = signature(entry)
        if found == known:
            return found
        with fetched(entry, scratch) as path:
            return found if digest(entry, path) == record.get("digest") else None
    except VtokError:
        return known


Record = dict[str, Any]
"""What became of a clip, as plain JSON types: a line of the journal."""

FATAL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
"""Errors of a disk that every other clip would meet as well."""


class DiskFailure(OutputError):
    """The disk of the output takes no more: the run has to stop, and can be resumed."""


@dataclass(frozen=True)
class Task:
    """A clip to encode.

    Attributes:
        entry: the clip.
        target: file for its codes.
        replace: whether a file that is there may be replaced by another.
        attempts: how often it was tried before.
    """

    entry: Entry
    target: Path
    replace: bool
    attempts: int = 0


@dataclass(frozen=True)
class Settings:
    """How clips are encoded.

    Attributes:
        options: of the codec; the part of the source comes from each entry.
        root: folder that nothing may be written out of.
        tmp: folder for half files, on the disk of the output.
        scratch: folder for what is fetched or unpacked.
        measure: whether to decode the codes again and measure the PSNR.
        memory_limit: most bytes of a decoding process; None sets no limit.
        clip_seconds: most seconds for one clip; None sets no limit.
    """

    options: EncodeOptions
    root: Path
    tmp: Path
    scratch: Path
    measure: bool = False
    memory_limit: int | None = None
    clip_seconds: float | None = None


class ClipEncoder:
    """Encodes one clip after another, with a decoding process of its own.

    Args:
        model: encodes.
        settings: how.
    """

    def __init__(self, model: LoadedTokenizer, settings: Settings) -> None:
        self._model, self._settings = model, settings
        self._decoder = Decoder(settings.memory_limit)

    def encode(self, task: Task) -> Record:
        """Encode a clip; returns what became of it.

        Raises:
            DiskFailure: the output's disk takes no more.
        """
        entry, clock, begin = task.entry, Clock(), time.perf_counter()
        record = blank_record(task)
        try:
            record |= self._encode(task, clock)
            record["status"] = "ok"
        except MemoryError:
            record |= {"error": "MemoryError", "message": f"{entry.name}: out of memory"}
        except Exception as error:  # whatever a clip brings about, the others are still encoded
            if _errno(error) in FATAL and clock.failed in ("write", "fetch"):
                raise DiskFailure(str(error)) from error
            record |= describe(error, entry.name)
        if record["status"] == "failed":
            record["stage"] = clock.failed
        record["seconds"] = round(time.perf_counter() - begin, 4)
        record["spent"] = {name: round(value, 4) for name, value in clock.seconds.items()}
        return record

    def close(self) -> None:
        """End the decoding process, also from another thread; a clip under way fails."""
        self._decoder.close()

    def _encode(self, task: Task, clock: Clock) -> Record:
        settings, entry = self._settings, task.entry
        with clock.stage("fetch"):
            sign = signature(entry)
            source = fetched(entry, settings.scratch)
            path = source.__enter__()
        try:
            with clock.stage("fetch"):
                content = digest(entry, path)
            with clock.stage("write"):
                result, sha256 = self._write(task, path, clock)
        except VtokError as error:
            raise type(error)(str(error).replace(str(path), entry.name)) from error
        finally:
            source.__exit__(None, None, None)
        return {**facts(result), "signature": sign, "digest": content, "sha256": sha256}

    def _write(self, task: Task, path: Path, clock: Clock) -> tuple[Result, str]:
        """Encode a file of this machine into the target, which appears whole or not at all."""
        _check_inside(task.target, self._settings.root)
        with atomic_output(task.target, True, self._settings.tmp) as temporary:
            try:
                file = temporary.open("wb")
            except OSError as exc:
                raise OutputError(f"{task.target}: cannot be written ({exc.strerror})") from exc
            with file:
                hashing = _Hashing(file)
                stream = CountingStream(cast(BinaryIO, hashing), str(task.target))
                result = self._encode_into(stream, task, path, clock)
                stream.flush()
            if not task.replace and _differs(task.target, temporary):
                raise OutputError(
                    f"{task.target}: is there already, and not from this data set: move it, "
                    "or --overwrite"
                )
        return result, hashing.sha256

    def _encode_into(self, stream: Any, task: Task, path: Path, clock: Clock) -> Result:
        from vtok.pipeline.encode import encode_reader
        from vtok.pipeline.rate import PsnrMeter

        settings, entry = self._settings, task.entry
        options = replace(
            settings.options,
            start_seconds=entry.start_seconds,
            duration_seconds=entry.duration_seconds,
        )
        with clock.stage("decode"):
            reader = open_reader(path, options, self._decoder)
        with reader:
            name = os.fspath(path) if entry.member is None else entry.member.name
            width, height = reader.output_size
            meter = PsnrMeter(self._model, (height, width)) if settings.measure else None
            header, counts = encode_reader(
                reader, stream, name=name, model=self._model, options=options,
                observers=[
                    *([meter] if meter else []),
                    TimeLimit(entry.name, settings.clip_seconds),
                    clock,
                ],
            )  # fmt: skip
        if meter is not None:
            counts.psnr = meter.psnr
        return make_result((entry.name, str(task.target)), header, counts, 0.0)


class TimeLimit(Observer):
    """Observer that fails a video which takes too long.

    Args:
        name: name of the video, for the error.
        seconds: most seconds from the start; None sets no limit.
    """

    def __init__(self, name: str, seconds: float | None) -> None:
        self._name, self._seconds, self._begin = name, seconds, time.monotonic()

    def frames(self, batches: Iterator[Frames]) -> Iterator[Frames]:
        """Forward frames, and check the time after each batch."""
        for batch in batches:
            yield batch
            if self._seconds is not None and time.monotonic() - self._begin > self._seconds:
                raise VideoError(
                    f"{self._name}: took longer than --clip-timeout {self._seconds:g} s"
                )


def blank_record(task: Task) -> Record:
    """The record of a clip of which no more is known than that it was tried."""
    entry = task.entry
    return {
        "kind": "clip", "id": entry.id, "status": "failed", "input": entry.name,
        "source": entry.source, "member": entry.member, "start": entry.start, "end": entry.end,
        "columns": entry.columns, "attempts": task.attempts + 1,
    }  # fmt: skip


def facts(result: Result) -> Record:
    """What a manifest says of an encoded clip."""
    return {
        "frames": result.frames,
        "width": result.width,
        "height": result.height,
        "fps": f"{result.fps.numerator}/{result.fps.denominator}",
        "code_shape": list(result.code_shape),
        "bits_per_code": result.bits_per_code,
        "bytes": result.bytes,
        "bpp": round(result.bpp, 6),
        "psnr": result.psnr if result.psnr is None else round(min(result.psnr, 100.0), 3),
    }


def describe(error: Exception, name: str) -> Record:
    """An error in the words of a manifest."""
    if isinstance(error, VtokError):
        return {"error": type(error).__name__, "message": str(error)}
    kind = type(error).__name__
    if kind == "OutOfMemoryError":
        return {"error": "MemoryError", "message": f"{name}: the device is out of memory"}
    text = " ".join(f"{kind}: {error}".split())[:200]
    return {"error": kind, "message": f"{name}: internal error: {text}"}


def _errno(error: BaseException | None) -> int | None:
    """The number of the system's error that an error comes from."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        error = error.__cause__
    return None


def _check_inside(target: Path, root: Path) -> None:
    """Make the folder of a target; a link must not lead out of the data set.

    Raises:
        OutputError: it cannot be made, or is elsewhere.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{target}: its folder cannot be made ({exc.strerror})") from exc
    inside = target.parent.resolve().is_relative_to(root.resolve())
    if not inside or target.is_symlink():
        raise OutputError(f"{target}: a link leads out of {root}: nothing is written there")


def _differs(target: Path, made: Path) -> bool:
    """Whether there is another file; one with the same bytes was left by a run that was killed."""
    return target.exists() and not filecmp.cmp(target, made, shallow=False)


class _Hashing:
    """A file that computes the SHA-256 of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._found = file, hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._found.hexdigest()

    def write(self, data: Any) -> int:
        taken = self._file.write(data)
        self._found.update(data)
        return taken

    def flush(self) -> None:
        self._file.flush()
