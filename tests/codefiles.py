"""Code files of random codes for a tiny tokenizer, made without encoding a video."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from models import make_tokenizer

from vtok.codefile.header import CodeFormat, Header, ModelIdentity, SourceVideo, Transform
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import PLAIN
from vtok.codefile.writer import CodeFileWriter
from vtok.models.checkpoint import save_checkpoint
from vtok.models.load import LoadedTokenizer, load
from vtok.pipeline.codec import Decoder

WIDTH, HEIGHT, FPS = 30, 20, Fraction(25)


def load_tiny(folder: Path, kind: str = "fast") -> LoadedTokenizer:
    """Make a tiny tokenizer of one of the kinds of tests/models.py."""
    path = folder / f"{kind}.safetensors"
    save_checkpoint(path, make_tokenizer(kind), "tiny")
    return load(path)


def header_for(
    model: LoadedTokenizer,
    num_frames: int | None = None,
    stages: int | None = None,
    chunk_steps: int = 8,
) -> Header:
    """Make the header of a video of 30x20 pixels at 25 frames per second."""
    tokenizer, space = model.tokenizer, model.tokenizer.spatial_compression
    return Header(
        format=CodeFormat(
            codebook_size=tokenizer.config.codebook_size,
            num_codebooks=tokenizer.config.num_codebooks,
            num_stages=stages or tokenizer.config.num_stages,
            temporal_compression=tokenizer.temporal_compression,
            spatial_compression=space,
            grid=(-(-HEIGHT // space), -(-WIDTH // space)),
            chunk_steps=chunk_steps,
            decoder_lookback=tokenizer.decoder_lookback,
        ),
        model=ModelIdentity(
            "tiny", model.info.config_sha256, model.info.weights_sha256, "float32", "cpu"
        ),
        source=SourceVideo(WIDTH, HEIGHT, FPS, num_frames, name="a.mp4"),
        transform=Transform(WIDTH, HEIGHT, FPS),
        writer="vtok test",
    )


def random_file(
    model: LoadedTokenizer,
    num_frames: int,
    seed: int = 0,
    stages: list[int] | None = None,
    chunk_steps: int = 8,
) -> bytes:
    """Make a code file of random codes.

    Args:
        model: that it is for.
        num_frames: of the video.
        seed: of the codes.
        stages: of each chunk, repeated cyclically; all stages of the model by default.
        chunk_steps: latent steps in a chunk.
    """
    header = header_for(model, num_frames, chunk_steps=chunk_steps)
    rng, stream = np.random.default_rng(seed), io.BytesIO()
    layout, number = header.format, 0
    version = PLAIN if stages is None else (1, 1)
    with CodeFileWriter(stream, header, version=version) as writer:
        left = num_frames
        while left:
            first = layout.temporal_compression - 1 if left == num_frames else 0
            frames = min(left, chunk_steps * layout.temporal_compression - first)
            steps = -(-(frames + first) // layout.temporal_compression)
            count = stages[number % len(stages)] if stages else layout.num_stages
            shape = (count, layout.num_codebooks, steps, *layout.grid)
            writer.write(rng.integers(0, layout.codebook_size, shape), frames)
            left, number = left - frames, number + 1
    return stream.getvalue()


def all_frames(data: bytes, model: LoadedTokenizer) -> npt.NDArray[np.uint8]:
    """Decode a whole code file to frames."""
    shown = Decoder(model, (HEIGHT, WIDTH)).decode(CodeFileReader(io.BytesIO(data)))
    return np.concatenate(list(shown))
