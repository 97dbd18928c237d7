"""Codes as arrays for other programs: .npy and .safetensors, with the same bytes every time."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from vtok.codec.streams import CodeChunk
from vtok.codefile import Header


def join_codes(chunks: list[CodeChunk], codebook_size: int) -> npt.NDArray[np.unsignedinteger]:
    """All codes in the smallest type that holds them: [t, h, w], or [K, t, h, w] where K > 1."""
    dtype = np.uint16 if codebook_size <= 2**16 else np.uint32
    codes = np.concatenate([chunk.codes.astype(dtype) for chunk in chunks], axis=2)
    codes = codes.reshape(-1, *codes.shape[2:])  # stages outermost
    return codes[0] if len(codes) == 1 else codes


def write_npy(stream: BinaryIO, codes: npt.NDArray[np.unsignedinteger], header: Header) -> None:
    """Write codes as a .npy file; it has no room for the header."""
    np.lib.format.write_array(stream, codes, allow_pickle=False)


def write_safetensors(
    stream: BinaryIO, codes: npt.NDArray[np.unsignedinteger], header: Header
) -> None:
    """Write codes as the tensor `codes`, with the header of a code file as JSON in `vtok`."""
    # one metadata key: safetensors writes several in an order that changes from run to run
    stream.write(save({"codes": codes}, metadata={"vtok": header.to_json().decode()}))


TENSOR_WRITERS = {"npy": write_npy, "safetensors": write_safetensors}
