#!/usr/bin/env python
"""Peak memory of commands on a short and on a long synthetic video: it must be the same.

What memory might grow with is frames, so by default they are small and the model is, too: a
minute against an hour in a few minutes. Memory is that of the command itself, and of the largest
process that it started (the decoder of videos, the writer).

    scripts/benchmark_memory.py --times 60                                    an hour
    scripts/benchmark_memory.py --side 256 --seconds 4 --times 10 --model vtok-base
    scripts/benchmark_memory.py --large                                       1080p and 4K
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vtok.checkpoint import read_info, save_checkpoint
from vtok.config import PRESETS
from vtok.media.ffmpeg import ffmpeg_path
from vtok.nn.token_config import TokenConfig
from vtok.nn.token_pipeline import TokenPipeline
from vtok.nn.tokenizer import VideoTokenizer
from vtok.token_checkpoint import save_tokens

LARGE = ((1920, 1080), (3840, 2160))
RATE = 30
MODEL, LEARNER = "model.safetensors", "learner.safetensors"
CHILD = """
import resource, sys
from vtok.cli.app import main
try:
    main()
finally:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(*(usage.ru_maxrss / unit for usage in usages), file=sys.stderr)
"""


def peak_megabytes(*arguments: str | Path) -> float:
    """The most memory that `vtok` takes with these arguments, and its largest child.

    Raises:
        SystemExit: with what it says, if it fails.
    """
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return sum(map(float, done.stderr.split("\n")[-2].split()))


def make_video(path: Path, size: tuple[int, int], frames: int, times: int = 1) -> None:
    """Write a moving test picture of (width, height), some frames of it and all these again."""
    short = path.with_suffix(".short.mp4")
    picture = f"testsrc2=size={size[0]}x{size[1]}:rate={RATE}"
    codec = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
    start = (ffmpeg_path(), "-v", "error", "-y")
    made = (*start, "-f", "lavfi", "-i", picture, "-frames:v", str(frames), *codec, short)
    subprocess.run([*map(str, made)], check=True)
    looped = (*start, "-stream_loop", str(times - 1), "-i", short, "-c", "copy", path)
    subprocess.run([*map(str, looped)], check=True)
    short.unlink()


def make_models(folder: Path, model: str | None) -> str:
    """A learner with the weights it starts from, and a small model where none is given."""
    if model is None:
        layers = (("fold", 32), ("separable_memory", 32))
        small = replace(
            PRESETS["vtok-base"], init_dim=16, layers=layers, decoder_init_dim=16,
            decoder_layers=(("separable", 16), *layers),
        )  # fmt: skip
        model = str(folder / MODEL)
        save_checkpoint(Path(model), VideoTokenizer.from_config(small), "small")
    info = read_info(model)
    latent_dim = VideoTokenizer.from_config(info.config).quantizer.dim
    learner = TokenPipeline(TokenConfig(latent_dim, dim=32, map_dim=16, max_tokens=8))
    save_tokens(folder / LEARNER, learner, "fresh", info)
    return model


def peaks(folder: Path, video: Path, model: str, stages: int) -> dict[str, float]:
    """Peak megabytes of what is done with one video, by command."""
    codes, tokens, dump = (folder / f"a.{kind}" for kind in ("vtok", "safetensors", "bin"))
    by_model, quiet = ("--model", model), ("-q", "--overwrite")
    learned = ("--to", "tokens", "--token-learner", folder / LEARNER)
    form = ("--format", "bin")
    return {
        "encode": peak_megabytes(
            "encode", video, "-o", codes, "--stages", str(stages), *by_model, *quiet
        ),
        "decode": peak_megabytes("decode", codes, "-o", folder / "back.mp4", *by_model, *quiet),
        "encode --to tokens": peak_megabytes(
            "encode", video, "-o", tokens, *learned, *by_model, *quiet
        ),
        "dump": peak_megabytes("dump", codes, "-o", dump, *form, *quiet),
        "pack (the entropy coder alone)": peak_megabytes("pack", dump, "-o", codes, *quiet),
        "verify": peak_megabytes("verify", codes, "-q"),
    }


def by_length(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Peak megabytes of a short and of a long video, and the ratio, by command."""
    model, frames = make_models(folder, args.model), round(args.seconds * RATE)
    both = []
    for times in (1, args.times):
        video = folder / "video.mp4"
        make_video(video, (args.side, args.side), frames, times)
        both.append(peaks(folder, video, model, args.stages))
    short, long = both
    return {
        name: {
            f"{frames:,} frames, MB": short[name],
            f"{frames * args.times:,} frames, MB": long[name],
            "ratio": long[name] / short[name],
        }
        for name in short
    }


def by_size(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Peak megabytes of two latent steps and of ten, by size of the frames."""
    model = ("--model", args.model or "vtok-base")
    figures = {}
    for width, height in LARGE:
        row = {}
        for frames in (5, 37):
            video, codes, back = (folder / name for name in ("a.mp4", "a.vtok", "b.mp4"))
            make_video(video, (width, height), frames)
            quiet = ("-q", "--overwrite", *model)
            row[f"encode {frames} frames, MB"] = peak_megabytes(
                "encode", video, "-o", codes, *quiet
            )
            back = folder / "back.mp4"
            row[f"decode {frames} frames, MB"] = peak_megabytes("decode", codes, "-o", back, *quiet)
        figures[f"{width}x{height}"] = row
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=64, help="pixels of the square frames")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the short video")
    parser.add_argument("--times", type=int, default=10, help="how often the long one has it")
    parser.add_argument("--stages", type=int, default=2, help="of codes")
    parser.add_argument("--model", help="a shipped name or a checkpoint, in place of a small one")
    parser.add_argument("--large", action="store_true", help="by size of the frames instead")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="vtok-memory-") as name:
        figures = (by_size if args.large else by_length)(args, Path(name))
    if args.json:
        print(json.dumps(figures))
        return
    columns = list(next(iter(figures.values())))
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for title, row in figures.items():
        shown = (f"{row[c]:.3f}" if c == "ratio" else f"{row[c]:,.0f}" for c in columns)
        print(f"| {title} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
