#!/usr/bin/env python
"""Compare the bytes of the codes of videos: packed, entropy-coded, and in common formats.

Encodes the first 89 frames of each video, short side at most 256. "coder / model seconds" is the
processor time of entropy coding and decoding over that of the model, both on one thread, the
smallest of several runs each.

    scripts/sizes.py validation/* --bits 18 --runs 3
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import zstandard

from vtok.codefile.packing import CodedPart, decode_parts, encode_parts
from vtok.codefile.reader import CodeFileReader
from vtok.models.load import LoadedTokenizer, load
from vtok.pipeline.codec import Decoder
from vtok.pipeline.encode import encode_file
from vtok.pipeline.options import EncodeOptions
from vtok.pipeline.result import CodeChunk
from vtok.video.reader import probe

T = TypeVar("T")
FRAMES, SHORT_SIDE = 89, 256


def least_seconds(work: Callable[[], T], runs: int) -> tuple[float, T]:
    """Return the smallest processor time of `work` in seconds, and its result."""
    seconds = []
    for _ in range(runs):
        begin = time.process_time()
        result = work()
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def measure(
    path: Path, model: LoadedTokenizer, bits: int, runs: int, hysteresis: float
) -> dict[str, float]:
    """Bytes and seconds of one video."""
    info = probe(path)
    size = str(SHORT_SIDE) if min(info.width, info.height) > SHORT_SIDE else None
    # half a frame less, so that rounding cannot add one
    options = EncodeOptions(
        size=size,
        num_bits=bits,
        hysteresis=hysteresis,
        duration_seconds=(FRAMES - 0.5) / info.fps,
        compress=False,
    )

    def encode() -> bytes:
        stream = io.BytesIO()
        encode_file(path, stream, model=model, options=options)
        return stream.getvalue()

    encoding, data = least_seconds(encode, runs)
    reader = CodeFileReader(io.BytesIO(data))
    layout, chunks, shape = reader.header.format, list(reader), reader.header.transform

    def decode() -> None:
        shown = (CodeChunk(chunk.codes, chunk.num_frames) for chunk in chunks)
        for _ in Decoder(model, (shape.height, shape.width)).decode(shown):
            pass

    def code() -> list[tuple[CodedPart, ...]]:
        coded = [encode_parts(chunk.codes, layout, compress=True) for chunk in chunks]
        for parts, chunk in zip(coded, chunks, strict=True):
            assert np.array_equal(decode_parts(parts, chunk.codes.shape[2], layout), chunk.codes)
        return coded

    decoding, _ = least_seconds(decode, runs)

    coding, coded = least_seconds(code, runs)

    packed = [encode_parts(chunk.codes, layout) for chunk in chunks]
    plain = np.concatenate([chunk.codes.reshape(-1) for chunk in chunks])
    payload, whole = (sum(len(p.data) for parts in c for p in parts) for c in (coded, packed))
    return {
        "int64 .npy": plain.nbytes + 128,
        "int64, zstd": len(zstandard.compress(plain.tobytes(), 19)),
        "packed": whole,
        "coded": payload,
        "coded / packed": payload / whole,
        "coder / model seconds": coding / (encoding + decoding),
    }


def main() -> None:
    """Print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--bits", type=int, default=18)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--hysteresis", type=float, default=0.0, help="its width")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.model, dtype="float32")
    options = (args.bits, args.runs, args.hysteresis)
    rows = {path.name: measure(path, model, *options) for path in args.videos}
    columns = list(next(iter(rows.values())))
    rows["mean"] = {c: float(np.mean([row[c] for row in rows.values()])) for c in columns}
    if args.json:
        print(json.dumps(rows))
        return
    print("| clip | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in rows.items():
        shown = (f"{row[c]:.3f}" if "/" in c else f"{row[c]:,.0f}" for c in columns)
        print(f"| {name} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
