"""Codes of many clips in one file: each clip waits on disk until all of its shard have ended.

Which clips share a shard is put down in the journal before any of them is encoded, and the clips
lie in it in order of ids; so its bytes do not depend on who encoded what when, nor on how often
the run was stopped. A clip that failed and is done later is put in its place, in a shard written
anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from vtok._files import atomic_output
from vtok.dataset.folder import DatasetFolder, Part
from vtok.dataset.item import Entry
from vtok.dataset.plan import Plan
from vtok.dataset.worker import Record

Clips = Iterator[tuple[Record, bytes]]
"""What a shard is made of: what the journal says of a clip, and its codes as they were staged."""


class ShardFormat(Protocol):
    """How clips lie in a shard."""

    codec_format: str
    """What `EncodeOptions.to` is for each clip."""

    def names(self, number: int) -> list[str]:
        """File names of a shard; it is there when the last of them is."""

    def write(self, paths: list[Path], clips: Clips) -> None:
        """Write a shard, with the same bytes for the same clips."""

    def read(self, paths: list[Path]) -> Iterator[tuple[str, bytes]]:
        """Ids and codes of a shard, in order, as they were staged."""


class Shards:
    """Shards of so many clips; a `Sink`.

    Args:
        folder: of the data set.
        part: whose clips these are.
        plan: filled.
        form: how clips lie in a shard.
        size: clips in a shard.
        note: puts a record into the journal and the plan.
    """

    def __init__(
        self,
        folder: DatasetFolder,
        part: Part,
        plan: Plan,
        form: ShardFormat,
        size: int,
        note: Callable[[Record], None],
    ) -> None:
        self._folder, self._part, self._plan = folder, part, plan
        self._form, self._size, self._note = form, size, note
        self._pending: dict[int, int] = {}
        self._found: dict[int, bool] = {}
        self.codec_format = form.codec_format

    def is_there(self, record: Record) -> bool:
        """See `Sink`."""
        row = self._plan.one("SELECT shard, sha256 FROM written WHERE id = ?", record["id"])
        if row is not None and row[1] == record["sha256"] and self._exists(row[0]):
            return True
        path = self._folder.root / str(record.get("staged"))
        return path.is_file() and path.stat().st_size == record["bytes"]

    def begin(self) -> None:
        """See `Sink`: also writes shards all of whose clips had ended when a run was stopped."""
        plan = self._plan
        counts = plan.all("SELECT shard, count(*) FROM member JOIN todo USING (id) GROUP BY shard")
        self._pending = dict(counts)
        self._remove_leftovers()
        for (shard,) in plan.all(
            "SELECT DISTINCT member.shard FROM member JOIN known USING (id) "
            "LEFT JOIN written USING (id) WHERE known.status = 'ok' "
            "AND known.sha256 IS NOT written.sha256 ORDER BY 1"
        ):
            if shard not in self._pending and self._is_own(shard):
                self._write(shard)

    def order(self, entries: Iterator[Entry]) -> Iterator[tuple[Entry, Path]]:
        """See `Sink`: clips without a shard fill new ones."""
        fresh: list[Entry] = []
        for entry in entries:
            if self._shard_of(entry.id) is not None:
                yield entry, self._staged(entry.id)
                continue
            fresh.append(entry)
            if len(fresh) == self._size:
                yield from self._opened(fresh)
                fresh = []
        if fresh:
            yield from self._opened(fresh)

    def placed(self, record: Record) -> Record:
        """See `Sink`."""
        if record["status"] != "ok":
            return {**record, "output": None}
        shard = self._shard_of(record["id"])
        assert shard is not None
        staged = self._staged(record["id"]).relative_to(self._folder.root)
        return {**record, "output": self._form.names(shard)[0], "staged": str(staged)}

    def ended(self, record: Record) -> None:
        """See `Sink`."""
        shard = self._shard_of(record["id"])
        if shard is None:
            return
        self._pending[shard] -= 1
        if not self._pending[shard]:
            del self._pending[shard]
            self._write(shard)

    def finish(self) -> None:
        """See `Sink`."""
        self._remove_leftovers()

    def _opened(self, entries: list[Entry]) -> Iterator[tuple[Entry, Path]]:
        number = self._next_number()
        ids = [entry.id for entry in entries]
        self._note({"kind": "shard", "shard": number, "ids": ids})
        self._pending[number] = len(ids)
        for entry in entries:
            yield entry, self._staged(entry.id)

    def _next_number(self) -> int:
        """The first number of this part that no shard has yet."""
        (last,) = self._plan.one("SELECT max(shard) FROM member") or (None,)
        number = 0 if last is None else last + 1
        return number + (self._part.index - number) % self._part.count

    def _is_own(self, shard: int) -> bool:
        return shard % self._part.count == self._part.index

    def _write(self, shard: int) -> None:
        """Write a shard of all of its clips that are encoded."""
        ids = [
            id_
            for (id_,) in self._plan.all(
                "SELECT id FROM member JOIN known USING (id) "
                "WHERE shard = ? AND status = 'ok' ORDER BY id",
                shard,
            )
        ]
        paths = [self._folder.root / name for name in self._form.names(shard)]
        found: dict[str, str] = {}
        files: dict[str, str] = {}
        if ids:
            with ExitStack() as stack:
                temporary = [
                    stack.enter_context(atomic_output(path, True, self._folder.tmp(self._part)))
                    for path in reversed(paths)  # the last one appears last
                ]
                self._form.write(temporary[::-1], self._clips(shard, ids, found))
                made = zip(reversed(paths), temporary, strict=True)
                files = {path.name: file_sha256(half) for path, half in made}
        self._note({"kind": "written", "shard": shard, "clips": found, "files": files})
        self._found[shard] = bool(ids)
        for id_ in found:
            self._staged(id_).unlink(missing_ok=True)

    def _clips(self, shard: int, ids: list[str], found: dict[str, str]) -> Clips:
        """Clips with their codes, out of the staging folder or the shard that is there."""
        old = self._old(shard)
        held = next(old, None)
        for id_ in ids:
            record = self._plan.record(id_) or {}
            while held is not None and held[0] < id_:
                held = next(old, None)
            data = self._read_staged(record)
            if data is None and held is not None and held[0] == id_:
                data = held[1] if _sha256(held[1]) == record["sha256"] else None
            if data is None:
                reason = f"{record['input']}: its codes vanished before their shard was written"
                self._note({
                    **record, "status": "failed", "stage": "plan", "output": None,
                    "error": "OutputError", "message": f"{reason}: run again",
                })  # fmt: skip
                continue
            found[id_] = record["sha256"]
            yield record, data

    def _old(self, shard: int) -> Iterator[tuple[str, bytes]]:
        """What a shard holds already; nothing of one that is damaged."""
        if not self._exists(shard):
            return
        with suppress(OSError, ValueError, KeyError):
            yield from self._form.read(
                [self._folder.root / name for name in self._form.names(shard)]
            )

    def _read_staged(self, record: Record) -> bytes | None:
        try:
            data = (self._folder.root / record["staged"]).read_bytes()
        except (OSError, KeyError):
            return None
        return data if _sha256(data) == record["sha256"] else None

    def _exists(self, shard: int) -> bool:
        if shard not in self._found:
            names = self._form.names(shard)
            self._found[shard] = all((self._folder.root / name).is_file() for name in names)
        return self._found[shard]

    def _shard_of(self, id_: str) -> int | None:
        row = self._plan.one("SELECT shard FROM member WHERE id = ?", id_)
        return None if row is None else int(row[0])

    def _staged(self, id_: str) -> Path:
        name = _sha256(id_.encode())
        return self._folder.staged(self._part) / name[:2] / f"{name}.part"

    def _remove_leftovers(self) -> None:
        """Remove staged codes that are in their shard, or of clips that have to be done again."""
        needed = {
            _sha256(id_.encode())
            for (id_,) in self._plan.all(
                "SELECT known.id FROM known LEFT JOIN written USING (id) "
                "WHERE status = 'ok' AND known.sha256 IS NOT written.sha256"
            )
        }
        for path in self._folder.staged(self._part).glob("*/*.part"):
            if path.stem not in needed:
                path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            found.update(data)
    return found.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def about_clip(record: Record) -> Record:
    """What a shard says of a clip: nothing that differs from run to run."""
    keys = ("id", "input", "start", "end", "frames", "width", "height", "fps", "code_shape",
            "bits_per_code", "columns")  # fmt: skip
    return {key: record.get(key) for key in keys}


def as_line(about: Record) -> bytes:
    """As JSON with the same bytes every time."""
    return json.dumps(about, sort_keys=True).encode() + b"\n"
