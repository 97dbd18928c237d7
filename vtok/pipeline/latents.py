"""Writing of latents, for tokenizers without codes, to safetensors, npy or pt files.

One array `latents`, [D, t, h, w] in float16 or float32. A safetensors file has its header as JSON
in the metadata under the key `vtok`; a pt file is a dictionary of `latents` and `vtok`; a npy file
has no header. Windows follow each other in time. `array_files` reads them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vtok.codefile.header import LatentHeader, dump_json, load_json
from vtok.codefile.sections import FrameDurations
from vtok.errors import CodeFileError
from vtok.pipeline.files import safetensors_head, with_time_base
from vtok.pipeline.result import CodeChunk

FORMAT, VERSION = "vtok.latents", 1
COPY_STEPS = 256
SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32"}

Latents = npt.NDArray[np.floating[Any]]


def write_latents(
    stream: BinaryIO,
    header: LatentHeader,
    chunks: Iterator[CodeChunk],
    to: str,
    durations: Callable[[], FrameDurations | None],
) -> LatentHeader:
    """Write the latents of a video; memory does not grow with its length, except for pt.

    Args:
        stream: output.
        header: the number of frames is filled in.
        chunks: latents [1, D, t, h, w] of the type in the header.
        to: safetensors, npy or pt.
        durations: as for `write_array`.

    Returns:
        The header as written.

    Raises:
        CodeFileError: if there are no frames.
    """
    layout, steps, frames = header.format, 0, 0
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    with tempfile.TemporaryFile(prefix="vtok-") as spilled:  # the header needs their number
        for chunk in chunks:
            by_step = np.moveaxis(chunk.codes[0], 1, 0)
            spilled.write(np.ascontiguousarray(by_step, dtype).tobytes())
            steps, frames = steps + len(by_step), frames + chunk.num_frames
        if not steps:
            raise CodeFileError("the video has no frames")
        header, times = replace(header, num_frames=frames), durations()
        if times is not None:
            header = with_time_base(header, times)
        shape = (layout.latent_dim, steps, *layout.grid)
        spilled.flush()
        stored = np.memmap(spilled, dtype, "r", shape=(steps, layout.latent_dim, *layout.grid))
        latents: Latents = np.moveaxis(stored, 1, 0)
        if to == "pt":
            import torch

            numbers = torch.from_numpy(np.array(latents, order="C"))
            made = {"latents": numbers, "vtok": _to_json(header)}
            if times is not None:
                made["durations"] = torch.from_numpy(times.ticks)
            torch.save(made, stream)
            return header
        if to == "npy":
            about = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, about)
        else:
            metadata = {"vtok": _to_json(header)}
            tensors: dict[str, tuple[str, Sequence[int], int]] = {}
            tensors["latents"] = (SAFETENSORS_TYPES[layout.dtype], shape, stored.nbytes)
            if times is None:
                stream.write(safetensors_head(tensors, metadata))
            else:  # 8-byte numbers first, so that all are aligned
                ticks = times.ticks.astype("<i8")
                tensors = {"durations": ("I64", ticks.shape, ticks.nbytes), **tensors}
                stream.write(safetensors_head(tensors, metadata) + ticks.tobytes())
        for channel in latents:
            for first in range(0, steps, COPY_STEPS):
                stream.write(np.ascontiguousarray(channel[first : first + COPY_STEPS]).tobytes())
    return header


def _to_json(header: LatentHeader) -> str:
    about = {"format": FORMAT, "version": VERSION, "header": load_json(header.to_json())}
    return dump_json(about).decode()
