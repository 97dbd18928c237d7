"""Feed damaged code files, dumps and foreign weights to every function that reads them.

Each must give the right codes or raise a `VtokError`, within 2 seconds and 200 MB. Mutations are
numbered and the same on every machine, so that a failure can be repeated with --first. Reading
weights may also allocate only a multiple of the file's size. Muxing sound may end with an error.

    scripts/fuzz --first 4711 --count 1
    scripts/fuzz --coder 2            entropy-coded files only
    scripts/fuzz --sections           files with sound and times of frames only
    scripts/fuzz --sound              sound that is muxed into videos, by child processes
    scripts/fuzz --weights            files of torch.save, TorchScript, Lightning and safetensors
    scripts/fuzz --atheris corpus/    guided by coverage, until stopped (pip install atheris)
"""

import argparse
import io
import resource
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from vtok._sound import Packet, Sound
from vtok._times import Part
from vtok.codefile.dump import FORMATS, DumpReader, dump
from vtok.codefile.edit import Kept, check_alike, cut, join
from vtok.codefile.packing import encode_parts
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import SEGMENTED
from vtok.codefile.sections import (
    FrameDurations,
    find_times,
    sound_between,
    sound_of_section,
    sound_to_section,
)
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import OutputError, VtokError
from vtok.pipeline.sections import part_of_file
from vtok.video.mux import FrameTimes, remux
from vtok.video.sound import Clock, read_sound

