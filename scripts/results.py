#!/usr/bin/env python
"""The model against classic codecs at the same bytes: docs/results.md.

The part of each clip is that of the model cards (33 frames, short side at most 384, the centre
256x256); bytes of the model are those of entropy-coded files. The same weights and encoders give
the same figures again.

    scripts/results.py validation/* --write docs/results.md     also writes docs/results.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vtok._files import atomic_output
from vtok.evaluation.classic import find_codec
from vtok.evaluation.compare import compare_file, deltas
from vtok.evaluation.curves import write_curves
from vtok.evaluation.evaluate import CARD, EvalOptions
from vtok.evaluation.metrics import METRICS
from vtok.evaluation.results import VTOK, ClipResult, Point, mean_points
from vtok.models.load import LoadedTokenizer, load

CLIPS = "MCL-JCV, 17x256x256"
PUBLISHED = (  # as the columns of `published`, and the source
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
Bits a pixel are those of the codes, without the latent step that the first frame takes."""


def compare(
    model: LoadedTokenizer, path: Path, bits: tuple[int, ...], codecs: Sequence[str]
) -> ClipResult:
    """One clip by every coder."""
    options = EvalOptions(CARD, bits, compress=True)
    with compare_file(path, model=model, codecs=codecs, options=options) as comparison:
        print(f"{path.name}: measured", file=sys.stderr)
        return comparison.result


def table(points: Sequence[Point]) -> str:
    """A row a coder and rate; metrics that some clip lacks are left out."""
    names = [name for name in METRICS if all(p.quality.get(name) is not None for p in points)]
    heads = ["coder", "bits a position", "bytes", "bits a pixel"]
    heads += [METRICS[name].label for name in names]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for point in sorted(points, key=lambda p: p.bits):
        cells = [point.coder, f"{point.bits}" if point.coder == VTOK else f"as {point.bits}"]
        cells += [f"{point.bytes:,.0f}", f"{point.bpp:.4f}"]
        cells += [f"{point.quality[name]:.{METRICS[name].digits}f}" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best(points: Sequence[Point]) -> str:
    """Which coder is best by each metric at each rate."""
    rates = sorted({point.bits for point in points})
    lines = ["| metric | " + " | ".join(f"{bits} bits" for bits in rates) + " |"]
    lines.append("|---" * (len(rates) + 1) + "|")
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
        lines.append(f"| {metric.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def distances(points: Sequence[Point]) -> str:
    """Bjontegaard deltas of the model."""
    lines = ["| against | by | at the same bytes | at the same quality |", "|---|---|---|---|"]
    for delta in deltas(points):
        metric = METRICS[delta.metric]
        quality = "" if delta.quality is None else f"{delta.quality:+.{metric.digits}f}"
        rate = "no quality is shared" if delta.rate is None else f"{delta.rate:+.0f} % bytes"
        lines.append(f"| {delta.codec} | {metric.label} | {quality} | {rate} |")
    return "\n".join(lines)


def page(
    model: LoadedTokenizer, clips: Sequence[ClipResult], codecs: Sequence[str], picture: str
) -> str:
    """The whole page."""
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

## At the same bytes

Mean over {len(clips)} clips:

{table(mean)}

![Rate-distortion curves]({picture})

From best to worst:

{best(mean)}

Bjontegaard deltas of vtok on these means:

{distances(mean)}

The figures do not show what codes are for: they are integers on a fixed grid, a known number for
each frame, which another model can read and write one by one, and their first stages are a video of
lower quality. Taking one frame, or half of the bits, from a codec's stream requires decoding or
encoding it.

## Published figures of other tokenizers

These were measured on other clips, with other frames and sizes. They show what is possible, not how
far one tokenizer is ahead of another.

{published()}

{SOURCES}

## Clip by clip

{each}
"""


def published() -> str:
    """What others have reported."""
    heads = ("tokenizer", "parameters", "bits a position", "bits a pixel")
    lines = ["| " + " | ".join((*heads, "PSNR dB", "SSIM", "LPIPS", "clips")) + " |"]
    lines.append("|---" * 8 + "|")
    for name, *facts, source in PUBLISHED:
        cells = [f"{name} [{source}]", *(f"{fact}" for fact in facts)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the page, or JSON; or write it."""
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


if __name__ == "__main__":
    main()
