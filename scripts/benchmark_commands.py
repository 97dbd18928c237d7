#!/usr/bin/env python
"""`vtok encode` and `vtok decode` as commands, beside their parts and beside ffmpeg, in one run.

    scripts/benchmark_commands.py [--threads 2] [--runs 3] [--json FILE]

On a short clip and on one many times as long, so that start-up is told from rate. x264, x265 and
AV1 are given about the bytes of the code file; their decoders give RGB frames to nobody, while
`vtok decode` writes an mp4. Everything is kept on as many cores as there are threads. PSNR is of
what each command wrote, against the frames of the clip.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where a test runs this by its path
from benchmark import bee_square, make_video, read_all
from machine import facts, line
from processes import VTOK, run_command

from vtok.errors import UsageError
from vtok.evaluation.classic import CODECS, Codec, RateMatcher, find_codec
from vtok.evaluation.metrics import psnr
from vtok.models.load import LoadedTokenizer, load
from vtok.pipeline.codec import Decoder, Encoder
from vtok.video.ffmpeg import ffmpeg_path
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader

# as vtok.evaluation.classic asks for a quality, but with as many threads as they like
QUALITY = {
    "libx264": ("-preset", "medium", "-crf", "{crf}"),
    "libx265": ("-preset", "medium", "-crf", "{crf}", "-x265-params", "log-level=error"),
    "libsvtav1": ("-preset", "6", "-svtav1-params", "crf={crf}"),
    "libaom-av1": ("-cpu-used", "6", "-crf", "{crf}", "-b:v", "0"),
}
QUIET = ("-hide_banner", "-nostdin", "-loglevel", "error", "-y")
FIRST_CRF = 30.0
"""Where bytes are not matched."""
HEADS = (
    "what", "bytes", "bits a pixel", "PSNR dB", "encode frames/s", "decode frames/s",
    "encode MB", "decode MB",
)  # fmt: skip


@dataclass(frozen=True)
class Took:
    """One piece of work: seconds, and megabytes where it is a process of its own."""

    seconds: float
    peak_mb: float | None = None


@dataclass(frozen=True)
class Row:
    """Something that encodes and decodes.

    Attributes:
        name: for people.
        encode, decode: do it once.
        coded, back: the files that they write; None where it is only a part of a command.
    """

    name: str
    encode: Callable[[], Took]
    decode: Callable[[], Took]
    coded: Path | None = None
    back: Path | None = None


def by_command(*words: str | Path) -> Callable[[], Took]:
    """A process, start included."""

    def work() -> Took:
        ran = run_command(words)
        return Took(ran.seconds, ran.peak_mb)

    return work


def in_here(function: Callable[[], Any]) -> Callable[[], Took]:
    """A call in this process."""

    def work() -> Took:
        begin = time.perf_counter()
        function()
        return Took(time.perf_counter() - begin)

    return work


def vtok_rows(folder: Path, clip: Path, frames: Frames, model: LoadedTokenizer) -> list[Row]:
    """The commands, then the model alone, then what reads and writes videos, alone."""
    coded, back, spare = (folder / name for name in ("a.vtok", "a.mp4", "spare.mp4"))
    chunks, size = list(Encoder(model).encode([frames])), frames.shape[1:3]
    return [
        Row(
            "`vtok encode`, `vtok decode`",
            by_command(*VTOK, "encode", clip, "-o", coded, "-q", "--overwrite"),
            by_command(*VTOK, "decode", coded, "-o", back, "-q", "--overwrite"),
            coded,
            back,
        ),
        Row(
            "the model alone",
            in_here(lambda: list(Encoder(model).encode([frames]))),
            in_here(lambda: list(Decoder(model, size).decode(chunks))),
        ),
        Row(
            "reading the video, writing one",
            in_here(lambda: read_all(clip)),
            in_here(lambda: make_video(spare, frames)),
        ),
    ]


def classic_row(folder: Path, clip: Path, codec: Codec, crf: float) -> Row:
    """ffmpeg with one codec."""
    coded = folder / f"{codec.encoder}.mkv"
    return Row(
        f"ffmpeg, {codec.description}",
        by_command(*encoding(clip, coded, codec, crf)),
        by_command(
            *(ffmpeg_path(), *QUIET, "-i", coded, "-pix_fmt", "rgb24", "-f", "rawvideo", os.devnull)
        ),
        coded,
        coded,
    )


def encoding(clip: Path, coded: Path, codec: Codec, crf: float) -> list[str | Path]:
    """The command that encodes a clip."""
    quality = [word.format(crf=f"{crf:g}") for word in QUALITY[codec.encoder]]
    return [ffmpeg_path(), *QUIET, "-i", clip, "-an", "-c:v", codec.encoder, *quality, coded]


def matched(folder: Path, clip: Path, codec: Codec, target: int) -> float:
    """The factor with which a codec takes about so many bytes for a clip."""
    trial = folder / "trial.mkv"

    def bytes_at(crf: float) -> int:
        run_command(encoding(clip, trial, codec, crf))
        return trial.stat().st_size

    return RateMatcher(codec, bytes_at).match(target)[0]


def take(rows: Sequence[Row], frames: Frames, runs: int) -> list[dict[str, Any]]:
    """Figures of each row: medians over rounds in which each has its turn."""
    taken: dict[str, list[tuple[Took, Took]]] = {row.name: [] for row in rows}
    for number in range(runs):
        for row in rows:
            taken[row.name].append((row.encode(), row.decode()))
            say(f"round {number + 1} of {runs}, {len(frames)} frames: {row.name}")
    found = []
    for row in rows:
        figures: dict[str, Any] = {"what": row.name}
        for index, name in enumerate(("encode", "decode")):
            tooks = [pair[index] for pair in taken[row.name]]
            figures[f"{name} s"] = statistics.median(took.seconds for took in tooks)
            figures[f"{name} fps"] = len(frames) / figures[f"{name} s"]
            if tooks[0].peak_mb is not None:
                figures[f"{name} MB"] = max(took.peak_mb or 0 for took in tooks)
        if row.coded is not None and row.back is not None:
            figures["bytes"] = row.coded.stat().st_size
            figures["bpp"] = 8 * figures["bytes"] / (frames.size / 3)
            figures["psnr"] = psnr(read(row.back), frames)
        found.append(figures)
    return found


def read(path: Path) -> Frames:
    """All frames of a video, uint8 [T, H, W, 3]."""
    with VideoReader(path) as reader:
        return np.concatenate(list(reader))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Figures by number of frames."""
    model, frames = load(device="cpu", dtype="float32"), bee_square()
    if args.quick:
        frames = np.ascontiguousarray(frames[:9, :64, :64])
    factors: dict[Codec, float] = {}
    found = {}
    for times in (1, args.times):
        clip = folder / f"clip{times}.mp4"
        make_video(clip, np.concatenate([frames] * times))
        seen = read(clip)
        ours = vtok_rows(folder, clip, seen, model)
        if not factors:
            ours[0].encode()
            target = ours[0].coded.stat().st_size if ours[0].coded else 0
            for codec in codecs():
                quick = args.quick
                factors[codec] = float(FIRST_CRF) if quick else matched(folder, clip, codec, target)
                say(f"{codec.description}: crf {factors[codec]:g}")
        classic = [classic_row(folder, clip, codec, crf) for codec, crf in factors.items()]
        found[str(len(seen))] = take([*ours, *classic], seen, args.runs if times == 1 else 1)
    return found