MAX_SECONDS, MAX_MEGABYTES = 2.0, 200
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
INTERESTING = (0, 1, 2, 127, 128, 255, 256, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
WORDS = (
    b"CODE",
    b"SEGM",
    b"FOOT",
    b"note",
    b"time",
    b"soun",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"NEXT",
    b"null",
    b"-1",
    b"1e9",
    b"99999999",
    b"{}",
)
PICKLED = (
    *(bytes((byte,)) for byte in b"(.0NRQabesut}])\x81\x85\x86\x87\x94\x93\x88"),
    b"h\x00", b"q\x00", b"h\x05", b"K\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff",
    b"X\xff\xff\xff\x7f", b"X\0\0\0\0",
    b"\x8b\xff\xff\xff\x7f", b"\x8a\x08\0\0\0\0\0\0\0\x40", b"]" * 200, b")" + b"\x85" * 200,
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"ctorch\nDoubleStorage\n",
)  # fmt: skip
MAX_FACTOR, BASE_BYTES = 8, 1 << 16  # memory for weights: 8 * (size of the file + 64 KiB)
largest = {"factor": 0.0}  # measured


class Pipe(io.BytesIO):
    """A stream that cannot seek."""

    def seekable(self) -> bool:
        """Return False."""
        return False


def seeds(coder: int | None = None, *, sections: bool = False) -> list[bytes]:
    """Make code files and dumps of them.

    Args:
        coder: only packed (0) or coded (2) files.
        sections: only files with times and sound.
    """
    extended = [with_sections(path.read_bytes()) for path in sorted(GOLDEN.glob("*.vtok"))]
    if sections:
        return extended
    packed = [path.read_bytes() for path in sorted(GOLDEN.glob("*.vtok"))]
    packed += [small_file(bits, smooth) for bits in (6, 18) for smooth in (False, True)]
    modelled = [small_file(6, True, books, modelled=True) for books in (1, 2)]
    if coder is not None:
        return modelled if coder else packed
    files = packed + modelled + extended
    return files + [dumped(data, kind) for data in (*files[:2], files[-1]) for kind in FORMATS]


def small_file(bits: int, smooth: bool, books: int = 1, modelled: bool = False) -> bytes:
    """Make a file of version 1.1 of random or still codes, entropy-coded or packed."""
    golden = CodeFileReader(io.BytesIO((GOLDEN / "v1.vtok").read_bytes())).header
    layout = replace(golden.format, codebook_size=2**bits, num_codebooks=books, chunk_steps=8)
    header = replace(golden, format=layout)
    if modelled:  # of no fewer positions, or it would be packed
        shape = replace(golden.transform, width=72, height=64)
        layout = replace(layout, grid=(8, 9), spatial_compression=8)
        header = replace(golden, format=layout, transform=shape)
    rng, stream = np.random.default_rng(bits), io.BytesIO()
    with CodeFileWriter(stream, header, version=SEGMENTED) as writer:
        for number, frames in enumerate((9, 12, 3) if modelled else (29, 32, 7)):
            steps = -(-frames // 4)
            codes = rng.integers(0, 2**bits, (3 - number, books, steps, *layout.grid))
            if smooth:
                codes[:, :, 1:] = codes[:, :, :1]
            writer.write_parts(encode_parts(codes, layout, compress=modelled), steps, frames)
    return stream.getvalue()


def with_sections(data: bytes) -> bytes:
    """Add times and two blocks of sound to a code file."""
    reader, out = CodeFileReader(io.BytesIO(data)), io.BytesIO()
    packets = [Packet(1024 * number - 1024, 1024, bytes(7 + number % 5)) for number in range(40)]
    block = Sound("aac", 48000, 1, Fraction(1, 48000), b"\x11\x88", b"NUT", tuple(packets[:30]))
    with CodeFileWriter(out, reader.header, version=SEGMENTED) as writer:
        for chunk in reader.stored():
            writer.write_parts(chunk.parts, chunk.num_steps, chunk.num_frames, chunk.opens)
        total, rng = writer.num_frames, np.random.default_rng(0)
        for first, end in pairwise((0, total // 3, total)):
            ticks = rng.integers(1, 9000, end - first)
            for section in FrameDurations(first, Fraction(1, 90_000), ticks).to_sections():
                writer.write_section(section)
        for sound in (block, replace(block, packets=tuple(packets[30:]))):
            writer.write_section(sound_to_section(sound))
    return out.getvalue()


def dumped(data: bytes, kind: str) -> bytes:
    """Make a dump of a code file."""
    out = io.BytesIO()
    for _ in dump(CodeFileReader(io.BytesIO(data)), out, kind):
        pass
    return out.getvalue()


def mutate(data: bytes, rng: np.random.Generator, words: Sequence[bytes] = WORDS) -> bytes:
    """Change the data in one to three ways."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        change(out, rng, words)
    return bytes(out)


def change(out: bytearray, rng: np.random.Generator, words: Sequence[bytes]) -> None:
    """Change bytes in place."""
    place = int(rng.integers(0, len(out) + 1))
    length = int(rng.integers(1, 1 + min(64, len(out) - place))) if place < len(out) else 0
    kind = rng.integers(0, 8)
    if kind == 0 and place < len(out):
        out[place] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        out[place : place + length] = rng.bytes(length)
    elif kind == 2:
        del out[place : place + length]
    elif kind == 3:
        out[place:place] = out[place : place + length]
    elif kind == 4:
        del out[place:]
    elif kind == 5:
        value, form = INTERESTING[rng.integers(0, len(INTERESTING))], "BHIQ"[rng.integers(0, 4)]
        data = struct.pack("<" + form, value % 256 ** struct.calcsize(form))
        out[place : place + len(data)] = data
    elif kind == 6:
        word = words[rng.integers(0, len(words))]
        out[place : place + (len(word) if rng.random() < 0.5 else 0)] = word
    elif digits := [i for i, byte in enumerate(out[:1000]) if 48 <= byte <= 57]:
        out[digits[rng.integers(0, len(digits))]] = 48 + int(rng.integers(0, 10))


def reseal(data: bytes) -> bytes:
    """Correct the CRCs of all records that can be found."""
    out = bytearray(data)

    def seal(start: int, end: int) -> None:
        if end + 4 <= len(out):
            struct.pack_into("<I", out, end, zlib.crc32(out[start:end]))

    if len(out) < 16:
        return data
    place = 16 + int.from_bytes(out[12:16], "little")
    seal(0, place)
    place += 4
    while place + 21 <= len(out) and out[place : place + 4] != b"FOOT":
        table, end = place + 21, place + 21 + 9 * out[place + 4]
        part = end + 4
        for row in range(table, min(end, len(out) - 9), 9):
            length = int.from_bytes(out[row + 1 : row + 5], "little")
            struct.pack_into("<I", out, row + 5, zlib.crc32(out[part : part + length]))
            part += length
        seal(place, end)
        place = part
    if place + 16 <= len(out):
        seal(place, place + 16 + 24 * int.from_bytes(out[place + 4 : place + 8], "little") + 32)
    return bytes(out)


def read_front(stream: BinaryIO, salvage: bool) -> None:
    """Read a file front to back and check the range of its codes."""
    reader = CodeFileReader(stream, salvage=salvage)
    for chunk in reader:
        if chunk.codes.min() < 0 or chunk.codes.max() >= reader.header.format.codebook_size:
            raise AssertionError("a code that is none")


def check_codes(data: bytes, seed: bytes) -> None:
    """Check that a changed file without corrected CRCs gives its original codes or fewer."""
    expected = iter(CodeFileReader(io.BytesIO(seed)))
    for chunk in CodeFileReader(io.BytesIO(data), salvage=True):
        if not any(np.array_equal(chunk.codes, other.codes) for other in expected):
            raise AssertionError("wrong codes were read without an error")


def read_picked(stream: BinaryIO) -> None:
    """Read a file by its index."""
    reader = CodeFileReader(stream, salvage=True)
    for number in range(min(3, len(reader.chunks))):
        reader.read_chunk(number)


def cut_middle(stream: BinaryIO) -> None:
    """Cut a part of a file with at most two stages and read it."""
    reader, out = CodeFileReader(stream), io.BytesIO()
    frames = reader.index.num_frames
    if frames:
        stages = min(2, reader.header.format.num_stages)
        for _ in cut(reader, out, frames=(frames // 2, frames), stages=stages, max_bytes=10**6):
            pass
        if CodeFileReader(io.BytesIO(out.getvalue())).index.num_frames != frames - frames // 2:
            raise AssertionError("a cut of other frames")


def join_twice(data: bytes) -> None:
    """Join a file with itself."""
    readers = [CodeFileReader(io.BytesIO(data)), CodeFileReader(Pipe(data))]
    headers = [reader.header for reader in readers]
    check_alike(*headers, "a", "b")
    for _ in join(headers, readers, io.BytesIO(), Kept()):
        pass


def read_sections(data: bytes) -> None:
    """Read times and sound of a file in all ways, and check them."""
    for stream, salvage in (
        (io.BytesIO(data), True),
        (Pipe(data), True),
        (io.BytesIO(data), False),
    ):
        reader = CodeFileReader(stream, salvage=salvage)
        for _ in reader.stored():
            pass
        total, fps = reader.index.num_frames, reader.header.transform.fps
        times = find_times(reader.frame_durations(), total, fps)
        if times is not None:
            part_of_file(reader, Part(start_seconds=0.5, duration_seconds=0.2))
            if (np.diff(times.at(0, min(total, 10_000))) < 0).any():
                raise AssertionError("times that go back")
        for block in sound_between(reader, (total // 2, total)):
            sound_to_section(block)


USES: dict[str, Callable[[bytes], object]] = {
    "read": lambda data: read_front(io.BytesIO(data), False),
    "read a pipe": lambda data: read_front(Pipe(data), False),
    "salvage": lambda data: read_front(io.BytesIO(data), True),
    "salvage a pipe": lambda data: read_front(Pipe(data), True),
    "verify": lambda data: CodeFileReader(Pipe(data)).verify(),
    "read by index": lambda data: read_picked(io.BytesIO(data)),
    "cut": lambda data: cut_middle(io.BytesIO(data)),
    "join": join_twice,
    "sections": read_sections,
    "dump": lambda data: [dumped(data, kind) for kind in FORMATS],
    "pack": lambda data: [*DumpReader(io.BytesIO(data)).write(io.BytesIO())],
}


def weights_seeds() -> list[bytes]:
    """Make small files of torch.save, TorchScript, Lightning and safetensors."""
    import torch
    from safetensors.torch import save

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 1), torch.nn.LayerNorm(4))
    state = network.state_dict()
    types = (torch.float64, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.uint8, torch.bool)
    typed = {str(dtype): torch.ones(2, 3).to(dtype).T for dtype in types}
    options = argparse.Namespace(width=4, name="a", levels=[8, 5], rate=0.5)
    lightning = {"state_dict": state, "hyper_parameters": options, "epoch": 3}
    files = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(network), script := io.BytesIO())
    files.append(script.getvalue())
    for content in (typed, lightning):
        torch.save(content, out := io.BytesIO())
        files.append(out.getvalue())
    return [*files, save(state)]


def mutate_weights(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a file, or in most cases the pickle in an archive with correct checksums."""
    if data[:2] != b"PK" or rng.random() < 0.3:
        return mutate(data, rng, PICKLED)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith(".pkl"):
                content = mutate(content, rng, PICKLED)
            new.writestr(item.filename, content, item.compress_type)
    return out.getvalue()


def read_weights(data: bytes) -> None:
    """Read foreign weights, and check how much memory that took."""
    from vtok.models.torch_file import float_tensors, read_tensors

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        path.write_bytes(data)
        if not tracemalloc.is_tracing():
            tracemalloc.start()  # once: each start takes memory
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            tensors = read_tensors(path, "state_dict")
        finally:
            peak = tracemalloc.get_traced_memory()[1] - before
            factor = peak / (len(data) + BASE_BYTES)
            largest["factor"] = max(largest["factor"], factor)
            if factor > MAX_FACTOR:
                raise AssertionError(f"allocated {peak} bytes for a file of {len(data)}")
        float_tensors("weights", tensors)


def check(data: bytes, use: str) -> str:
    """Read a file in one way and return the outcome.

    Raises:
        AssertionError: for anything but success or a named error, in time and memory.
    """
    # of this process alone: a busy machine is not what is looked for
    begin, before = time.process_time(), peak_megabytes()
    signal.setitimer(signal.ITIMER_REAL, 20 * MAX_SECONDS)  # for what never ends
    try:
        (read_weights if use == "weights" else USES[use])(data)
        outcome = "whole"
    except VtokError as error:
        if "\n" in str(error):
            raise AssertionError("an error of several lines") from error
        outcome = type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if (seconds := time.process_time() - begin) > MAX_SECONDS:
        raise AssertionError(f"took {seconds:.1f} s")
    if peak_megabytes() - before > MAX_MEGABYTES:
        raise AssertionError("took too much memory")
    return outcome


def run(
    first: int, count: int, coder: int | None = None, *, sections: bool = False
) -> Counter[str]:
    """Check mutations of `seeds(...)` by number; return the number of each outcome.

    Raises:
        AssertionError: naming the number of the one that failed.
    """
    corpus, outcomes = seeds(coder, sections=sections), Counter[str]()
    for number in range(first, first + count):
        seed = corpus[(rng := np.random.default_rng(number)).integers(0, len(corpus))]
        use = "pack" if seed[:1] != b"\x89" else list(USES)[rng.integers(0, len(USES))]
        data, resealed = mutate(seed, rng), rng.random() < 0.5
        if resealed:
            data = reseal(data)
        try:
            outcomes[outcome := check(data, use)] += 1
            if not resealed and outcome == "whole" and use != "pack":
                check_codes(data, seed)
        except Exception as error:
            raise AssertionError(f"mutation {number} ({use}): {error!r}") from error
    return outcomes


def sound_seed(folder: Path) -> tuple[Path, Sound]:
    """Make a small video and a sound of one second."""
    film = folder / "film.mkv"
    with av.open(film, "w") as made:
        video = made.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = made.add_stream("aac", rate=8000, layout="mono")
        for _ in range(25):
            made.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        for start in range(0, 8000, 1000):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, start
            made.mux(audio.encode(frame))
        made.mux(video.encode() + audio.encode())
    (sound,) = read_sound(film, Clock(Fraction(0), None, True), lambda: None, [])
    return film, sound


def run_sound(first: int, count: int) -> Counter[str]:
    """Mux mutations of a sound by number; return the number of each outcome.

    Raises:
        AssertionError: naming the number of the one that failed.
    """
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        film, sound = sound_seed(Path(folder))
        times = FrameTimes(Fraction(1, 25), np.arange(26))
        section = sound_to_section(sound)

        def mux(data: bytes) -> None:
            parts, place = [], 0
            for length in lengths:
                parts.append(data[place : place + length])
                place += length
            block = sound_of_section(section._replace(parts=tuple(parts)))
            try:
                output = film.with_name(f"out{suffix}")
                remux(film, output, "mp4" if suffix == ".mp4" else "matroska", times, [block])
            except (OSError, ValueError) as exc:
                raise OutputError(str(exc)) from exc

        USES["sound"] = mux
        for number in range(first, first + count):
            rng, parts = np.random.default_rng(number), list(section.parts)
            suffix = (".mp4", ".mkv")[rng.integers(0, 2)]
            for part in {int(part) for part in rng.choice(4, 2, p=(0.1, 0.5, 0.1, 0.3))}:
                length = len(parts[part])
                parts[part] = mutate(parts[part], rng)
                if part == 3:  # of the length that the table says
                    parts[part] = parts[part][:length].ljust(length, b"\0")
            lengths = [*map(len, parts)]
            try:
                outcomes[check(b"".join(parts), "sound")] += 1
            except Exception as error:
                raise AssertionError(f"mutation {number} (sound): {error!r}") from error
        del USES["sound"]
    return outcomes


def run_weights(first: int, count: int) -> Counter[str]:
    """Check mutations of `weights_seeds()` by number; return the number of each outcome.

    Raises:
        AssertionError: naming the number of the one that failed.
    """
    corpus, outcomes = weights_seeds(), Counter[str]()
    for number in range(first, first + count):
        seed = corpus[(rng := np.random.default_rng(number)).integers(0, len(corpus))]
        try:
            outcomes[check(mutate_weights(seed, rng), "weights")] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} (weights): {error!r}") from error
    tracemalloc.stop()
    return outcomes


def peak_megabytes() -> float:
    """The most memory that this process has had so far."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def guided(arguments: Sequence[str]) -> None:
    """Run mutations that atheris chooses by coverage."""
    import atheris

    def one(data: bytes) -> None:
        if data:
            check(reseal(data[1:]), list(USES)[data[0] % len(USES)])

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--count", type=int, default=100_000, help="how many")
    parser.add_argument("--coder", type=int, choices=(0, 2), help="only files of this coder")
    parser.add_argument("--sections", action="store_true", help="only files with sections")
    parser.add_argument("--sound", action="store_true", help="sound to be muxed, not code files")
    parser.add_argument("--weights", action="store_true", help="foreign weights, not code files")
    parser.add_argument("--atheris", nargs=argparse.REMAINDER, help="arguments for atheris")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, hang)
    if options.atheris is not None:
        return guided(options.atheris)
    if options.weights:
        outcomes = run_weights(options.first, options.count)
        print(f"at most {largest['factor']:.2f} times (file size + 64 KiB) allocated")
    elif options.sound:
        outcomes = run_sound(options.first, options.count)
    else:
        outcomes = run(options.first, options.count, options.coder, sections=options.sections)
    print(f"{options.count} mutations, peak {peak_megabytes():.0f} MB")
    for outcome, times in outcomes.most_common():
        print(f"{times:8} {outcome}")


def hang(number: int, frame: Any) -> None:
    """Raise an error from the alarm signal."""
    raise AssertionError("does not end")


if __name__ == "__main__":
    main()
