"""A ring of batches of frames in memory that two processes share.

The writer fills one slot after the other; the reader copies each out and says so; the writer waits
where every slot is full. The memory has no name, so nothing is left of it once both are gone.
"""

import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np

from vtok.media.frames import Frames

NUM_SLOTS = 4
"""Batches that the writer may be ahead."""
BATCH_FRAMES = 16
"""Most frames in a batch."""
BATCH_BYTES = 8 * 2**20
"""Most bytes in a batch, but for one frame alone."""


@dataclass(frozen=True)
class RingShape:
    """Sizes of a ring of batches, [num_slots, batch_frames, height, width, 3]."""

    batch_frames: int
    """Frames in a full batch."""
    height: int
    """Height of a frame in pixels."""
    width: int
    """Width of a frame in pixels."""

    @property
    def dimensions(self) -> tuple[int, int, int, int, int]:
        """Shape of the whole ring as an array."""
        return NUM_SLOTS, self.batch_frames, self.height, self.width, 3


def ring_shape(width: int, height: int) -> RingShape:
    """Choose how many frames of this size make a batch."""
    fitting = BATCH_BYTES // (width * height * 3)
    return RingShape(min(BATCH_FRAMES, max(1, fitting)), height, width)


def create_memory() -> int:
    """Make an empty piece of memory without a name; returns its file descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vtok-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def map_ring(descriptor: int, shape: RingShape) -> Frames:
    """Map a ring into this process, growing the memory to its size where needed.

    Returns:
        uint8 [num_slots, batch_frames, height, width, 3], shared; unmapped with its last use.
    """
    num_bytes = int(np.prod(shape.dimensions))
    if os.fstat(descriptor).st_size < num_bytes:
        os.ftruncate(descriptor, num_bytes)
    return np.frombuffer(mmap.mmap(descriptor, num_bytes), np.uint8).reshape(shape.dimensions)
