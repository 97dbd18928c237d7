#!/usr/bin/env python
"""Read every kind of odd input, and measure clips by seconds, sound and times of frames.

    scripts/odd_files.py                                     prints the table of kinds
    scripts/odd_files.py --only lost cut                     kinds whose names contain one of these
    scripts/odd_files.py --figures                           prints the figures
    scripts/odd_files.py --write docs/reading_and_writing.md fills the page with both

Each input of tests/kinds.py is made and read, and encoded and decoded with vtok-base. The numbers
drawn in the frames, and the times of the frames to 1 ms, must be those of the table both times; an
input that cannot be read must give its one line. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from benchmark_tools import log, markdown_table  # noqa: E402
from fill_page import filled  # noqa: E402
from kinds import GROUPS  # noqa: E402
from makers import Kind  # noqa: E402
from videos import read_barcodes  # noqa: E402

from vtok.dataset.item import Item, fetched  # noqa: E402
from vtok.dataset.sources import Inputs, find_items  # noqa: E402
from vtok.errors import VtokError  # noqa: E402
from vtok.models.load import LoadedTokenizer, load  # noqa: E402
from vtok.pipeline.decode import decode_file  # noqa: E402
from vtok.pipeline.encode import encode_file  # noqa: E402
from vtok.pipeline.options import EncodeOptions  # noqa: E402
from vtok.video.decoder_process import Decoder  # noqa: E402
from vtok.video.reader import VideoReader  # noqa: E402

EXACT = 1.001e-3  # seconds
PARTS = ("start_seconds", "duration_seconds", "start_frame", "num_frames", "fps")


@dataclass(frozen=True)
class Came:
    """Frames that came of an input, or the line of its error."""

    numbers: list[int]
    times: list[float]  # seconds from the first frame
    rate: Fraction | None = None  # None if it varies
    missing: int = 0
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Row:
    """Result of a kind of input."""

    group: str
    kind: str
    frames: str
    remark: str  # notes or the error
    wrong: str  # what differs from the table; empty if nothing does


@cache
def model() -> LoadedTokenizer:
    """Load the model that frames go through."""
    return load("vtok-base")


def read(path: Path, kind: Kind, decoder: Decoder) -> Came:
    """Read a file with the package's reader."""
    options = EncodeOptions(**kind.options)
    part = {name: getattr(options, name) for name in PARTS}
    try:
        with VideoReader(path, **part, reading=options.reading, decoder=decoder) as reader:
            numbers = read_barcodes(np.concatenate(list(reader)))
    except VtokError as exc:
        return Came([], [], error=str(exc))
    times = [float(number / reader.output_fps) for number in range(len(numbers))]
    rate: Fraction | None = reader.output_fps
    if reader.durations is not None:
        base, ticks = reader.durations
        times = [float(tick * base) for tick in accumulate(ticks[:-1], initial=0)]
        rate = None
    missing = reader.missing_frames or 0
    return Came(numbers, times, rate, missing, tuple(reader.notes))


def encode(source: Path, kind: Kind, output: Path) -> str:
    """Encode an input, perhaps by a command; return the text of an error."""
    if kind.command:
        vtok = [sys.executable, "-m", "vtok", "encode", "--bits", "72", "-o", str(output)]
        command = ["sh", "-c", kind.command.format(source), "sh", *vtok]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return f"exit {done.returncode}: {done.stderr.strip()}" if done.returncode else ""
    try:
        encode_file(source, output, model=model(), options=EncodeOptions(**kind.options))
    except VtokError as exc:
        return str(exc)
    return ""


def decode(codes: Path) -> Came:
    """Decode a code file to a video, and read that with PyAV."""
    film = codes.with_suffix(".mkv")
    decode_file(codes, film, model=model())
    with av.open(str(film)) as container:
        frames = list(container.decode(video=0))
    times = [float(frame.pts * frame.time_base) for frame in frames]
    pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return Came(read_barcodes(pixels), [time - times[0] for time in times])


def difference(came: Came, kind: Kind) -> str:
    """Describe how frames, times or error differ from those of the table; empty if they do not."""
    if kind.error or came.error:
        right = bool(kind.error) and kind.error in came.error and "\n" not in came.error
        return "" if right else f"error {came.error!r}, expected {kind.error!r}"
    if came.numbers != list(kind.numbers):
        return f"frames {came.numbers}, expected {list(kind.numbers)}"
    off = max(abs(a - b) for a, b in zip(came.times, kind.times, strict=True))
    return "" if off < EXACT else f"times are off by {off:.4f} s"


def check(group: str, kind: Kind, folder: Path, decoder: Decoder) -> Row:
    """Make, read, encode and decode an input."""
    source = kind.make(folder)
    wrong, came = [], Came([], [])
    for number, path in enumerate(videos(source, kind, folder)):
        came = read(path, kind, decoder)
        wrong.append(difference(came, kind))
        found = any(kind.note in note for note in came.notes) if kind.note else not came.notes
        wrong.append("" if found else f"notes {came.notes}, expected {kind.note!r}")
        codes = folder / f"{number}.vtok"
        error = encode(path, kind, codes)
        again = Came([], [], error=error) if error else decode(codes)
        if text := difference(again, kind):
            wrong.append(f"after encode and decode: {text}")
    return Row(group, kind.name, frames(came), remark(came, folder), "; ".join(filter(None, wrong)))


def videos(source: Path, kind: Kind, folder: Path) -> Iterator[Path]:
    """Give the videos of an input."""
    if not kind.is_set:
        yield source
        return
    for item in find_items(Inputs((str(source),))):
        assert isinstance(item, Item), item
        with fetched(item, folder) as path:
            yield path


def frames(came: Came) -> str:
    """Describe the frames that came of an input."""
    if came.error:
        return ""
    count = f"{len(came.numbers)}"
    if came.missing:
        count += f" of {len(came.numbers) + came.missing}"
    return f"{count}, at {came.rate}/s" if came.rate else f"{count}, at their times"


def remark(came: Came, folder: Path) -> str:
    """Format notes or the error without the path."""
    texts = [came.error] if came.error else came.notes
    return "; ".join(text.replace(f"{folder}/", "").replace("|", "\\|") for text in texts)


def run(names: Sequence[str]) -> Iterator[Row]:
    """Check the kinds whose names contain one of these texts; all without any."""
    decoder = Decoder()
    for group, kinds in GROUPS.items():
        for kind in kinds:
            if names and not any(name in kind.name for name in names):
                continue
            with tempfile.TemporaryDirectory() as folder:
                yield check(group, kind, Path(folder), decoder)
    decoder.close()


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    args = parser.parse_args()
    rows = []
    for row in run(args.only):
        rows.append(row)
        if args.json:
            print(json.dumps(asdict(row)), flush=True)
        else:
            state = f"WRONG: {row.wrong}" if row.wrong else "right"
            print(f"{row.kind:45} {row.frames:20} {row.remark}  {state}", flush=True)
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
