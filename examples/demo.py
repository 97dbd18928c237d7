"""Encode and decode a video at two rates, and draw original and reconstructions side by side.

python examples/demo.py [VIDEO] [--out demo] [--size 360]
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vtok.evaluation.metrics import psnr
from vtok.evaluation.pictures import draw_sheet
from vtok.models.load import ModelCache, load
from vtok.pipeline.decode import decode_file
from vtok.pipeline.encode import encode_file
from vtok.pipeline.inspect import inspect_file
from vtok.pipeline.options import DecodeOptions, EncodeOptions
from vtok.pipeline.result import Result
from vtok.video.frames import Frames
from vtok.video.images import write_png
from vtok.video.reader import VideoReader


def read_frames(path: Path, size: str | None = None) -> Frames:
    with VideoReader(path, size=size) as reader:
        return np.concatenate(list(reader))


def table(encoded: Result, decodes: dict[int, tuple[Result, float]]) -> Table:
    rows = Table(
        title=f"{encoded.frames} frames of {encoded.width}x{encoded.height}, by bits per position"
    )
    columns = ("bits", "codes", "bytes", "bpp", "PSNR dB", "encode f/s", "decode f/s")
    for column in columns:
        rows.add_column(column, justify="right")
    for bits, (decoded, quality) in decodes.items():
        rows.add_row(
            str(bits),
            f"{decoded.codes:,}",
            f"{decoded.bytes:,}",
            f"{decoded.bpp:.4f}",
            f"{quality:.2f}",
            f"{encoded.frames_per_second:.1f}",
            f"{decoded.frames_per_second:.1f}",
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", nargs="?", type=Path, default=Path(__file__).parent / "bee.mp4")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--size", default="360", help="short side in pixels")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    original = read_frames(args.video, args.size)
    model, models = load(), ModelCache("vtok-base")
    columns, decodes = {"original": original}, {}
    for bits in (18, 72):
        code_file = args.out / f"{args.video.stem}.{bits}.vtok"
        video = args.out / f"{args.video.stem}.{bits}.decoded.mp4"
        options = EncodeOptions(size=args.size, num_bits=bits, overwrite=True)
        encoded = encode_file(args.video, code_file, model=model, options=options)
        info = inspect_file(str(code_file))
        console.print(
            f"{code_file}: {info['frames']} frames, codes {info['codes']}, {info['kbps']} kbit/s"
        )
        decoded = decode_file(code_file, video, model=models, options=DecodeOptions(overwrite=True))
        recon = read_frames(video)
        decodes[bits] = (decoded, psnr(recon, original))
        columns[f"vtok, {bits} bits per position, {decoded.bpp:.3f} bpp"] = recon
    picture = args.out / f"{args.video.stem}.png"
    last = len(original) - 1
    rows = [[frames[k] for frames in columns.values()] for k in (0, last // 2, last)]
    write_png(picture, draw_sheet(rows, titles=list(columns)), overwrite=True)
    console.print(table(encoded, decodes))
    console.print(f"original and reconstructions side by side: {picture}")


if __name__ == "__main__":
    main()
