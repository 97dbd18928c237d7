"""Codes to bytes and back: the `.vtok` file, described to the byte in docs/format.md."""

from vtok.codefile.checks import source_name
from vtok.codefile.container import IndexEntry
from vtok.codefile.header import (
    CodeFormat,
    Header,
    ModelIdentity,
    SourceVideo,
    Transform,
)
from vtok.codefile.packing import pack, packed_length, unpack
from vtok.codefile.reader import Chunk, CodeFileReader
from vtok.codefile.writer import CodeFileWriter

__all__ = [
    "Chunk",
    "CodeFileReader",
    "CodeFileWriter",
    "CodeFormat",
    "Header",
    "IndexEntry",
    "ModelIdentity",
    "SourceVideo",
    "Transform",
    "pack",
    "packed_length",
    "source_name",
    "unpack",
]
