#!/usr/bin/env python
"""Pack training data into a small folder, to carry to another machine.

The first seconds of each video become HEVC with a short side of at most 288 pixels, photos JPEG of
at most 420. Names are kept, since sampling groups clips by the part before two underscores. Files
that exist are kept, so a stopped call can be repeated.

    scripts/pack_clips.py corpus/video corpus/photo -o pack
    vtok train pack --out run
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from vtok.errors import VtokError
from vtok.training.sources import Source, find_sources, source_file
from vtok.video.ffmpeg import ffmpeg_path
from vtok.video.frames import parse_size
from vtok.video.reader import VideoReader, probe

X265 = ("-c:v", "libx265", "-preset", "fast", "-x265-params", "log-level=none", "-tag:v", "hvc1")
JPEG_QUALITY = 82


def shrunk(width: int, height: int, side: int) -> tuple[int, int]:
    """Return an even size whose short side is at most `side`."""
    if min(width, height) > side:
        width, height = parse_size(str(side), width, height)
    return width // 2 * 2, height // 2 * 2


def pack_video(path: Path, target: Path, side: int, seconds: float, crf: int) -> None:
    """Encode the first seconds of a video; the target appears when it is complete."""
    info = probe(path)
    width, height = shrunk(info.width, info.height, side)
    partial = target.with_suffix(".part")
    subprocess.run(
        [ffmpeg_path(), "-v", "error", "-nostdin", "-y", "-i", str(path), "-map", "0:v:0",
         "-t", str(seconds), "-vf", f"scale={width}:{height}:flags=area,format=yuv420p",
         "-crf", str(crf), *X265, "-f", "mp4", str(partial)],
        check=True,
    )  # fmt: skip
    partial.replace(target)


def pack_photo(path: Path, target: Path, side: int) -> None:
    """Write a photo as JPEG."""
    with VideoReader(path) as reader:
        picture = Image.fromarray(next(reader)[0])
    size = shrunk(*picture.size, side)
    picture.resize(size, Image.Resampling.LANCZOS).save(target, quality=JPEG_QUALITY)


def pack(source: Source, path: Path, args: argparse.Namespace) -> None:
    """Pack one source, unless that has been done."""
    kind = source.kind
    stem = Path(source.inner_name).stem[:60]
    target = args.output / kind / f"{stem}.{'jpg' if kind == 'photo' else 'mp4'}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    if kind == "photo":
        pack_photo(path, target, args.photo_side)
    else:
        pack_video(path, target, args.side, args.seconds, args.crf)


def main() -> None:
    """Pack every source, and print the size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path, help="training videos and photos")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--side", type=int, default=288, help="short side of videos in pixels")
    parser.add_argument("--photo-side", type=int, default=420)
    parser.add_argument("--seconds", type=float, default=8, help="length of a video")
    parser.add_argument("--crf", type=int, default=22, help="constant rate factor of x265")
    args = parser.parse_args()
    sources = find_sources(args.data)
    with tempfile.TemporaryDirectory(prefix="vtok-") as scratch:
        for source in sources:
            try:
                with source_file(source, Path(scratch)) as path:
                    pack(source, path, args)
            except (VtokError, subprocess.CalledProcessError, OSError) as exc:
                print(f"{source.name}: left out ({exc})", file=sys.stderr)
    files = [path for path in args.output.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{args.output}: {len(files)} files, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
