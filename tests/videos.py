"""Small test videos whose frames contain their number as a barcode.

The picture is a grid of 4 x 4 black or white cells. The corners mark the orientation (top left
white, the others black); the other twelve cells are the bits of the frame number. The barcode
survives lossy coding, resizing and odd sizes.
"""

import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Change = Callable[[int, "av.Packet"], bool]
"""Function of the number of a packet and the packet, which it may change; False leaves it out."""

GRID = 4
CORNERS = {(0, 0): 1, (0, 3): 0, (3, 0): 0, (3, 3): 0}
BIT_CELLS = [(y, x) for y in range(GRID) for x in range(GRID) if (y, x) not in CORNERS]
# output arguments for a fast, exact H.264 file
LOSSLESS = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-pix_fmt", "yuv420p")
# a beep of 50 ms each 0.7 s, each of another pitch
BEEPS = "aevalsrc=sin(2*PI*(500+200*floor(t/0.7))*t)*lt(mod(t\\,0.7)\\,0.05):s=48000:d=4"
SOUND = ("-f", "lavfi", "-i", BEEPS)
H264 = ("-map", "0:v", "-map", "1:a", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "fast")


def barcode_frame(number: int, width: int = 64, height: int = 48) -> Frames:
    """Draw one frame with `number` (0 to 4095) in it, uint8 [height, width, 3]."""
    cells = np.zeros((GRID, GRID), np.uint8)
    for cell, value in CORNERS.items():
        cells[cell] = value
    for bit, cell in enumerate(BIT_CELLS):
        cells[cell] = number >> bit & 1
    rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
    gray = 30 + 195 * cells[rows][:, columns]
    return np.repeat(gray[..., None], 3, axis=-1).astype(np.uint8)


def barcode_frames(numbers: range, width: int = 64, height: int = 48) -> Frames:
    """Draw frames with these numbers, uint8 [T, height, width, 3]."""
    return np.stack([barcode_frame(number, width, height) for number in numbers])


def read_barcode(frame: Frames) -> int:
    """Read the number of one frame; fails if the picture is not upright."""
    height, width = frame.shape[:2]
    y = (2 * np.arange(GRID) + 1) * height // (2 * GRID)
    x = (2 * np.arange(GRID) + 1) * width // (2 * GRID)
    cells = frame[y][:, x].mean(axis=-1) > 127
    assert all(cells[cell] == bool(value) for cell, value in CORNERS.items()), "frame not upright"
    return sum(int(cells[cell]) << bit for bit, cell in enumerate(BIT_CELLS))


def read_barcodes(frames: Frames) -> list[int]:
    """Read the numbers of frames uint8 [T, H, W, 3]."""
    return [read_barcode(frame) for frame in frames]


def run_ffmpeg(*arguments: str | Path, data: bytes = b"") -> None:
    """Run the ffmpeg program of imageio; its log is the message of a failure."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")


def make_video(
    path: Path,
    num_frames: int = 30,
    *,
    width: int = 64,
    height: int = 48,
    fps: str = "30",
    arguments: tuple[str, ...] = LOSSLESS,
    inputs: tuple[str, ...] = (),
) -> Path:
    """Write a video of frames numbered from 0.

    Args:
        path: File to write; its suffix picks the container.
        num_frames: Number of frames.
        width: Width in pixels.
        height: Height in pixels.
        fps: Frame rate in the syntax of ffmpeg, such as "30" or "30000/1001".
        arguments: ffmpeg output arguments: codec, filters, flags.
        inputs: ffmpeg arguments of further inputs, such as a sound.
    """
    raw = barcode_frames(range(num_frames), width, height).tobytes()
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", fps)
    run_ffmpeg(*source, "-i", "-", *inputs, *arguments, path, data=raw)
    return path


def make_film(path: Path, codec: str = "aac") -> Path:
    """Write 120 frames with beeps."""
    arguments = (*H264, "-c:a", codec, "-strict", "-2")
    return make_video(path, 120, arguments=arguments, inputs=SOUND)


def make_timed_video(
    path: Path, ticks: Sequence[int], time_base: Fraction, width: int = 64, height: int = 48
) -> Path:
    """Write a video whose numbered frames have these time stamps.

    Args:
        path: File to write; its suffix picks the container.
        ticks: Time stamp of each frame in units of `time_base`, rising.
        time_base: Seconds in one tick.
        width: Width in pixels.
        height: Height in pixels.
    """
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(barcode_frame(number, width, height), format="rgb24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source: Path, target: Path, change: Change) -> Path:
    """Copy packets that a function, which may change their times, returns True for."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(old.streams.video[0])):
            if packet.dts is not None and change(number, packet):
                packet.stream = stream
                new.mux(packet)
    return target


def without(*numbers: int) -> Change:
    """Leave out packets by their numbers."""
    return lambda number, _: number not in numbers


def later(seconds: float, first: int = 0) -> Change:
    """Add seconds to the time stamps from a packet on."""

    def change(number: int, packet: av.Packet) -> bool:
        if number >= first:
            ticks = round(seconds / packet.time_base)
            packet.pts += ticks
            packet.dts += ticks
        return True

    return change
