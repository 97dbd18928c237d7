"""The process that makes clips: it decodes, cuts and moves, and writes them to shared memory.

It reads lines of JSON from its standard input, the first with what to draw from, each later one
with what to make, and answers each of those with a line of JSON on its standard output.
"""

from __future__ import annotations

import io
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from vtok.errors import VtokError
from vtok.training.clips import Clip, ClipSpec
from vtok.training.decoding import PartStore
from vtok.training.frame_cache import Cache
from vtok.training.sampler import ClipMaker, most_parts
from vtok.training.sources import Source
from vtok.video.worker import Channel, die_with_parent


def map_clip(descriptor: int, spec: ClipSpec) -> Clip:
    """Map the memory of one clip, growing it to its size where needed.

    Returns:
        float32 [3, frames, crop, crop], shared between processes.
    """
    num_bytes = int(np.prod(spec.shape)) * np.dtype(np.float32).itemsize
    if os.fstat(descriptor).st_size < num_bytes:
        os.ftruncate(descriptor, num_bytes)
    return np.frombuffer(mmap.mmap(descriptor, num_bytes), np.float32).reshape(spec.shape)


def make_maker(start: dict[str, Any]) -> ClipMaker:
    """Set up what makes clips from the first line."""
    sources = [
        Source(name, Path(path), member, kind) for name, path, member, kind in start["sources"]
    ]
    spec = ClipSpec(**start["spec"])
    cache = Cache(Path(start["cache"]), start["cache_bytes"]) if start["cache"] else None
    store = PartStore(spec, most_parts(sources), cache, Path(start["scratch"]))
    return ClipMaker(sources, spec, store, start["skipped"])


def serve(maker: ClipMaker, request: dict[str, Any], target: Clip) -> dict[str, Any]:
    """Do what a request asks for; returns the answer."""
    known = set(maker.skipped)
    error = None
    try:
        if "prepare" in request:
            maker.prepare(request["prepare"])
        else:
            target[:] = maker.clip(request["step"], request["index"])
    except VtokError as exc:
        error = {"type": type(exc).__name__, "message": str(exc)}
    except Exception as exc:  # a bug or an exhausted machine: the parent must hear of it
        reason = f"{type(exc).__name__}: {exc}".partition("\n")[0]
        error = {"type": "VtokError", "message": f"making a clip failed ({reason})"}
    skipped = {name: reason for name, reason in maker.skipped.items() if name not in known}
    return {"skipped": skipped, "error": error, "full": maker.store.is_full}


def main() -> None:
    """Serve requests until the parent asks for no more."""
    channel = Channel()
    lines = io.BufferedReader(io.FileIO(0, closefd=False))
    start = json.loads(lines.readline())
    die_with_parent(start["lifeline"])
    maker, target = make_maker(start), map_clip(start["memory"], ClipSpec(**start["spec"]))
    for line in lines:
        channel.send("answer", **serve(maker, json.loads(line), target))


if __name__ == "__main__":
    main()
