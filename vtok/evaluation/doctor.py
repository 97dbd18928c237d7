"""Checks of the installation: versions, ffmpeg, device, and a round trip of a generated video."""

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

NEEDED = ("torch", "numpy", "av", "imageio", "imageio-ffmpeg", "pillow", "safetensors")
EXTRAS = {
    "matplotlib": "plot", "accelerate": "train", "tensorboard": "train", "huggingface_hub": "hf",
}  # fmt: skip
FRAMES, WIDTH, HEIGHT = 13, 96, 64  # of the video that is made


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: name of the component.
        state: `missing` for an absent optional component, `failed` for an error.
        text: details, or what to do.
    """

    name: str
    state: Literal["ok", "missing", "failed"]
    text: str


def examine(model: str = "vtok-base", device: str = "auto") -> Iterator[Finding]:
    """Run all checks, fast ones first; raises nothing.

    Args:
        model: name of a shipped model or path of a checkpoint, for the round trip.
        device: device of the round trip.
    """
    yield Finding("vtok", "ok", f"{vtok.__version__}, {Path(vtok.__file__).parent}")
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield from map(_package, NEEDED)
    yield from (_package(name, extra) for name, extra in EXTRAS.items())
    yield _guarded("ffmpeg", _ffmpeg)
    yield from map(_optional, ("x264", "x265", "av1", "vmaf"))
    yield _guarded("device", lambda: _device(device))
    yield _guarded("round trip", lambda: _round_trip(model, device))


def _package(name: str, extra: str | None = None) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        if extra is not None:
            return Finding(name, "missing", f"pip install 'vtok[{extra}]'")
        return Finding(name, "failed", f"pip install {name}")


def _guarded(name: str, check: Callable[[], str]) -> Finding:
    """Finding with the text of `check`, or with its error."""
    try:
        return Finding(name, "ok", check())
    except Exception as error:  # any error is a finding
        kind = "" if isinstance(error, VtokError) else f"{type(error).__name__}: "
        return Finding(name, "failed", kind + " ".join(str(error).split())[:200])


def _ffmpeg() -> str:
    path = ffmpeg_path()
    done = subprocess.run([path, "-version"], capture_output=True, text=True, check=True)
    found = re.search(r"ffmpeg version (\S+)", done.stdout)
    return f"{found[1] if found else 'unknown version'}, {path}"


def _optional(name: str) -> Finding:
    """Finding about a codec, or about VMAF."""
    from vtok.evaluation.classic import find_codec
    from vtok.evaluation.metrics import check_metrics

    try:
        if name == "vmaf":
            check_metrics([name])
            return Finding(name, "ok", "libvmaf in ffmpeg")
        return Finding(name, "ok", find_codec(name).description)
    except VtokError:
        command = "eval" if name == "vmaf" else "compare"
        return Finding(name, "missing", f"not available to vtok {command}: this ffmpeg lacks it")


def _device(name: str) -> str:
    from vtok.models.load import pick_device, pick_dtype

    device = pick_device(name)
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    return f"{device}, dtype auto means {dtype}, {os.cpu_count()} processor cores"


def _round_trip(name: str, device: str) -> str:
    """Write a video, encode it, decode it and check the result."""
    from vtok.models.load import ModelCache, load
    from vtok.pipeline.decode import decode_file
    from vtok.pipeline.encode import encode_file
    from vtok.pipeline.options import EncodeOptions
    from vtok.video.reader import probe
    from vtok.video.writer import VideoWriter

    t, y, x = np.indices((FRAMES, HEIGHT, WIDTH))
    frames = (np.stack((2 * x + 3 * t, 3 * y, x + y), axis=-1) % 256).astype(np.uint8)
    model = load(name, device=device)
    models = ModelCache(name, device=device)
    with tempfile.TemporaryDirectory(prefix="vtok-") as folder:
        made, codes, decoded = (Path(folder) / file for file in ("a.mp4", "a.vtok", "b.mp4"))
        with VideoWriter(made, width=WIDTH, height=HEIGHT, fps=Fraction(25)) as writer:
            writer.write(frames)
        begin = time.perf_counter()
        to = "safetensors" if model.geometry.entries is None else "vtok"
        result = encode_file(made, codes, model=model, options=EncodeOptions(to))
        decode_file(codes, decoded, model=models)
        seconds = time.perf_counter() - begin
        info = probe(decoded)
    if (info.num_frames, info.width, info.height) != (FRAMES, WIDTH, HEIGHT):
        found = f"{info.num_frames} frames of {info.width}x{info.height}"
        raise VtokError(f"{FRAMES} frames of {WIDTH}x{HEIGHT} decoded to {found}")
    return (
        f"{FRAMES} frames of {WIDTH}x{HEIGHT} by {model.info.name}, {result.bytes:,} bytes, "
        f"encoded and decoded at {FRAMES / seconds:.0f} frames/s"
    )
