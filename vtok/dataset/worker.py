"""Encode single items, each failure becoming a record; and the threads that do so."""

from __future__ import annotations

import errno
import filecmp
import os
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from vtok._files import atomic_output
from vtok.dataset.item import Item, Record, digest, fetched, file_sha256, signature
from vtok.dataset.options import DatasetOptions
from vtok.errors import InputError, OutputError, VideoError, VtokError
from vtok.pipeline.files import CountingStream
from vtok.pipeline.result import CodeChunk, Observer, Result, make_result
from vtok.video.decoder_process import Decoder
from vtok.video.frames import Frames

if TYPE_CHECKING:
    from vtok.models.load import ModelLike

T = TypeVar("T")

PHASES = ("fetch", "decode", "model", "write")
FATAL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
"""Disk errors that would make every other item fail as well."""
GPU_BATCH = 8
AHEAD = 2
"""Tasks per worker that are running or whose result was not read yet."""


class DiskFailure(OutputError):
    """The output disk is full or broken: the run stops, and can be resumed."""


@dataclass(frozen=True)
class Task:
    """An item to encode.

    Attributes:
        item: the item.
        target: file for its codes.
        replace: allow a different existing file to be replaced.
        attempts: earlier attempts.
    """

    item: Item
    target: Path
    replace: bool
    attempts: int = 0


@dataclass(frozen=True)
class Job:
    """Settings that the workers of a run share.

    Attributes:
        model: as in `encode_dataset`.
        options: of the data set, with the number type that all workers use.
        root: folder outside which nothing may be written.
        tmp: folder for unfinished files, on the disk of the output.
        scratch: folder for files that are fetched or unpacked.
    """

    model: ModelLike
    options: DatasetOptions
    root: Path
    tmp: Path
    scratch: Path


