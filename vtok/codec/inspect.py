"""What a video, a code file or a checkpoint says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from vtok.checkpoint import list_models, read_info
from vtok.codefile import CodeFileReader
from vtok.codefile.container import MAGIC
from vtok.errors import InputError
from vtok.media.reader import probe

Facts = dict[str, Any]


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
    if name in list_models() or (path.suffix == ".safetensors" and path.is_file()):
        return inspect_checkpoint(name)
    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) == MAGIC:
                stream.seek(0)
                return inspect_code_file(stream, name, path.stat().st_size)
    except FileNotFoundError as exc:
        raise InputError(f"{name}: no such file") from exc
    except OSError as exc:
        raise InputError(f"{name}: cannot be read ({exc.strerror})") from exc
    return inspect_video(path)


def inspect_code_file(stream: BinaryIO, name: str, size: int | None) -> Facts:
    """Facts about a code file; a pipe is read to its end."""
    reader = CodeFileReader(stream, name=name)
    if not stream.seekable():
        for _ in reader:  # of a pipe, the number of frames is known at its end
            pass
    frames = reader.num_frames or 0
    size = reader.bytes_read if size is None else size
    header = reader.header
    layout, shape, model = header.format, header.transform, header.model
    steps = sum(entry.num_steps for entry in reader.chunks)
    space = layout.spatial_compression
    position_bits = layout.num_stages * layout.num_codebooks * layout.bits_per_code
    pixels = max(1, frames * shape.width * shape.height)
    return {
        "kind": "code file",
        "name": name,
        "version": ".".join(map(str, reader.version)),
        "width": shape.width,
        "height": shape.height,
        "fps": _rate(shape.fps),
        "frames": frames,
        "seconds": round(float(frames / shape.fps), 3),
        "codes": [layout.num_stages * layout.num_codebooks, steps, *layout.grid],
        "codebook_size": layout.codebook_size,
        "stages": layout.num_stages,
        "bits_per_position": position_bits,
        "compression": f"{layout.temporal_compression}x{space}x{space}",
        "chunks": len(reader.chunks),
        "bytes": size,
        "bpp": round(8 * size / pixels, 6),
        "kbps": round(8 * size / 1000 / max(1e-9, float(frames / shape.fps)), 2),
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "encoded_as": f"{model.dtype} on {model.device}",
        "source": f"{header.source.name or '-'} {header.source.width}x{header.source.height}",
        "writer": header.writer,
    }


def inspect_checkpoint(name: str) -> Facts:
    """Facts about a checkpoint."""
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
