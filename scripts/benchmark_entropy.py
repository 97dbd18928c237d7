#!/usr/bin/env python
"""Time entropy coding of the codes of a video, against other checkouts and libraries.

Encodes the video once without entropy coding, then times coding and decoding its codes in processes
that take turns: this checkout, and others with --against. Each process reports the smallest
processor time of several runs on one thread; the table has the median over the rounds, and the
longest time until the first chunk was coded, which includes compilation. A checkout
from before the coder was one implementation is timed without and with numba. With --libraries, the
time of a call of `constriction` per bit is printed too (pip install constriction).

    scripts/benchmark_entropy.py examples/bee.mp4 --bits 18 72 --against ../old
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent.parent
# Runs in a checkout: reads codes and prints seconds of coding, of decoding, and bytes.
PROGRAM = """
import json, sys, time
import numpy as np
from vtok.codefile.header import CodeFormat
from vtok.codefile.packing import encode_parts
try:
    from vtok.codefile.packing import decode_parts
except ImportError:
    from vtok.codefile.parts import decode_parts
path, runs, compiled = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if compiled != "none":
    from vtok.codefile import loops
    loops.PAYS_AFTER = -1 if compiled == "numba" else 1 << 62
begin = time.perf_counter()
with np.load(path) as data:
    fields = json.loads(str(data["layout"]))
    layout = CodeFormat(**{**fields, "grid": tuple(fields["grid"])})
    chunks = [data[name] for name in data.files if name != "layout"]
encode_parts(chunks[0], layout, compress=True)
first = time.perf_counter() - begin
best = [float("inf")] * 2
for _ in range(runs):
    begin = time.process_time()
    coded = [encode_parts(codes, layout, compress=True) for codes in chunks]
    middle = time.process_time()
    decoded = [decode_parts(p, c.shape[2], layout) for p, c in zip(coded, chunks)]
    best = [min(best[0], middle - begin), min(best[1], time.process_time() - middle)]
assert all(np.array_equal(a, b) for a, b in zip(decoded, chunks))
size = sum(len(part.data) for parts in coded for part in parts)
print(json.dumps([*best, size, first]))
"""


def save_codes(video: Path, bits: int, size: str, path: Path) -> int:
    """Encode a video without entropy coding, save its codes, and return their number of bits."""
    from dataclasses import asdict

    from vtok import EncodeOptions, encode_file
    from vtok.codefile.reader import CodeFileReader

    stream = io.BytesIO()
    encode_file(video, stream, options=EncodeOptions(size=size, num_bits=bits, compress=False))
    stream.seek(0)
    reader = CodeFileReader(stream)
    chunks = {f"chunk{number}": chunk.codes for number, chunk in enumerate(reader)}
    layout = reader.header.format
    np.savez(path, layout=json.dumps(asdict(layout)), **chunks)
    return sum(codes.size for codes in chunks.values()) * layout.bits_per_code


def time_checkout(root: Path, codes: Path, runs: int, compiled: str) -> list[float]:
    """Time a checkout: seconds of coding and decoding, bytes, seconds until the first result."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OPENBLAS_NUM_THREADS": "1"}
    environment["NUMBA_CACHE_DIR"] = str(codes.with_name("cache"))  # empty at first
    command = [sys.executable, "-c", PROGRAM, str(codes), str(runs), compiled]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, check=True)
    return [float(number) for number in json.loads(done.stdout)]


def candidates(against: list[Path]) -> dict[str, tuple[Path, str]]:
    """List what to time by name: a checkout, and its choice of an implementation."""
    found = {"this checkout": (HERE, "none")}
    for root in against:
        if (root / "vtok" / "codefile" / "loops.py").exists():
            found[f"{root.name}, numpy"] = (root.resolve(), "numpy")
            found[f"{root.name}, numba"] = (root.resolve(), "numba")
        else:
            found[root.name] = (root.resolve(), "none")
    return found


def time_constriction(count: int = 1_000_000) -> list[str]:
    """Time the coders of `constriction` for bits with a probability each, in ns per bit."""
    import constriction

    rng = np.random.default_rng(0)
    shares = rng.integers(1, 4096, count) / 4096
    bits = (rng.random(count) < shares).astype(np.int32)
    model = constriction.stream.model.Bernoulli(perfect=False)
    encoder = constriction.stream.stack.AnsCoder()
    coding = _nanoseconds(lambda: encoder.encode_reverse(bits, model, shares), count)
    decoding = _nanoseconds(lambda: encoder.decode(model, shares), count)
    return ["", f"constriction, given probabilities: {coding:.0f} and {decoding:.0f} ns per bit"]


def _nanoseconds(work: Callable[[], object], count: int) -> float:
    begin = time.process_time()
    work()
    return (time.process_time() - begin) / count * 1e9


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[18, 72])
    parser.add_argument("--size", default="256", help="as of vtok encode")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="other checkouts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3, help="of each process")
    parser.add_argument("--libraries", action="store_true")
    args = parser.parse_args()
    print("| bits | coder | encode, s | decode, s | ns per bit | bytes | first chunk, s |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for bits in args.bits:
            path = Path(folder) / f"{bits}.npz"
            count = save_codes(args.video, bits, args.size, path)
            every = candidates(args.against)
            taken: dict[str, list[list[float]]] = {name: [] for name in every}
            for _ in range(args.rounds):
                for name, (root, compiled) in every.items():
                    taken[name].append(time_checkout(root, path, args.runs, compiled))
            for name, rows in taken.items():
                columns = list(zip(*rows, strict=True))
                encode, decode, size = map(statistics.median, columns[:3])
                each = f"{encode / count * 1e9:.0f} and {decode / count * 1e9:.0f}"
                print(
                    f"| {bits} | {name} | {encode:.3f} | {decode:.3f} | {each} | {size:,.0f} "
                    f"| {max(columns[3]):.2f} |"
                )
    if args.libraries:
        print("\n".join(time_constriction()))


if __name__ == "__main__":
    main()
