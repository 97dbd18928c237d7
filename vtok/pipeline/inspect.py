"""What a video, a code file or a checkpoint says of itself."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from vtok.codefile import CodeFileReader
from vtok.codefile.records import MAGIC
from vtok.errors import InputError
from vtok.pipeline.files import on_disk
from vtok.tokens.file import ORIGIN_KEY, TokenFile, is_token_file, token_origin
from vtok.video.reader import probe

Facts = dict[str, Any]
MAX_HEADS = 1000  # chunks whose heads are read: of a longer file that would take too long


def inspect_file(name: str) -> Facts:
    """Facts about a file, by name, as plain JSON types; `kind` says what it is.

    Args:
        name: path of a video, a code file or a checkpoint, or the name of a shipped checkpoint.

    Raises:
        InputError: if it is missing or none of the three.
        CodeFileError: for a damaged code file.
        CheckpointError: for a damaged checkpoint.
    """
    path = Path(name)
    if is_token_file(path):
        return inspect_tokens(path)
    if path.suffix == ".safetensors" or not path.exists():
        return inspect_checkpoint(name)
    try:
        if path.is_file():  # a pipe is not to be tried: what was read of it is gone
            with path.open("rb") as stream:
                if stream.read(len(MAGIC)) == MAGIC:
                    stream.seek(0)
                    return inspect_code_file(stream, name)
    except OSError as exc:
        raise InputError(f"{name}: cannot be read ({exc.strerror})") from exc
    return inspect_video(path)


def inspect_stream(stream: BinaryIO) -> Facts:
    """Facts about a video or a code file that comes as a stream; see `inspect_file`."""
    with on_disk(stream) as path:
        return {**inspect_file(str(path)), "name": "-"}


def inspect_code_file(stream: BinaryIO, name: str) -> Facts:
    """Facts about a code file that can be sought in, by its header and its index."""
    reader = CodeFileReader(stream, name=name)
    index, header = reader.index, reader.header
    frames = index.num_frames
    size = stream.seek(0, os.SEEK_END)
    layout, shape, model = header.format, header.transform, header.model
    space = layout.spatial_compression
    position_bits = layout.num_stages * layout.num_codebooks * layout.bits_per_code
    pixels = max(1, frames * shape.width * shape.height)
    facts: Facts = {
        "kind": "code file",
        "name": name,
        "version": ".".join(map(str, reader.version)),
        "width": shape.width,
        "height": shape.height,
        "fps": _rate(shape.fps),
        "frames": frames,
        "seconds": round(float(frames / shape.fps), 3),
        "codes": [layout.num_stages * layout.num_codebooks, index.num_steps, *layout.grid],
        "codebook_size": layout.codebook_size,
        "stages": layout.num_stages,
        "bits_per_position": position_bits,
        "compression": f"{layout.temporal_compression}x{space}x{space}",
        "chunks": len(index),
        "chunk_bytes": dict(zip(("least", "mean", "most"), index.chunk_bytes(size), strict=True)),
        "segments": index.num_segments,
        "bytes": size,
        "bpp": round(8 * size / pixels, 6),
        "kbps": round(8 * size / 1000 / max(1e-9, float(frames / shape.fps)), 2),
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "encoded_as": f"{model.dtype} on {model.device}",
        "source": f"{header.source.name or '-'} {header.source.width}x{header.source.height}",
        "writer": header.writer,
    }
    if "rate" in header.metadata:
        facts["rate"] = header.metadata["rate"]
        if len(index) <= MAX_HEADS:
            facts["chunk_stages"] = _chunk_stages(reader)
    if ORIGIN_KEY in header.metadata:
        origin = token_origin(header, name)
        facts["token_learner"] = origin and origin.name
    return facts


def inspect_tokens(path: Path) -> Facts:
    """Facts about a file of learned tokens."""
    info = TokenFile(path, str(path)).info
    shape, source, layout = info.header.transform, info.header.source, info.header.format
    seconds = max(1e-9, float(info.num_frames / shape.fps))
    size, space = path.stat().st_size, layout.spatial_compression
    return {
        "kind": "learned tokens",
        "name": str(path),
        "width": shape.width,
        "height": shape.height,
        "fps": _rate(shape.fps),
        "frames": info.num_frames,
        "seconds": round(seconds, 3),
        "tokens": list(info.shape),
        "tokens_per_second": round(info.shape[0] * info.shape[1] / seconds, 2),
        "token_learner": info.origin.name,
        "token_learner_sha256": info.origin.weights_sha256,
        "compression": f"{layout.temporal_compression}x{space}x{space}",
        "bytes": size,
        "kbps": round(8 * size / 1000 / seconds, 2),
        "model": info.header.model.name,
        "weights_sha256": info.header.model.weights_sha256,
        "encoded_as": f"{info.header.model.dtype} on {info.header.model.device}",
        "source": f"{source.name or '-'} {source.width}x{source.height}",
        "writer": info.header.writer,
    }


def _chunk_stages(reader: CodeFileReader) -> dict[str, int]:
    """How many chunks have so many stages, by their number."""
    heads = (reader.read_head(number) for number in range(len(reader.index)))
    counts = Counter(len(head.parts) for head in heads)
    return {str(stages): counts[stages] for stages in sorted(counts)}


def inspect_checkpoint(name: str) -> Facts:
    """Facts about a checkpoint."""
    from vtok.models.checkpoint import (  # needs torch, which the others do not
        list_models,
        read_info,
    )
    from vtok.tokens.checkpoint import is_token_checkpoint

    if is_token_checkpoint(Path(name)):
        return _inspect_token_checkpoint(Path(name))
    if not Path(name).exists() and name not in list_models():
        raise InputError(
            f"{name}: no such file, and no shipped checkpoint ({', '.join(list_models())})"
        )
    info = read_info(name)
    config = info.config
    return {
        "kind": "checkpoint",
        "name": info.name,
        "path": str(info.path),
        "parameters": info.num_parameters,
        "bytes": info.path.stat().st_size,
        "codebook_size": config.codebook_size,
        "num_codebooks": config.num_codebooks,
        "stages": config.num_stages,
        "weights_sha256": info.weights_sha256,
        "config_sha256": info.config_sha256,
    }


def _inspect_token_checkpoint(path: Path) -> Facts:
    from vtok.tokens.checkpoint import read_token_info

    info = read_token_info(path)
    return {
        "kind": "token learner",
        "name": info.name,
        "path": str(path),
        "bytes": path.stat().st_size,
        "learner": info.config.learner,
        "token": f"{info.config.dim} numbers, or {info.config.token_bits} bits",
        "most_tokens": info.config.max_tokens,
        "weights_sha256": info.weights_sha256,
        "config_sha256": info.config_sha256,
        "tokenizer": info.tokenizer_name,
        "tokenizer_sha256": info.tokenizer_sha256,
    }


def inspect_video(path: Path) -> Facts:
    """Facts about a video."""
    info = probe(path)
    return {
        "kind": "video",
        "name": str(path),
        "width": info.width,
        "height": info.height,
        "fps": _rate(info.fps),
        "frames": info.num_frames,
        "seconds": None if info.duration_seconds is None else round(info.duration_seconds, 3),
        "variable_frame_rate": info.variable_frame_rate,
        "rotation": info.rotation,
        "codec": info.codec,
        "reader": info.reader,
        "bytes": path.stat().st_size,
    }


def _rate(fps: Any) -> str:
    return str(fps.numerator) if fps.denominator == 1 else f"{fps.numerator}/{fps.denominator}"
