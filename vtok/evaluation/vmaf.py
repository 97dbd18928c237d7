"""VMAF, by the libvmaf that is built into the ffmpeg program that imageio ships.

Model vmaf_v0.6.1 on the luma of frames made BT.709 of limited range, the mean over frames.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from contextlib import suppress
from functools import cache

import numpy as np

from vtok.errors import VtokError
from vtok.evaluation.metrics import Frames
from vtok.video.ffmpeg import QUIET, ffmpeg_path

MODEL = "vmaf_v0.6.1"
LEAST_SIDE = 32
"""Pixels on each side below which libvmaf's picture pyramid has nothing left to compare."""
_GRAPH = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,"
    "format=yuv444p,split[a][b];"  # luma alone is read; with 4:4:4, odd sizes need no care
    "[a]crop={width}:{height}:0:0[frames];[b]crop={width}:{height}:0:{height}[reference];"
    "[frames][reference]libvmaf=model=version={model}:n_threads=1"
)


@cache
def has_vmaf() -> bool:
    """Whether the ffmpeg program has libvmaf in it."""
    command = [ffmpeg_path(), "-hide_banner", "-filters"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return re.search(r"\slibvmaf\s", done.stdout) is not None


class Vmaf:
    """One running ffmpeg that compares frames as they come; memory does not grow with them.

    Frames and reference go in as one picture, the one above the other: a single pipe cannot wait
    for itself as two could for one another.
    """

    def __init__(self, width: int, height: int) -> None:
        """Start ffmpeg, for frames of this size."""
        graph = _GRAPH.format(width=width, height=height, model=MODEL)
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{2 * height}"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self._process = subprocess.Popen(
            [*(ffmpeg_path(), *QUIET, "-threads", "1", *source, "-i", "pipe:0"),
             *("-lavfi", graph, "-f", "null", "-")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the parent, which then closes
        )  # fmt: skip

    def add(self, frames: Frames, reference: Frames) -> None:
        """Compare more frames, uint8 [T, H, W, 3] and of the same shape.

        Raises:
            VtokError: ffmpeg has failed.
        """
        assert self._process.stdin is not None
        try:
            for pair in zip(frames, reference, strict=True):
                self._process.stdin.write(np.concatenate(pair).data)
        except BrokenPipeError as exc:
            raise VtokError(f"VMAF could not be measured: {self._last_words()}") from exc

    def finish(self) -> float:
        """The mean over all frames, 0 to 100.

        Raises:
            VtokError: ffmpeg has failed.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the log says why
            self._process.stdin.close()
        self._process.wait()
        log = self._read_log()
        score = re.search(r"VMAF score: ([0-9.]+)", log)
        if self._process.returncode != 0 or score is None:
            raise VtokError(f"VMAF could not be measured: {self._last_words()}")
        return float(score[1])

    def close(self) -> None:
        """Stop; fine after `finish` and twice."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._log.close()

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def _last_words(self) -> str:
        self._process.wait()
        return (self._read_log().splitlines() or ["ffmpeg said nothing"])[-1][:200]
