"""Codes to bytes and back: the `.vtok` file, described to the byte in docs/format.md."""

from vtok.codefile.parts import steps_to_code
from vtok.codefile.header import (
    CodeFormat,
    Header,
    ModelIdentity,
    SourceVideo,
    Transform,
    source_name,
)
from vtok.codefile.index import Chunk, Index, StoredChunk
from vtok.codefile.packing import pack, packed_length, unpack
from vtok.codefile.parts import CodedPart, encode_parts
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
