"""The codes of a code file for a decoder: all, or those of some frames without the others."""

from __future__ import annotations

from collections.abc import Iterator

from vtok.codefile import CodeFileReader
from vtok.codefile.index import find_ranges
from vtok.errors import CodeFileError
from vtok.models.load import Model
from vtok.pipeline.model_calls import CodeChunk, steps_per_pass


def read_codes(reader: CodeFileReader) -> Iterator[CodeChunk]:
    """Read all codes, front to back."""
    for chunk in reader:
        yield CodeChunk(chunk.codes, chunk.num_frames, chunk.restart, chunk.skip)


def read_frames(
    reader: CodeFileReader, model: Model, frames: tuple[int, int]
) -> Iterator[CodeChunk]:
    """Read the codes that give some frames, and no others.

    Args:
        reader: of a file that can be sought in.
        model: that will decode them.
        frames: the first one, and the one after the last.

    Raises:
        CodeFileError: where a chunk is damaged; a reader that salvages goes on with the next.
    """
    header, lookback = reader.header, model.tokenizer.decoder_lookback
    grain = steps_per_pass(model, (header.transform.height, header.transform.width))
    first, fresh = frames[0], False  # whether the decoder has yet to be started
    for piece in find_ranges(reader.index, header.format, frames, lookback, grain):
        fresh, end = fresh or piece.opens is not None, first + piece.num_frames
        try:
            codes = reader.read_chunk(piece.chunk).codes
        except CodeFileError as exc:
            if not reader.salvage:
                raise
            reader.lost = reader.lost or str(exc.__cause__ or exc)
            reader.gaps.append((first, end))
        else:
            # where the piece that opens is lost, the first step of the next gives one frame only
            early = header.format.temporal_compression - 1 if fresh and piece.opens is None else 0
            missing = min(piece.num_frames, max(0, early - piece.skip))
            if missing:
                reader.gaps.append((first, first + missing))
            part = codes[:, :, slice(*piece.steps)]
            frames_left, skip = piece.num_frames - missing, max(0, piece.skip - early)
            yield CodeChunk(part, frames_left, fresh, skip)
            fresh = False
        first = end
