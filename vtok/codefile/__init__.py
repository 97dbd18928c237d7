"""Codes to bytes and back: the `.vtok` file, specified to the byte in docs/format.md.

Reading order: `header`, `records` (preamble, chunk heads, footer), `packing` (codes of a chunk),
`entropy` and `probability` (entropy coder), `writer`, `index` (random access), `reader`, `edit`
(cut and join), `dump`.
"""

from vtok.codefile.header import (
    CodeFormat,
    Header,
    ModelIdentity,
    SourceVideo,
    Transform,
    source_name,
)
from vtok.codefile.index import Index
from vtok.codefile.packing import (
    Chunk,
    CodedPart,
    StoredChunk,
    encode_parts,
    pack,
    packed_length,
    steps_to_code,
    unpack,
)
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import PLAIN, VERSION, IndexEntry
from vtok.codefile.writer import CodeFileWriter

__all__ = [
    "PLAIN",
    "VERSION",
    "Chunk",
    "CodeFileReader",
    "CodeFileWriter",
    "CodeFormat",
    "CodedPart",
    "Header",
    "Index",
    "IndexEntry",
    "ModelIdentity",
    "SourceVideo",
    "StoredChunk",
    "Transform",
    "encode_parts",
    "pack",
    "packed_length",
    "source_name",
    "steps_to_code",
    "unpack",
]
