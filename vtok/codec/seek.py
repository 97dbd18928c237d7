"""The codes of a code file for a decoder: all, or those of some frames without the others."""

from __future__ import annotations

from collections.abc import Iterator

from vtok.codec.streams import CodeChunk, steps_per_pass
from vtok.codefile import CodeFileReader
from vtok.codefile.pieces import find_pieces
from vtok.errors import CodeFileError
from vtok.model import Model


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
        CodeFileError: where a chunk is damaged; a reader that salvages stops there.
    """
    header, lookback = reader.header, model.tokenizer.decoder_lookback
    grain = steps_per_pass(model, (header.transform.height, header.transform.width))
    for piece in find_pieces(reader.index, header.format, frames, lookback, grain):
        try:
            codes = reader.read_chunk(piece.chunk).codes
        except CodeFileError as exc:
            if not reader.salvage:
                raise
            reader.lost = str(exc.__cause__ or exc)
            return
        part = codes[:, :, slice(*piece.steps)]
        yield CodeChunk(part, piece.num_frames, piece.opens is not None, piece.skip)