class PhaseTimer(Observer):
    """Time spent in each phase; of nested phases, only the innermost counts.

    As an observer of an `Encoder`, it times reading frames and model calls.

    Args:
        name: name of the video, for the error.
        limit: seconds from now on after which reading frames fails; None for no limit.

    Attributes:
        seconds: by phase.
        failed: innermost phase that raised an exception.
    """

    def __init__(self, name: str, limit: float | None) -> None:
        self._name, self._limit = name, limit
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.failed: str | None = None
        self._phase: str | None = None
        self._begin = self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as a phase."""
        outer = self._switch(name)
        try:
            yield
        except Exception:
            self.failed = self.failed or name
            raise
        finally:
            self._switch(outer)

    def frames(self, batches: Iterator[Frames]) -> Iterator[Frames]:
        """Forward frames; reading them is the decode phase.

        Raises:
            VideoError: the time limit has passed.
        """
        for batch in self._follow("decode", batches):
            yield batch
            if self._limit is not None and time.perf_counter() - self._begin > self._limit:
                self.failed = "decode"
                limit = f"`clip_timeout_seconds` {self._limit:g}"
                raise VideoError(f"{self._name}: took longer than {limit}")

    def chunks(self, chunks: Iterator[CodeChunk]) -> Iterator[CodeChunk]:
        """Forward chunks; making them is the model phase."""
        return self._follow("model", chunks)

    def _follow(self, name: str, values: Iterator[T]) -> Iterator[T]:
        end = object()
        while True:
            with self.phase(name):
                value = next(values, end)
            if value is end:
                return
            yield cast(T, value)

    def _switch(self, name: str | None) -> str | None:
        """Start another phase; returns the one before."""
        now, outer = time.perf_counter(), self._phase
        if outer is not None:
            self.seconds[outer] += now - self._since
        self._phase, self._since = name, now
        return outer


class Worker:
    """Encodes items in any number of threads, each with its own decoder process.

    Attributes:
        model: loaded for all threads.
    """

    def __init__(self, job: Job) -> None:
        from vtok.models.load import resolve
        from vtok.pipeline._runtime import batched

        options = job.options
        model = resolve(job.model, device=options.device, dtype=options.dtype)
        batch = options.batch or (1 if model.device.type == "cpu" else GPU_BATCH)
        self.model, self._job = batched(model, batch), job
        self._local = threading.local()
        self._decoders: list[Decoder] = []
        self._closed = False

    def encode(self, task: Task) -> Record:
        """Encode an item; returns its record, also of a failure.

        Raises:
            DiskFailure: the output disk is full or broken.
        """
        item, begin = task.item, time.perf_counter()
        timer = PhaseTimer(item.name, self._job.options.clip_timeout_seconds)
        record = blank_record(task)
        try:
            record |= self._encode(task, timer)
            record["status"] = "ok"
        except Exception as error:  # whatever it is, the other items are still encoded
            if timer.failed in ("write", "fetch") and _is_fatal(error):
                raise DiskFailure(str(error)) from error
            record |= {**_describe(error, item.name), "phase": timer.failed}
        record["seconds"] = round(time.perf_counter() - begin, 4)
        record["phase_seconds"] = {key: round(value, 4) for key, value in timer.seconds.items()}
        return record

    def close(self) -> None:
        """End the decoder processes, also from another thread; running items fail."""
        self._closed = True
        for decoder in self._decoders:
            decoder.close()

    def _encode(self, task: Task, timer: PhaseTimer) -> Record:
        item = task.item
        with ExitStack() as stack:
            with timer.phase("fetch"):
                sign = signature(item)
                path = stack.enter_context(fetched(item, self._job.scratch))
                content = digest(item, path)
            try:
                with timer.phase("write"):
                    facts = self._write(task, path, timer)
            except VtokError as error:
                error.args = (str(error).replace(str(path), item.name),)
                raise
        return {**facts, "signature": sign, "digest": content}

    def _write(self, task: Task, path: Path, timer: PhaseTimer) -> Record:
        """Encode a local file into the target, which appears complete or not at all."""
        _check_inside(task.target, self._job.root)
        with atomic_output(task.target, True, self._job.tmp) as temporary:
            try:
                file = temporary.open("wb")
            except OSError as exc:
                raise OutputError(f"{task.target}: cannot be written ({exc.strerror})") from exc
            with file:
                stream = CountingStream(file, str(task.target))
                facts = self._encode_into(stream, task, path, timer)
                stream.flush()
            # a killed run may have left the same bytes
            is_kept = task.replace or not task.target.exists()
            if not is_kept and not filecmp.cmp(task.target, temporary, shallow=False):
                raise OutputError(
                    f"{task.target}: exists already and is not from this data set: move it, or "
                    "set `overwrite`"
                )
            return {**facts, "sha256": file_sha256(temporary)}

    def _encode_into(
        self, stream: CountingStream, task: Task, path: Path, timer: PhaseTimer
    ) -> Record:
        """Encode a local file into a stream; returns what the manifest states of it."""
        from vtok.pipeline.encode import encode_reader, frame_durations, open_reader
        from vtok.pipeline.rate import PsnrMeter

        item, settings = task.item, self._job.options
        options = replace(settings.encode, to=settings.file_format, **vars(item.part))
        options = replace(options, audio=options.audio or "none")  # sound is left out by default
        with timer.phase("decode"):
            if not hasattr(self._local, "decoder"):
                memory = settings.memory_mb
                self._local.decoder = Decoder(None if memory is None else memory << 20)
                self._decoders.append(self._local.decoder)
            if self._closed:
                raise RuntimeError("the run has ended")
            reader = open_reader(path, options, self._local.decoder)
        with reader:
            meter = PsnrMeter(self.model, reader.output_size[::-1]) if settings.psnr else None
            header, counts = encode_reader(
                reader,
                stream,
                name=os.fspath(path) if item.member is None else item.member.name,
                model=self.model,
                options=options,
                observers=[*([meter] if meter else []), timer],
            )
        if meter is not None:
            counts.psnr = meter.psnr
        durations = frame_durations(reader)
        return {
            **_facts(make_result(item.name, task.target, header, counts, 0.0)),
            **({} if durations is None else {"frame_times": durations.to_json()}),
        }


def encode_in_threads(
    job: Job, workers: int, tasks: Iterator[Task]
) -> Generator[Record, None, None]:
    """Encode tasks in threads of this process; see `vtok.dataset.scheduler.Engine`.

    Numeric libraries release the interpreter lock while they compute, and decoding happens in
    child processes, so threads keep as many cores busy.
    """
    from vtok.pipeline._runtime import many_videos  # imports torch

    worker = Worker(job)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vtok-dataset")
    running: set[Future[Record]] = set()
    with many_videos(worker.model.device):
        try:
            for task in tasks:
                running.add(pool.submit(worker.encode, task))
                if len(running) >= AHEAD * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            for future in as_completed(running):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            worker.close()  # running items fail
            pool.shutdown()


def blank_record(task: Task) -> Record:
    """Make the record of an item that failed for an unknown reason."""
    item = task.item
    return {
        "kind": "item", "id": item.id, "status": "failed", "input": item.name,
        "source": item.source, "member": item.member, "start": item.start, "end": item.end,
        "start_frame": item.start_frame, "num_frames": item.num_frames,
        "columns": item.columns, "attempts": task.attempts + 1,
    }  # fmt: skip


def worker_error(task: Task, message: str) -> Record:
    """Make the record of an item whose worker gave no result."""
    return {
        **blank_record(task), "phase": "model", "error": "WorkerError", "seconds": 0.0,
        "message": f"{task.item.name}: {message}",
    }  # fmt: skip


def _facts(result: Result) -> Record:
    """The columns of the manifest that describe the codes."""
    return {
        "frames": result.frames,
        "width": result.width,
        "height": result.height,
        "fps": f"{result.fps.numerator}/{result.fps.denominator}",
        "code_shape": list(result.code_shape),
        "bits_per_code": result.bits_per_code,
        "vocab_size": result.vocab_size,
        "bytes": result.bytes,
        "bpp": round(result.bpp, 6),
        "missing_frames": result.missing_frames,
        "note": result.note,
        "audio_bytes": result.audio_bytes or None,
        "psnr": result.psnr if result.psnr is None else round(min(result.psnr, 100.0), 3),
    }


def _describe(error: Exception, name: str) -> Record:
    """The columns of the manifest that describe an error."""
    kind = type(error).__name__
    if isinstance(error, VtokError):
        return {"error": kind, "message": str(error)}
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        where = "" if isinstance(error, MemoryError) else "the device is "
        return {"error": "MemoryError", "message": f"{name}: {where}out of memory"}
    text = " ".join(f"{kind}: {error}".split())[:200]
    return {"error": kind, "message": f"{name}: internal error: {text}"}


def _is_fatal(error: BaseException | None) -> bool:
    """True for an error of the output disk, not of a source."""
    while error is not None and not isinstance(error, InputError):
        if isinstance(error, OSError):
            return error.errno in FATAL
        error = error.__cause__
    return False


def _check_inside(target: Path, root: Path) -> None:
    """Create the folder of a target, and refuse links that lead outside the data set."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{target}: its folder cannot be created ({exc.strerror})") from exc
    inside = target.parent.resolve().is_relative_to(root.resolve())
    if not inside or target.is_symlink():
        raise OutputError(f"{target}: a link leads outside {root}: nothing is written there")
