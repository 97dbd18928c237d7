#!/usr/bin/env python
"""stub"""
from pathlib import Path
import subprocess, imageio_ffmpeg

SOURCES = (
    ("testsrc2=size=320x240:rate=25", "mp4"),
    ("mandelbrot=size=320x240:rate=25:end_scale=0.05", "mp4"),
    ("life=size=320x240:rate=25:mold=10:death_color=#C83232:life_color=#00ff00", "mp4"),
)

def make_data(folder: Path, frames: int = 60) -> Path:
    ff = imageio_ffmpeg.get_ffmpeg_exe()
    for n, (source, suffix) in enumerate(SOURCES):
        subprocess.run([ff, "-v", "error", "-y", "-f", "lavfi", "-i", source, "-frames:v", str(frames), "-pix_fmt", "yuv420p", str(folder / f"{n}.{suffix}")], check=True)
    subprocess.run([ff, "-v", "error", "-y", "-f", "lavfi", "-i", "mandelbrot=size=480x360", "-frames:v", "1", str(folder / "p.png")], check=True)
    return folder
