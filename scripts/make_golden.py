"""Write the golden files tests/golden/*.vtok: code files of fixed integers.

Run it only when a new version of the format is defined. Golden files that are regenerated after
changes of the code no longer detect changes of the format.
"""

import argparse
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vtok.codefile.header import CodeFormat, Header, ModelIdentity, SourceVideo, Transform
from vtok.codefile.writer import CodeFileWriter

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "v1.vtok"
GOLDEN_SEGMENTS = GOLDEN.with_name("v1.1.vtok")
# Chunks of version 1.1: frames dropped by the segment that starts here (None: no new segment),
# latent steps, frames shown, stages. The second segment starts with a chunk that shows no frame.
SEGMENTS = (
    (None, 2, 5, 3),
    (None, 2, 2, 1),
    (7, 2, 0, 2),
    (None, 2, 6, 3),
    (None, 1, 1, 1),
    (0, 1, 1, 2),
)
FRAMES_AND_STEPS = ((5, 2), (8, 2), (3, 1))  # of each chunk; the last one is a frame short


def golden_header() -> Header:
    """Make the header of the golden files, with all optional fields."""
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
    """Yield the codes `[3, 2, t, 3, 4]` and the frames of each chunk of version 1.0."""
    first = 0
    for num_frames, num_steps in FRAMES_AND_STEPS:
        codes = golden_codes(first, (3, 2, num_steps, 3, 4))
        yield codes, num_frames
        first += codes.size


def golden_codes(first: int, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Make codes: code n, from `first`, is the top 9 bits of a hash of n."""
    numbers = np.arange(first, first + int(np.prod(shape)), dtype=np.int64)
    return ((numbers * 2654435761 % 2**32) >> 23).reshape(shape)


def write_segments(stream: BinaryIO) -> None:
    """Write the golden file of version 1.1."""
    first = 0
    with CodeFileWriter(stream, golden_header(), version=(1, 1)) as writer:
        for drop, num_steps, num_frames, stages in SEGMENTS:
            if drop is not None:
                writer.open_segment(drop)
            codes = golden_codes(first, (stages, 2, num_steps, 3, 4))
            writer.write(codes, num_frames)
            first += codes.size


def main() -> None:
    """Write missing golden files; replace existing ones only with `--overwrite`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--overwrite", action="store_true")
    overwrite = parser.parse_args().overwrite
    if overwrite or not GOLDEN.exists():
        with GOLDEN.open("wb") as stream, CodeFileWriter(stream, golden_header()) as writer:
            for codes, num_frames in golden_chunks():
                writer.write(codes, num_frames)
    if overwrite or not GOLDEN_SEGMENTS.exists():
        with GOLDEN_SEGMENTS.open("wb") as stream:
            write_segments(stream)


if __name__ == "__main__":
    main()
