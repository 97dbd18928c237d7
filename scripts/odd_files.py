#!/usr/bin/env python
"""Read every kind of odd input, and measure clips by seconds, sound and times of frames.

    scripts/odd_files.py                                     prints the table of kinds
    scripts/odd_files.py --only lost cut                     kinds whose names contain one of these
    scripts/odd_files.py --figures                           prints the figures
    scripts/odd_files.py --write docs/reading_and_writing.md fills the page if all is right

Each input of tests/kinds.py is made and read: the numbers drawn in its frames must be those of the
table, and the times of the frames to 1 ms; an input that cannot be read must give its one line. It
is then encoded and decoded with a tiny model: the frames that come back must have these times too.
The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np

ROOT = Path(__file__).absolute().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from benchmark_tools import markdown_table  # noqa: E402
from commands import tiny_checkpoint  # noqa: E402
from fill_page import filled  # noqa: E402
from kinds import GROUPS, page_table  # noqa: E402
from makers import KEYS, MPEG4, Kind, film  # noqa: E402
from test_clip_times import EPISODE, EPISODES, PRINTED, RATES  # noqa: E402
from test_frame_times import BASE, TICKS, seconds, times_of  # noqa: E402
from test_sound import make_film, onsets  # noqa: E402
from videos import make_timed_video, read_barcodes  # noqa: E402

from vtok._times import Part  # noqa: E402
from vtok.dataset.item import Item, fetched  # noqa: E402
from vtok.dataset.sources import Inputs, find_items  # noqa: E402
from vtok.errors import VtokError  # noqa: E402
from vtok.models.load import LoadedTokenizer, load  # noqa: E402
from vtok.pipeline.decode import decode_file  # noqa: E402
from vtok.pipeline.edit import cut_file, join_files  # noqa: E402
from vtok.pipeline.encode import encode_file  # noqa: E402
from vtok.pipeline.options import CutOptions, EncodeOptions  # noqa: E402
from vtok.video.decoder_process import Decoder  # noqa: E402
from vtok.video.reader import VideoReader  # noqa: E402

EXACT = 1.001e-3  # seconds
HEADS = ("figure", "measured")
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
class Bench:
    """Model and decoder for all inputs."""

    checkpoint: Path
    model: LoadedTokenizer
    decoder: Decoder


@dataclass(frozen=True)
class Row:
    """Result of a kind of input."""

    group: str
    kind: str
    frames: str
    remark: str  # notes or the error
    wrong: str  # what differs from the table; empty if nothing does


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


def encode(source: Path, kind: Kind, output: Path, bench: Bench) -> str:
    """Encode an input, perhaps by a command; return the text of an error."""
    if kind.command:
        vtok = [sys.executable, "-m", "vtok", "encode", "-o", str(output)]
        vtok += ["--model", str(bench.checkpoint)]
        command = ["sh", "-c", kind.command.format(source), "sh", *vtok]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return f"exit {done.returncode}: {done.stderr.strip()}" if done.returncode else ""
    options = EncodeOptions(**kind.options)
    try:
        encode_file(source, output, model=bench.model, options=options, decoder=bench.decoder)
    except VtokError as exc:
        return str(exc)
    return ""


def decode(codes: Path, bench: Bench) -> list[float]:
    """Decode a code file to a video, and return the times of its frames as PyAV reads them."""
    decode_file(codes, codes.with_suffix(".mkv"), model=bench.model)
    return times_of(codes.with_suffix(".mkv"))


def difference(came: Came, kind: Kind) -> str:
    """Describe how frames, times or error differ from those of the table; empty if they do not."""
    if kind.error or came.error:
        return wrong_error(came.error, kind)
    if came.numbers != list(kind.numbers):
        return f"frames {came.numbers}, expected {list(kind.numbers)}"
    if text := wrong_times(came.times, kind):
        return text
    found = any(kind.note in note for note in came.notes) if kind.note else not came.notes
    return "" if found else f"notes {came.notes}, expected {kind.note!r}"


def wrong_error(error: str, kind: Kind) -> str:
    """Describe an error that is not that of the table."""
    right = bool(kind.error) and kind.error in error and "\n" not in error
    return "" if right else f"error {error!r}, expected {kind.error!r}"


def wrong_times(times: Sequence[float], kind: Kind) -> str:
    """Describe times that are not those of the table."""
    if len(times) != len(kind.numbers):
        return f"{len(times)} frames, expected {len(kind.numbers)}"
    off = max(abs(one - other) for one, other in zip(times, kind.times, strict=True))
    return "" if off < EXACT else f"times are off by {off:.4f} s"


def check(group: str, kind: Kind, folder: Path, bench: Bench) -> Row:
    """Make, read, encode and decode an input."""
    wrong, came = [], Came([], [])
    for number, path in enumerate(videos(kind.make(folder), kind, folder)):
        came = read(path, kind, bench.decoder)
        wrong.append(difference(came, kind))
        codes = folder / f"{number}.vtok"
        if error := encode(path, kind, codes, bench):
            wrong.append(wrong_error(error, kind))
        elif text := wrong_times(decode(codes, bench), kind):
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
    if came.missing and came.rate is None:
        count += f" of {len(came.numbers) + came.missing}"
    return f"{count}, at {came.rate}/s" if came.rate else f"{count}, at their times"


def remark(came: Came, folder: Path) -> str:
    """Format notes or the error without the path."""
    texts = [came.error] if came.error else came.notes
    return "; ".join(text.replace(f"{folder}/", "").replace("|", "\\|") for text in texts)


def check_all(names: Sequence[str], bench: Bench, folder: Path) -> Iterator[Row]:
    """Check the kinds whose names contain one of these texts; all without any."""
    for group, kinds in GROUPS.items():
        for number, kind in enumerate(kinds):
            if not names or any(name in kind.name for name in names):
                place = folder / f"{group}_{number}".replace(" ", "_")
                place.mkdir()
                yield check(group, kind, place, bench)


def count_exact_clips(path: Path, fps: Fraction, decoder: Decoder) -> int:
    """Read episodes of a film by printed times, and count those with exactly their frames."""
    exact = 0
    for number in range(0, EPISODE * EPISODES, EPISODE):
        for write in PRINTED.values():
            start, length = float(write(number / fps)), float(write(EPISODE / fps))
            part = {"start_seconds": start, "duration_seconds": length}
            with VideoReader(path, **part, decoder=decoder) as reader:
                found = read_barcodes(np.concatenate(list(reader)))
            of_codes = Part(**part).frames(EPISODE * EPISODES, fps)
            exact += (
                found == list(range(number, number + EPISODE))
                and (number, number + EPISODE) == of_codes
            )
    return exact


def clips(bench: Bench, folder: Path) -> list[list[str]]:
    """Count the exact clips by seconds: episodes, ways to print a time, rates, containers."""
    rows = []
    for suffix, codec in {"mp4": KEYS, "mkv": KEYS, "avi": MPEG4}.items():
        exact = 0
        for number, rate in enumerate(RATES):
            options = {"num_frames": EPISODE * EPISODES, "fps": rate, "width": 64, "height": 48}
            path = film(folder, f"{number}.{suffix}", codec, **options)
            exact += count_exact_clips(path, Fraction(rate), bench.decoder)
        count = EPISODES * len(PRINTED) * len(RATES)
        rows.append([f"exact clips by seconds, {suffix}", f"{exact} of {count}"])
    return rows


def sound(bench: Bench, folder: Path) -> list[list[str]]:
    """Measure how far beeps are from those of the source after encode, cut, cat and decode."""
    rows = []
    for suffix, codec in {"mp4": "aac", "mkv": "libopus", "mov": "pcm_s16le"}.items():
        source = make_film(folder / f"sound.{suffix}", codec)
        whole, joined = folder / f"{suffix}.vtok", folder / f"{suffix}.joined.vtok"
        encode_file(source, whole, model=bench.model, decoder=bench.decoder)
        halves = [CutOptions(duration_seconds=1.7), CutOptions(start_seconds=1.7)]
        parts = [folder / f"{suffix}.{number}.vtok" for number in range(2)]
        for part, options in zip(parts, halves, strict=True):
            cut_file(whole, part, options=options)
        join_files(parts, joined)
        expected = onsets(source)
        offsets = []
        for codes, shown in ((whole, expected), (joined, expected), (parts[1], expected - 1.7)):
            decode_file(codes, codes.with_suffix(".mkv"), model=bench.model)
            shown = shown[shown > -0.01]
            found = onsets(codes.with_suffix(".mkv"))
            lost = len(found) != len(shown)
            offsets.append("beeps are lost" if lost else f"{1000 * abs(found - shown).max():.1f}")
        rows.append(
            [f"offset of sound in ms, {codec.removeprefix('lib')} in {suffix}", ", ".join(offsets)]
        )
    return rows


def uneven_times(bench: Bench, folder: Path) -> list[list[str]]:
    """Measure how far the times of frames are from those of the source after decoding."""
    rows = []
    for suffix in ("mp4", "mkv", "mov"):
        source = make_timed_video(folder / f"times.{suffix}", TICKS, BASE)
        codes, again = folder / f"times.{suffix}.vtok", folder / f"again.{suffix}"
        encode_file(source, codes, model=bench.model, decoder=bench.decoder)
        decode_file(codes, again, model=bench.model)
        off = np.abs(np.subtract(times_of(again), seconds(TICKS))).max()
        rows.append(
            [f"times of frames at a variable rate, {suffix}: off by ms", f"{1000 * off:.2f}"]
        )
    return rows


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="part of a name")
    parser.add_argument("--figures", action="store_true", help="measure times and sound alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="fill a page with all results")
    args = parser.parse_args()
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = tiny_checkpoint(folder)
        bench = Bench(checkpoint, load(checkpoint), Decoder())
        for row in [] if args.figures else check_all(args.only, bench, folder):
            rows.append(row)
            show(row, as_json=args.json)
        if args.figures or args.write:
            for measure in (clips, sound, uneven_times):
                figures += measure(bench, folder)
            print(json.dumps(dict(figures)) if args.json else markdown_table(HEADS, figures))
        bench.decoder.close()
    if args.write and not any(row.wrong for row in rows):
        page = filled(args.write.read_text(), "kinds", page_table())
        args.write.write_text(filled(page, "figures", markdown_table(HEADS, figures)))
    return int(any(row.wrong for row in rows))


def show(row: Row, *, as_json: bool) -> None:
    """Print a row."""
    if as_json:
        print(json.dumps(asdict(row)), flush=True)
        return
    state = f"WRONG: {row.wrong}" if row.wrong else "right"
    print(f"{row.kind:45} {row.frames:20} {row.remark}  {state}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
