#!/usr/bin/env python
"""Compare the model with classic codecs at equal size, and write docs/results.md.

The part of each clip is that of the model cards (33 frames, short side at most 384, the centre
256x256). Sizes of the model are those of entropy-coded files. Figures are reproducible with the
same weights and encoders.

With --write, prints the table of the README.

    scripts/results.py validation/* --write docs/results.md     also writes docs/results.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from benchmark_tools import markdown_table

from vtok._files import atomic_output
from vtok.evaluation.classic import find_codec
from vtok.evaluation.compare import compare_file, deltas
from vtok.evaluation.curves import write_curves
from vtok.evaluation.evaluate import CARD, EvalOptions
from vtok.evaluation.metrics import METRICS
from vtok.evaluation.results import VTOK, ClipResult, Point, mean_points
from vtok.models.load import LoadedTokenizer, load

CLIPS = "MCL-JCV, 17x256x256"
PUBLISHED = (  # columns of `published`, and the number of the source
    ("OmniTokenizer, 8,192 entries", "51 M", 13, 0.0508, 26.93, 0.841, 0.165, CLIPS, 1),
    ("Cosmos 0.1 DV 4x8x8, 64,000 entries", "101 M", 16, 0.0624, 28.07, 0.743, 0.212, CLIPS, 1),
    ("VidTok, 32,768 entries", "157 M", 15, 0.0586, 29.16, 0.854, 0.117, CLIPS, 1),
    ("VidTok, 262,144 entries", "157 M", 18, 0.0703, 29.82, 0.867, 0.106, CLIPS, 1),
    ("Cosmos 0.1 DV 4x8x8, 64,000 entries", "101 M", 16, 0.0624, 28.81, 0.818, "", "DAVIS", 2),
    ("MAGVIT-v2", "", "", 0.0384, 26.18, "", 0.104, "MCL-JCV, 360 lines", 3),
)
SOURCES = """\
[1] Tang et al., "VidTok", arXiv 2412.13061, table 1.
[2] NVIDIA, "Cosmos", arXiv 2501.03575, table 5.
[3] Yu et al., "Language Model Beats Diffusion", arXiv 2310.05737, table 3.
Bits per pixel are those of the codes, without the latent step of the first frame."""


def compare(
    model: LoadedTokenizer, path: Path, bits: tuple[int, ...], codecs: Sequence[str]
) -> ClipResult:
    """Compare all coders on one clip."""
    options = EvalOptions(CARD, bits, compress=True)
    with compare_file(path, model=model, codecs=codecs, options=options) as comparison:
        print(f"{path.name}: measured", file=sys.stderr)
        return comparison.result


def table(points: Sequence[Point]) -> str:
    """Format one row per coder and rate, without metrics that a clip lacks."""
    names = [name for name in METRICS if all(p.quality.get(name) is not None for p in points)]
    heads = ["coder", "bits per latent position", "bytes", "bits per pixel"]
    heads += [METRICS[name].label for name in names]
    rows = []
    for point in sorted(points, key=lambda p: p.bits):
        cells = [
            point.coder,
            f"{point.bits}" if point.coder == VTOK else f"matched to {point.bits}",
        ]
        cells += [f"{point.bytes:,.0f}", f"{point.bpp:.4f}"]
        cells += [f"{point.quality[name]:.{METRICS[name].digits}f}" for name in names]
        rows.append(cells)
    return markdown_table(heads, rows)


def summary(points: Sequence[Point]) -> str:
    """Format the PSNR of all coders, one row per rate of the model."""
    coders = list(dict.fromkeys(point.coder for point in points))
    rows = []
    for ours in (point for point in points if point.coder == VTOK):
        same = {point.coder: point for point in points if point.bits == ours.bits}
        quality = [f"{same[coder].quality['psnr']:.2f}" for coder in coders]
        rows.append([f"{ours.bits}", f"{ours.bytes:,.0f}", *quality])
    return markdown_table(["bits per position", "bytes", *coders], rows)


def best(points: Sequence[Point]) -> str:
    """Rank the coders by each metric at each rate."""
    rates = sorted({point.bits for point in points})
    rows = []
    for name, metric in METRICS.items():
        if any(point.quality.get(name) is None for point in points):
            continue
        cells = []
        for bits in rates:
            order = sorted(
                (point for point in points if point.bits == bits),
                key=lambda point: point.quality[name],
                reverse=metric.rises,
            )
            cells.append(" > ".join(point.coder for point in order))
        rows.append([metric.label, *cells])
    return markdown_table(["metric", *(f"{bits} bits" for bits in rates)], rows)


def distances(points: Sequence[Point]) -> str:
    """Format the Bjontegaard deltas of the model."""
    rows = []
    for delta in deltas(points):
        metric = METRICS[delta.metric]
        quality = "" if delta.quality is None else f"{delta.quality:+.{metric.digits}f}"
        rate = "no overlap in quality" if delta.rate is None else f"{delta.rate:+.0f} % bytes"
        rows.append((delta.codec, metric.label, quality, rate))
    return markdown_table(("codec", "metric", "at equal bytes", "at equal quality"), rows)


def page(
    model: LoadedTokenizer, clips: Sequence[ClipResult], codecs: Sequence[str], picture: str
) -> str:
    """Write the page."""
    mean = mean_points(clips)
    encoders = ", ".join(find_codec(name).description for name in codecs)
    each = "\n\n".join(
        f"### {Path(clip.name).name}, {clip.frames} frames {clip.width}x{clip.height}\n\n"
        f"{table(clip.points)}"
        for clip in clips
    )
    return f"""# Results

