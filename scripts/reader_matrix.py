"""Compare the video reader with decord and the ffmpeg program: frames, times, speed per thread.

    python scripts/reader_matrix.py [FOLDER ...] [--speed] [--json]

Without a folder, the files of tests/test_video_reader.py are made and read. Each reader decodes
every frame in one thread and scales it to the size of the file. Frames are compared pixel by pixel
with those of the ffmpeg program, times with its time stamps to 1 ms. Speed is frames per second of
processor time, over the files that all readers read; with --speed, over larger files only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from vtok.errors import VtokError  # noqa: E402
from vtok.video.container import FrameStream, read_index  # noqa: E402
from vtok.video.ffmpeg import ffmpeg_path  # noqa: E402
from vtok.video.images import find_demuxer  # noqa: E402

Read = tuple[list[Any], list[float]]
"""Frames uint8 [H, W, 3], and seconds from the first one."""
LARGER = {
    "h264_720p.mp4": ("1280x720", ("-c:v", "libx264", "-preset", "veryfast", "-g", "60")),
    "hevc_720p.mkv": ("1280x720", ("-c:v", "libx265", "-x265-params", "log-level=error")),
    "vp9_360p.webm": ("640x360", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8")),
    "mpeg4_360p.avi": ("640x360", ("-c:v", "mpeg4", "-q:v", "3")),
}


def read_vtok(path: Path) -> Read:
    """Read with the package's reader, in this process."""
    index = read_index(path, demuxer=find_demuxer(path))
    stream = FrameStream(path, index)
    timed = [(picture(), float(at)) for at, picture in stream.read(stream.width, stream.height)]
    return [frame for frame, _ in timed], [at for _, at in timed]


def read_decord(path: Path) -> Read:
    """Read with decord, forwards."""
    decord = import_module("decord")  # installed for this comparison only
    decord.logging.set_level(decord.logging.QUIET)
    video = decord.VideoReader(str(path), num_threads=1, fault_tol=1e-9)
    starts = video.get_frame_timestamp(range(len(video)))[:, 0]
    frames = [video.next().asnumpy() for _ in range(len(video))]
    return frames, (starts - starts[0]).tolist()


def read_ffmpeg(path: Path) -> Read:
    """Read with the ffmpeg program, through a pipe."""
    command = [ffmpeg_path(), "-hide_banner", "-nostdin", "-threads", "1", "-i", f"file:{path}"]
    command += [
        "-map",
        "0:V:0",
        "-fps_mode",
        "passthrough",
        "-vf",
        "format=rgb24,showinfo=checksum=0",
    ]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    done = subprocess.run(command, capture_output=True, check=False)
    log = done.stderr.decode(errors="replace")
    sizes = re.findall(r" s:(\d+)x(\d+) ", log)
    times = [float(text) for text in re.findall(r"pts_time:(-?[\d.]+)", log)]
    if not sizes:
        raise ValueError("no frames")
    frames, at = [], 0
    for width, height in ((int(w), int(h)) for w, h in sizes):
        pixels = np.frombuffer(done.stdout, np.uint8, height * width * 3, at)
        frames.append(pixels.reshape(height, width, 3))
        at += len(pixels)
    return frames, [seconds - times[0] for seconds in times]


READERS: dict[str, Callable[[Path], Read]] = {
    "ffmpeg": read_ffmpeg,
    "vtok": read_vtok,
    "decord": read_decord,
}


def processor_seconds() -> float:
    """Return the processor time of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(path: Path, reader: str) -> dict[str, Any]:
    """Read a file in a child process, which may crash; the frames are under `read`."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_measure, args=(path, reader, there))
    child.start()
    there.close()
    try:
        row: dict[str, Any] = here.recv()
    except EOFError:
        child.join()
        return {"error": f"crashed ({-(child.exitcode or 0)})"}
    child.join()
    return row


def _measure(path: Path, reader: str, connection: Any) -> None:
    begin = processor_seconds()
    try:
        frames, times = READERS[reader](path)
    except Exception as exc:  # each reader raises its own types
        reason = str(exc) if isinstance(exc, VtokError) else f"{type(exc).__name__}: {exc}"
        connection.send({"error": " ".join(reason.replace(str(path), path.name).split())[:80]})
        return
    seconds = processor_seconds() - begin
    connection.send({"frames": len(frames), "seconds": seconds, "read": (frames, times)})


def compare(row: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Add to a row the frames and times that differ from those of another reader."""
    if "read" not in row or "read" not in wanted:
        return
    (ours, times), (theirs, stamps) = row["read"], wanted["read"]
    pairs = list(zip(ours, theirs, strict=False))
    row["other_pixels"] = sum(not np.array_equal(one, other) for one, other in pairs)
    row["other_times"] = sum(abs(a - b) > 0.001 for a, b in zip(times, stamps, strict=False))


def make_files(folder: Path, *, larger: bool) -> None:
    """Make the files of the tests."""
    from test_video_reader import CASES
    from videos import run_ffmpeg

    for name, case in CASES.items():
        case.build(folder / name)
    for name, (size, arguments) in LARGER.items() if larger else ():
        source = ("-f", "lavfi", "-i", f"testsrc2=s={size}:d=4:r=30")
        run_ffmpeg(*source, *arguments, "-pix_fmt", "yuv420p", folder / name)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--speed", action="store_true", help="measure with larger files")
    parser.add_argument("--json", action="store_true", help="print one JSON object per file")
    options = parser.parse_args()
    with suppress(ImportError):
        import_module("decord")  # not in the first child's time
    read_frames, spent = dict.fromkeys(READERS, 0), dict.fromkeys(READERS, 0.0)
    with tempfile.TemporaryDirectory() as temporary:
        if not options.folders or options.speed:
            make_files(Path(temporary), larger=options.speed)
        folders = [*options.folders, Path(temporary)]
        paths = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
        for path in paths:
            begin = time.monotonic()
            rows = {reader: measure(path, reader) for reader in READERS}
            for reader in ("vtok", "decord"):
                compare(rows[reader], rows["ffmpeg"])
            if all("read" in row for row in rows.values()) and (
                not options.speed or path.name in LARGER
            ):
                for reader, row in rows.items():
                    read_frames[reader] += row["frames"]
                    spent[reader] += row["seconds"]
            for row in rows.values():
                row.pop("read", None)
            show(path, rows, time.monotonic() - begin, as_json=options.json)
    speeds = {name: round(read_frames[name] / max(spent[name], 1e-9), 1) for name in READERS}
    if options.json:
        print(json.dumps({"frames_per_second": speeds}))
    else:
        print("frames/s of processor time:", ", ".join(f"{n} {s:g}" for n, s in speeds.items()))


def show(path: Path, rows: dict[str, dict[str, Any]], seconds: float, *, as_json: bool) -> None:
    """Print the rows of a file."""
    name = os.fsencode(path.name).decode(errors="replace")
    if as_json:
        print(json.dumps({"file": name, "wall": round(seconds, 2), **rows}))
        return
    texts = []
    for reader, row in rows.items():
        text = row.get("error") or f"{row['frames']} frames"
        for what in ("other_pixels", "other_times"):
            text += f", {row[what]} {what.replace('_', ' ')}" if row.get(what) else ""
        texts.append(f"{reader}: {text}")
    print(f"{name:24} {' | '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
