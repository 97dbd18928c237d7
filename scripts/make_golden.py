"""Write tests/golden/v1.vtok: a code file of fixed integers that every later reader must read.

Run it on purpose only, when version 1 of the format is first fixed: a golden file that follows
the code proves nothing.
"""

import argparse
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vtok.codefile import (
    CodeFileWriter,
    CodeFormat,
    Header,
    ModelIdentity,
    SourceVideo,
    Transform,
)

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "v1.vtok"
FRAMES_AND_STEPS = ((5, 2), (8, 2), (3, 1))  # of each chunk; the last one lacks a frame


def golden_header() -> Header:
    """The header of the golden file; every optional field is set."""
    return Header(
        format=CodeFormat(
            codebook_size=512,
            num_codebooks=2,
            num_stages=3,
            temporal_compression=4,
            spatial_compression=8,
            grid=(3, 4),
            chunk_steps=2,
            decoder_lookback=6,
        ),
        model=ModelIdentity("golden", "c" * 64, "0123456789abcdef" * 4, "float32", "cpu"),
        source=SourceVideo(60, 40, Fraction(30000, 1001), 480, 90, True, "café.mp4"),
        transform=Transform(30, 20, Fraction(15), Fraction(1, 2), Fraction(16, 15), "rgb full"),
        writer="vtok golden",
        metadata={"caption": "a bee, 蜂", "id": "7"},
    )


def golden_chunks() -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Codes `[3, 2, t, 3, 4]` and frames of each chunk: code n is the top 9 bits of a hash of n."""
    first = 0
    for num_frames, num_steps in FRAMES_AND_STEPS:
        shape = (3, 2, num_steps, 3, 4)
        count = int(np.prod(shape))
        numbers = np.arange(first, first + count, dtype=np.int64)
        yield ((numbers * 2654435761 % 2**32) >> 23).reshape(shape), num_frames
        first += count


def main() -> None:
    """Write the file, over the old one only with `--overwrite`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--overwrite", action="store_true")
    mode: Literal["wb", "xb"] = "wb" if parser.parse_args().overwrite else "xb"
    with GOLDEN.open(mode) as stream, CodeFileWriter(stream, golden_header()) as writer:
        for codes, num_frames in golden_chunks():
            writer.write(codes, num_frames)


if __name__ == "__main__":
    main()
