"""What vtok finds on this machine, and whether a video made here survives a round trip."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np

import vtok
from vtok.errors import VtokError
from vtok.video.ffmpeg import ffmpeg_path

NEEDED = ("torch", "numpy", "decord2", "imageio", "imageio-ffmpeg", "pillow", "safetensors")
EXTRAS = {"matplotlib": "plot", "accelerate": "train", "tensorboard": "train"}
FRAMES, WIDTH, HEIGHT = 13, 96, 64  # of the video that is made


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        state: `missing` is no error where it is optional; `failed` is.
        text: what was found, or what to do.
    """

    name: str
    state: Literal["ok", "missing", "failed"]
    text: str


def examine(model: str = "vtok-base", device: str = "auto") -> Iterator[Finding]:
    """Look at everything, cheap things first; nothing is raised.

    Args:
        model: a shipped checkpoint's name, or a file, for the round trip.
        device: where to run it.
    """
    yield Finding("vtok", "ok", f"{vtok.__version__}, {Path(vtok.__file__).parent}")
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield from map(_package, NEEDED)
    yield from (_package(name, extra) for name, extra in EXTRAS.items())
    yield _guarded("ffmpeg", _ffmpeg)
    for name in ("x264", "x265", "av1"):
        yield _codec(name)
    yield _vmaf()
    yield _guarded("device", lambda: _device(device))
    yield _guarded("round trip", lambda: _round_trip(model, device))


def _package(name: str, extra: str | None = None) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        if extra is not None:
            return Finding(name, "missing", f"pip install 'vtok[{extra}]'")
        return Finding(name, "failed", f"pip install {name}")


def _guarded(name: str, look: Callable[[], str]) -> Finding:
    """What `look` says, or why it failed."""
    try:
        return Finding(name, "ok", look())
    except Exception as error:  # whatever is wrong with the machine is what is asked for
        text = " ".join(str(error).split())[:200]
        return Finding(
            name,
            "failed",
            text if isinstance(error, VtokError) else f"{type(error).__name__}: {text}",
        )


def _ffmpeg() -> str:
    path = ffmpeg_path()
    done = subprocess.run([path, "-version"], capture_output=True, text=True, check=True)
    found = re.search(r"ffmpeg version (\S+)", done.stdout)
    return f"{found[1] if found else 'of unknown version'}, {path}"


def _codec(name: str) -> Finding:
    from vtok.evaluation.classic import find_codec

    try:
        return Finding(name, "ok", find_codec(name).described)
    except VtokError:
        return Finding(name, "missing", "vtok compare cannot use it: this ffmpeg does not have it")


def _vmaf() -> Finding:
    from vtok.evaluation.vmaf import has_vmaf

    try:
        if has_vmaf():
            return Finding("vmaf", "ok", "by libvmaf in ffmpeg")
    except VtokError:
        pass
    return Finding("vmaf", "missing", "vtok eval leaves it out: this ffmpeg has no libvmaf")


def _device(name: str) -> str:
    from vtok.models.load import pick_device, pick_dtype

    device = pick_device(name)
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    return f"{device}, auto means {dtype}, {os.cpu_count()} processor cores"


def _round_trip(name: str, device: str) -> str:
    """Write a video, encode it, decode it, and read it again."""
    from vtok.models.load import Models, load_model
    from vtok.pipeline.decode import decode_file
    from vtok.pipeline.encode import encode_file
    from vtok.video.reader import probe
    from vtok.video.writer import VideoWriter

    model = load_model(name, device=device)
    models = Models(name, device=device)
    with tempfile.TemporaryDirectory(prefix="vtok-") as folder:
        made, codes, decoded = (Path(folder) / file for file in ("a.mp4", "a.vtok", "b.mp4"))
        with VideoWriter(made, width=WIDTH, height=HEIGHT, fps=Fraction(25)) as writer:
            writer.write(_frames())
        begin = time.perf_counter()
        result = encode_file(made, codes, model=model)
        decode_file(codes, decoded, models=models)
        seconds = time.perf_counter() - begin
        info = probe(decoded)
    if (info.num_frames, info.width, info.height) != (FRAMES, WIDTH, HEIGHT):
        found = f"{info.num_frames} frames of {info.width}x{info.height}"
        raise VtokError(f"{FRAMES} frames of {WIDTH}x{HEIGHT} came back as {found}")
    what = f"{FRAMES} frames of {WIDTH}x{HEIGHT} by {model.info.name}"
    return f"{what}, {result.bytes:,} bytes of codes, {FRAMES / seconds:.0f} frames/s both ways"


def _frames() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A slope of colours that slides."""
    x, y = np.arange(WIDTH), np.arange(HEIGHT)[:, None]
    frames = [
        np.stack(((2 * x + 3 * k + 0 * y) % 256, (3 * y + 0 * x) % 256, (x + y) % 256), axis=-1)
        for k in range(FRAMES)
    ]
    return np.stack(frames).astype(np.uint8)
