"""Makers of odd inputs for the table in kinds.py; most have 30 frames of 128x96 pixels at 30/s."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from videos import (
    Change,
    barcode_frame,
    barcode_frames,
    make_timed_video,
    make_video,
    remux,
    run_ffmpeg,
)

WIDTH, HEIGHT, COUNT = 128, 96, 30
ALL = range(COUNT)
STILL = 5  # number of the frame of a single picture
X264 = "-c:v libx264 -preset ultrafast -qp 0 -pix_fmt yuv420p"
KEYS = "-c:v libx264 -preset veryfast -crf 10 -pix_fmt yuv420p -g 15 -bf 0"
HEVC = "-c:v libx265 -preset ultrafast -x265-params log-level=error"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 2M -pix_fmt yuv420p"
AV1 = "-c:v libsvtav1 -preset 12 -crf 20 -svtav1-params avif=0"
MPEG2 = "-c:v mpeg2video -q:v 2"
MPEG4 = "-c:v mpeg4 -q:v 2"
B_FRAMES = "-c:v libx264 -crf 10 -pix_fmt yuv420p -x264-params bframes=3:b-adapt=0:scenecut=0"
OPEN_GOP = f"{B_FRAMES}:open-gop=1:keyint=10"
ALPHA = "-vf format=rgba,colorchannelmixer=aa=0.9"
UNEVEN = np.cumsum([0, *np.random.default_rng(0).integers(15, 90, COUNT - 1)]).tolist()
"""Milliseconds of frames at a variable rate."""
PHONE_TICKS = "33*N+50*floor(N/7)"
PHONE_TIMES = [(33 * n + 50 * (n // 7)) / 1000 for n in ALL]
BEEPS = "aevalsrc=sin(2*PI*500*t)*lt(mod(t\\,0.3)\\,0.05):s=48000:d=1.3"

Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Kind:
    """Input to make, and what must come of it.

    Attributes:
        name: row of the table.
        make: makes it in an empty folder and returns its path.
        numbers: of the frames that come, in order.
        rate: frames per second; frame n is at n / rate, counted from the first one.
        seconds: times of the frames, where they are not those.
        note: text that a note must contain; without one there must be no note.
        error: text of the error; empty if the input is read.
        options: of `EncodeOptions`.
        command: shell command for the `vtok encode` in "$@"; `{}` is the input.
        is_set: it is an input of `vtok dataset encode`.
    """

    name: str
    make: Make
    numbers: Sequence[int] = ALL
    rate: Fraction = Fraction(30)
    seconds: Sequence[float] | None = None
    note: str = ""
    error: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    is_set: bool = False

    @property
    def times(self) -> list[float]:
        """Seconds from the first frame to each."""
        if self.seconds is not None:
            return list(self.seconds)
        return [float((number - self.numbers[0]) / self.rate) for number in self.numbers]


def film(folder: Path, name: str = "film.mp4", arguments: str = KEYS, **options: Any) -> Path:
    """Make numbered frames with these arguments of ffmpeg."""
    sizes = {"width": WIDTH, "height": HEIGHT, **options}
    return make_video(folder / name, arguments=tuple(arguments.split()), **sizes)


def video(
    name: str, file: str, arguments: str, fps: str = "30", count: int = COUNT, **facts: Any
) -> Kind:
    """Describe a file that ffmpeg writes with these arguments."""
    width, height = facts.pop("size", (WIDTH, HEIGHT))
    facts = {"numbers": range(count), "rate": Fraction(fps), **facts}
    sizes: dict[str, Any] = {"num_frames": count, "width": width, "height": height, "fps": fps}
    return Kind(name, lambda folder: film(folder, file, arguments, **sizes), **facts)


def copied(*arguments: str, name: str = "a.mp4", of: str = KEYS, **options: Any) -> Make:
    """Copy the packets of a film with these arguments of ffmpeg; "IN" stands for it."""

    def make(folder: Path) -> Path:
        source = film(folder, f"film{Path(name).suffix}", of, **options)
        given = [part for one in arguments for part in one.split()]
        run_ffmpeg(*(source if one == "IN" else one for one in given), "-c", "copy", folder / name)
        return folder / name

    return make


def remuxed(name: str, change: Change, of: str = KEYS, **options: Any) -> Make:
    """Copy the packets of a film that a function, which may change their times, accepts."""
    return lambda folder: remux(film(folder, "film.mkv", of, **options), folder / name, change)


def joined(name: str, *parts: dict[str, Any]) -> Make:
    """Write recordings after each other into one file."""

    def make(folder: Path) -> Path:
        suffix = Path(name).suffix
        codec = KEYS if suffix == ".ts" else MPEG2
        files = [film(folder, f"{n}{suffix}", codec, **part) for n, part in enumerate(parts)]
        (folder / name).write_bytes(b"".join(file.read_bytes() for file in files))
        return folder / name

    return make


def hourly(number: int, packet: Any) -> bool:
    """Set the times of packets to one an hour."""
    packet.pts = packet.dts = round(3600 * number / packet.time_base)
    packet.duration = 0
    return True


def pictures(name: str, numbers: Sequence[int] = ALL, of: str = "frame_%04d.png") -> Make:
    """Make a folder of pictures; the input is the folder or a pattern in it."""

    def make(folder: Path) -> Path:
        (folder / "frames").mkdir()
        for number in numbers:
            picture = Image.fromarray(barcode_frame(number, WIDTH, HEIGHT))
            picture.save(folder / "frames" / (of % number))
        (folder / "frames" / "._hidden.png").write_bytes(b"\0")
        return folder / name

    return make


def stack(name: str, numbers: Sequence[int] = ALL, **options: Any) -> Make:
    """Make a file of several pictures."""

    def make(folder: Path) -> Path:
        first, *others = (Image.fromarray(barcode_frame(n, WIDTH, HEIGHT)) for n in numbers)
        first.save(folder / name, save_all=True, append_images=others, **options)
        return folder / name

    return make


def picture(name: str, mode: str = "RGB", turn: int = 0, **options: Any) -> Make:
    """Make a picture; `turn` is the number of quarter turns that its EXIF data undo."""

    def make(folder: Path) -> Path:
        image = Image.fromarray(np.rot90(barcode_frame(STILL, WIDTH, HEIGHT), turn).copy())
        exif = Image.Exif()
        exif[0x0112] = 6 if turn else 1
        image.convert(mode, dither=Image.Dither.NONE).save(folder / name, exif=exif, **options)
        return folder / name

    return make


def depth(name: str, dtype: str, scale: float, **options: Any) -> Make:
    """Make a gray picture of these values."""

    def make(folder: Path) -> Path:
        gray = barcode_frame(STILL, WIDTH, HEIGHT)[..., 0].astype(float) * scale
        Image.fromarray(gray.astype(dtype)).save(folder / name, **options)
        return folder / name

    return make


def deep_video(folder: Path) -> Path:
    """Make a video of 16-bit gray values."""
    frames = barcode_frames(ALL, WIDTH, HEIGHT)[..., 0].astype("<u2") * 256
    source = f"-f rawvideo -pix_fmt gray16le -s {WIDTH}x{HEIGHT} -r 30 -i -".split()
    run_ffmpeg(*source, "-c:v", "ffv1", folder / "a.mkv", data=frames.tobytes())
    return folder / "a.mkv"


def array(name: str, dtype: str = "uint8", **others: Any) -> Make:
    """Make a file of an array [T, H, W, 3], and others in it."""

    def make(folder: Path) -> Path:
        frames, path = barcode_frames(ALL, WIDTH, HEIGHT).astype(dtype), folder / name
        if path.suffix == ".npy":
            np.save(path, frames)
        elif path.suffix == ".npz":
            np.savez_compressed(path, video=frames, **others)
        else:
            with h5py.File(path, "w") as file:
                file["observations/images/top"] = frames
        return path

    return make


def content(name: str, data: bytes) -> Make:
    """Make a file with these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def cut(name: str, arguments: str, share: float) -> Make:
    """Make a file that ends early."""

    def make(folder: Path) -> Path:
        data = film(folder, f"whole_{name}", arguments).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])
        return folder / name

    return make


