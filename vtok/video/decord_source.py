"""Frames of a video through decord, read strictly forward.

decord drops to wrong or repeated frames where it seeks, where it reads past the frames that an
editor hid, and in MPEG streams. So it is used for what it reads exactly, one frame after the
other, and whatever it cannot read raises `DecordFault`: another reader then takes over.

It also has no back pressure: while the caller is busy, it may decode the rest of the clip into
memory. So it is used for clips that fit there.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vtok.video.frames import Frames
from vtok.video.probe import VideoIndex

CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "gif")
"""Containers whose frames decord gives completely and in order."""
MEMORY_BYTES = 256 * 2**20
"""Largest decoded clip that decord may hold."""
UNSET = -1e9
"""Time stamps below this, in seconds, are decord's way to say that there is none."""


class DecordFault(Exception):
    """decord cannot give the next frame; the file may be sound all the same."""


def suits_decord(index: VideoIndex, width: int, height: int) -> bool:
    """Tell whether decord reads a file exactly, in bounded memory, at this output size."""
    return (
        index.container in CONTAINERS
        and index.num_video_streams == 1
        and index.damage is None
        and index.timeline.num_frames * width * height * 3 <= MEMORY_BYTES
    )


def read_decord(
    path: Path, index: VideoIndex, width: int, height: int
) -> Iterator[tuple[Fraction, Frames]]:
    """Read the frames of a video, scaled by the decoder.

    Args:
        path: The video file.
        index: Its index.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.

    Yields:
        Seconds from the first frame, and the frame, uint8 [height, width, 3].

    Raises:
        DecordFault: decord cannot open the file, counts its frames differently, or cannot decode
            the next one.
    """
    video = _open(path, width, height)
    if _count_shown(video) != index.timeline.num_frames:
        raise DecordFault("the count of frames differs")
    for position in range(index.timeline.num_frames):
        try:
            frame: Frames = video.next().asnumpy()
        except Exception as exc:  # decord's errors share no base class but Exception
            raise DecordFault(str(exc)) from exc
        if frame.shape != (height, width, 3):  # some narrow frames come with padded rows
            raise DecordFault(f"unexpected shape {frame.shape}")
        yield index.timeline.time(position), frame


def _open(path: Path, width: int, height: int) -> Any:
    """Open a file with decord; its reader has no type that could be named here."""
    try:
        import decord  # here, as it is not needed for files that it does not suit

        decord.logging.set_level(decord.logging.QUIET)
        # fault_tol: the least above 0, so that a repeated frame is an error; 0 would mean none.
        return decord.VideoReader(
            str(path.absolute()), width=width, height=height, num_threads=1, fault_tol=1e-9
        )
    except Exception as exc:  # decord's errors share no base class but Exception
        raise DecordFault(str(exc)) from exc


def _count_shown(video: Any) -> int:
    """Count the frames that are shown: those before time 0 are decoded but cut away."""
    starts = video.get_frame_timestamp(range(len(video)))[:, 0]
    return int(np.count_nonzero((starts >= 0) | (starts < UNSET)))