Written by `scripts/results.py`, with `{model.info.name}` of weights
`{model.info.weights_sha256[:12]}` and {encoders}.
This page is for developers and reviewers. The clips were not used in training. Model and codecs get
the same 33 frames of each: short side scaled down to at most 384, then the centre 256x256 or the
largest multiple of 16 that fits. The constant rate factor of each codec is searched until its
stream takes as many bytes as the model's code file. [evaluation.md](evaluation.md) defines the
metrics and lists what favours which side.

## At equal size

Mean over {len(clips)} clips. Bits per latent position are the rate of vtok: one position
stands for 4 frames of 8x8 pixels. "matched to 9" is a codec at the size of vtok at 9 bits.

{table(mean)}

![Rate-distortion curves]({picture})

Coders from best to worst:

{best(mean)}

Bjontegaard deltas of vtok relative to each codec, on these means:

{distances(mean)}

Codes have uses that these figures do not show. They are integers on a fixed grid, a known number
per frame, which another model can read and generate one by one. Their first stages alone decode to
a video of lower quality. To take one frame, or half of the bits, from the stream of a codec, it
must be decoded or encoded again.

## Published figures of other tokenizers

These were measured on other clips, with other numbers of frames and sizes. They show what is
possible, but cannot be compared directly with each other or with the tables above.

{published()}

{SOURCES}

## Clip by clip

{each}
"""


def published() -> str:
    """Format the figures that others have published."""
    heads = ("tokenizer", "parameters", "bits per latent position", "bits per pixel")
    heads += ("PSNR dB", "SSIM", "LPIPS", "clips")
    rows = [[f"{name} [{source}]", *map(str, facts)] for name, *facts, source in PUBLISHED]
    return markdown_table(heads, rows)


def main() -> None:
    """Print the page or JSON, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--bits", default="9,18,36,72")
    parser.add_argument("--codecs", default="x264,x265,av1")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_args()
    model, codecs = load(args.model, dtype="float32"), args.codecs.split(",")
    bits = tuple(int(number) for number in args.bits.split(","))
    clips = [compare(model, path, bits, codecs) for path in args.videos]
    if args.json:
        print(json.dumps([clip.to_json() for clip in clips]))
        return
    picture = (args.write or Path("results.md")).with_suffix(".svg")
    text = page(model, clips, codecs, picture.name)
    if args.write is None:
        print(text, end="")
        return
    write_curves([picture], mean_points(clips), f"mean of {len(clips)} clips", overwrite=True)
    with atomic_output(args.write, overwrite=True) as temporary:
        temporary.write_text(text)
    print(summary(mean_points(clips)))


if __name__ == "__main__":
    main()