def damaged(name: str = "a.mkv", arguments: str = MPEG4) -> Make:
    """Make a film with noise in the packet of frame 20, and a key frame every 5."""
    return copied("-i IN -bsf:v noise=amount=2*eq(n\\,20)", name=name, of=f"{arguments} -g 5")


def streams(name: str) -> Make:
    """Make a file of two video streams, of 30 and of 20 frames."""

    def make(folder: Path) -> Path:
        films = [film(folder, f"{count}.mkv", num_frames=count) for count in (COUNT, 20)]
        arguments = f"-i {films[0]} -i {films[1]} -map 0 -map 1 -c copy {folder / name}"
        run_ffmpeg(*arguments.split())
        return folder / name

    return make


def tar_of_two(folder: Path) -> Path:
    """Make a tar sample with two videos."""
    source = film(folder)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name in ("000.left.mp4", "000.right.mp4"):
            tar.add(source, name)
    return folder / "shard.tar"


def table(is_embedded: bool) -> Make:
    """Make a parquet table with a column of videos, as Hugging Face datasets write it."""

    def make(folder: Path) -> Path:
        source = film(folder)
        data = source.read_bytes() if is_embedded else None
        videos = pyarrow.array([{"bytes": data, "path": source.name}] * 2)
        pyarrow.parquet.write_table(pyarrow.table({"video": videos}), folder / "a.parquet")
        return folder / "a.parquet"

    return make