def codecs() -> list[Codec]:
    """The codecs that this ffmpeg has."""
    found = []
    for name in CODECS:
        try:
            found.append(find_codec(name))
        except UsageError as error:
            say(str(error))
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of one length as Markdown."""
    forms = {
        "bytes": ",", "bpp": ".4f", "psnr": ".2f", "encode fps": ".3g", "decode fps": ".3g",
        "encode MB": ",.0f", "decode MB": ",.0f",
    }  # fmt: skip
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    for row in rows:
        cells = [format(row[key], form) if key in row else "" for key, form in forms.items()]
        lines.append("| " + " | ".join([row["what"], *cells]) + " |")
    return "\n".join(lines)


def start_and_rate(found: dict[str, list[dict[str, Any]]]) -> str:
    """What of the seconds does not grow with a clip, and the rate of the rest."""
    (few, short), (many, long) = found.items()
    lines = ["| what | encode: start s | then frames/s | decode: start s | then frames/s |"]
    lines.append("|---" * 5 + "|")
    for a, b in zip(short, long, strict=True):
        if "bytes" not in a:
            continue
        cells = [a["what"]]
        for name in ("encode", "decode"):
            each = (b[f"{name} s"] - a[f"{name} s"]) / (int(many) - int(few))
            start = max(0.0, a[f"{name} s"] - int(few) * each)
            cells += [f"{start:.2f}", f"{1 / each:.3g}"] if each > 0 else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def say(text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print tables, and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--runs", type=int, default=3, help="rounds of the short clip")
    parser.add_argument("--times", type=int, default=10, help="how long the long clip is")
    parser.add_argument("--quick", action="store_true", help="tiny clips once: does all this run?")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    args = parser.parse_args(arguments)
    if args.quick:
        args.runs, args.times = 1, 2
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="vtok-commands-") as name:
        found = measure(args, Path(name))
    machine = facts(args.threads, "float32") | {"ffmpeg": Path(ffmpeg_path()).name}
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": found}, indent=1) + "\n")
    print(line(machine))
    for frames, rows in found.items():
        print(f"\n{frames} frames\n\n{table(rows)}")
    print(f"\nOf both together:\n\n{start_and_rate(found)}")


if __name__ == "__main__":
    main()