def song(folder: Path) -> Path:
    """Make a song with a cover picture."""
    cover = film(folder, "cover.png", "", num_frames=1)
    sound = "-f lavfi -i sine=d=1 -map 1 -map 0 -c:v copy -disposition:v attached_pic"
    run_ffmpeg("-i", cover, *sound.split(), folder / "a.m4a")
    return folder / "a.m4a"


def named(name: str | bytes) -> Make:
    """Make a file with this name."""
    return lambda folder: film(folder).rename(folder / os.fsdecode(name))


def pipe(folder: Path) -> Path:
    """Make a named pipe."""
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def with_cover(folder: Path) -> Path:
    """Make a film with a cover picture in front."""
    cover, path = film(folder, "cover.png", "", num_frames=1), folder / "a.mp4"
    arguments = f"-i {cover} -i {film(folder)} -map 0 -map 1 -c copy -disposition:v:0 attached_pic"
    run_ffmpeg(*arguments.split(), path)
    return path


def preview(name: str, kind: str, **options: Any) -> Make:
    """Make a picture with a smaller one behind it."""

    def make(folder: Path) -> Path:
        image = Image.fromarray(barcode_frame(STILL, WIDTH, HEIGHT))
        others = [image.resize((32, 24))]
        image.save(folder / name, kind, save_all=True, append_images=others, **options)
        return folder / name

    return make


def pickled(folder: Path) -> Path:
    """Make an array of objects."""
    np.save(folder / "a.npy", np.array([{}, []], object), allow_pickle=True)
    return folder / "a.npy"


def tone(folder: Path) -> Path:
    """Make a file of sound."""
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=1", folder / "a.m4a")
    return folder / "a.m4a"


def uneven(name: str) -> Make:
    """Make a film at a variable rate."""
    return lambda folder: make_timed_video(folder / name, UNEVEN, Fraction(1, 1000), WIDTH, HEIGHT)


def nearest(seconds: float) -> int:
    """Return the number of the frame of such a film that is nearest to a time."""
    return int(np.abs(np.array(UNEVEN) / 1000 - seconds).argmin())


def lossy(name: str) -> Make:
    """Make a film without its second key frame, number 15."""
    return copied("-i IN -bsf:v noise=drop=eq(n\\,15)", name=name)


def open_cut(folder: Path) -> Path:
    """Make a film without what is before its second key frame, number 10."""
    source = film(folder, "film.mkv", OPEN_GOP)
    with av.open(str(source)) as container:
        keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    return remux(source, folder / "a.mkv", lambda number, _: number >= keys[1])


def phone(folder: Path) -> Path:
    """Make a video as phones do: HEVC of 10 bits, HLG, turned, at a variable rate, with sound.

    Three patches between the cells of the barcode are red, green and blue.
    """
    frames = barcode_frames(ALL, WIDTH, HEIGHT)
    for patch, color in enumerate(np.eye(3) * 150 + 40):
        frames[:, HEIGHT // 2 - 6 : HEIGHT // 2 + 6, patch_columns(patch)] = color
    stored, path = folder / "stored.mov", folder / "a.mov"
    run_ffmpeg(
        *f"-f rawvideo -pix_fmt rgb24 -s {WIDTH}x{HEIGHT} -r 30 -i - -f lavfi -i {BEEPS}".split(),
        *("-c:a", "aac", "-fps_mode", "passthrough", "-enc_time_base", "1/1000", "-vf"),
        "transpose=2,scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le,"
        f"settb=1/1000,setpts='{PHONE_TICKS}'",
        *f"{HEVC}:colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc".split(),
        *("-tag:v", "hvc1", stored),
        data=frames.tobytes(),
    )
    run_ffmpeg("-display_rotation", "-90", "-i", stored, "-c", "copy", path)
    return path


def patch_columns(patch: int) -> slice:
    """Return the columns of a patch of color; its rows are in the middle."""
    middle = (patch + 1) * WIDTH // 4
    return slice(middle - 8, middle + 8)


def turned(degrees: int, filters: str) -> Make:
    """Make a film that is upright only with its rotation applied."""
    return copied(f"-display_rotation {degrees} -i IN", of=f"-vf {filters} {X264}")


def hdr(transfer: str) -> Kind:
    """Describe HDR video of 10 bits."""
    params = f":colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    label = {"smpte2084": "PQ", "arib-std-b67": "HLG"}[transfer]
    return video(
        f"HDR, {label}, 10 bits", "a.mp4", f"-pix_fmt yuv420p10le {HEVC}{params}",
        note=f"{label} HDR is tone-mapped to SDR",
    )  # fmt: skip
