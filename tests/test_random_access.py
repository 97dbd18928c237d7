"""Random access: a part has the frames of the whole file, and only its chunks are read."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codefiles import FPS, HEIGHT, WIDTH, all_frames, load_tiny, random_file
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok._times import Part
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import UsageError
from vtok.models.load import LoadedTokenizer, ModelCache
from vtok.pipeline import codec as passes
from vtok.pipeline.codec import Decoder
from vtok.pipeline.decode import decode_file, read_frames
from vtok.pipeline.options import DecodeOptions
from vtok.video.reader import VideoReader


def segments(model: LoadedTokenizer) -> bytes:
    """A file of three segments, of which the second drops 6 frames and shows 30."""
    stream = io.BytesIO()
    parts = [random_file(model, frames, seed) for seed, frames in enumerate((45, 36, 9))]
    readers = [CodeFileReader(io.BytesIO(part)) for part in parts]
    with CodeFileWriter(stream, readers[0].header, version=(1, 1)) as writer:
        for number, reader in enumerate(readers):
            drop = 6 if number == 1 else 0
            if number:
                writer.open_segment(drop)
            for chunk in reader.stored():
                writer.write_parts(chunk.parts, chunk.num_steps, chunk.num_frames - drop)
                drop = 0
    return stream.getvalue()


def part(data: bytes, model: LoadedTokenizer, first: int, end: int) -> np.ndarray:
    reader = CodeFileReader(io.BytesIO(data))
    shown = Decoder(model, (HEIGHT, WIDTH)).decode(read_frames(reader, model, (first, end)))
    return np.concatenate(list(shown))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 129), st.integers(1, 60))
def test_part_equals_whole(
    model: LoadedTokenizer, data: bytes, whole: np.ndarray, first: int, count: int
) -> None:
    end = min(130, first + count)
    np.testing.assert_array_equal(part(data, model, first, end), whole[first:end])


@pytest.mark.parametrize("pass_steps", [1, 2, 4])
def test_part_equals_whole_for_any_call_length(
    monkeypatch: pytest.MonkeyPatch, model: LoadedTokenizer, data: bytes, pass_steps: int
) -> None:
    monkeypatch.setattr(passes, "CALL_PIXELS", pass_steps * 4 * WIDTH * HEIGHT)
    whole = all_frames(data, model)
    for first in (0, 1, 28, 29, 30, 61, 66, 125, 129):
        for end in {first + 1, first + 2, first + 40, 130}:
            shown = part(data, model, first, min(130, end))
            np.testing.assert_array_equal(shown, whole[first:end])


def test_part_across_segments(model: LoadedTokenizer) -> None:
    data = segments(model)
    whole = all_frames(data, model)
    assert len(whole) == 45 + 30 + 9
    assert CodeFileReader(io.BytesIO(data)).index.num_segments == 3
    apart = [all_frames(random_file(model, n, s), model) for s, n in enumerate((45, 36, 9))]
    np.testing.assert_array_equal(whole, np.concatenate([apart[0], apart[1][6:], apart[2]]))
    for first in (0, 40, 44, 45, 46, 60, 74, 75, 76, 83):
        for end in (first + 1, first + 9, first + 40, 84):
            shown = part(data, model, first, min(84, end))
            np.testing.assert_array_equal(shown, whole[first:end])


class CountingFile(io.BytesIO):
    """A file that counts the bytes read from it."""

    count = 0

    def read(self, size: Any = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_only_needed_chunks_are_read_and_decoded(
    monkeypatch: pytest.MonkeyPatch, model: LoadedTokenizer
) -> None:
    """Of 4,000 frames in 126 chunks, the two that show 20 frames at the border between them."""
    monkeypatch.setattr(passes, "CALL_PIXELS", 4 * WIDTH * HEIGHT)  # a step a pass
    data = random_file(model, 4000)
    steps: list[int] = []
    decode = model.tokenizer.decode
    monkeypatch.setattr(
        model.tokenizer,
        "decode",
        lambda codes, **how: steps.append(codes.shape[2]) or decode(codes, **how),
    )
    file = CountingFile(data)
    reader = CodeFileReader(file)
    chunks = reader.chunks
    border = chunks[100].first_frame
    before = file.count
    frames = (border - 10, border + 10)
    shown = list(Decoder(model, (HEIGHT, WIDTH)).decode(read_frames(reader, model, frames)))
    assert sum(map(len, shown)) == 20
    # frames -10 to 10 lie in 6 steps; those before them are looked back at
    assert sum(steps) == 6 + model.tokenizer.decoder_lookback
    chunk_bytes = chunks[101].offset - chunks[100].offset
    assert file.count - before == 2 * chunk_bytes
    assert before < 1000 + 68 + 16 + 4 + 24 * len(chunks)


def test_unbounded_lookback_decodes_from_start(tmp_path: Path) -> None:
    model = load_tiny(tmp_path, "classic")
    assert model.tokenizer.decoder_lookback is None
    data = random_file(model, 70)
    whole = all_frames(data, model)
    np.testing.assert_array_equal(part(data, model, 65, 68), whole[65:68])
    (tmp_path / "a.vtok").write_bytes(data)
    result = decode_file(
        tmp_path / "a.vtok",
        tmp_path / "a.mkv",
        model=ModelCache(model.info.path),
        options=DecodeOptions(start_seconds=2.6, duration_seconds=0.1),
    )
    assert result.note == "tiny has unbounded lookback: decoded from the start"
    assert (result.frames, result.code_shape[1]) == (3, 19)


@pytest.mark.parametrize("piped", [False, True])
def test_decode_file_part(
    tmp_path: Path, model: LoadedTokenizer, data: bytes, whole: np.ndarray, piped: bool
) -> None:
    source: Any = io.BytesIO(data)
    if piped:
        source.seekable = lambda: False
    options = DecodeOptions(start_seconds=2, duration_seconds=0.5, crf=0)
    result = decode_file(
        source, tmp_path / "a.mkv", model=ModelCache(model.info.path), options=options
    )
    assert (result.frames, result.note) == (13, None)  # 50 to 62.5, of which 62 is the last
    assert result.bytes < len(data)
    every = decode_file(
        io.BytesIO(data),
        tmp_path / "b.mkv",
        model=ModelCache(model.info.path),
        options=DecodeOptions(crf=0),
    )
    assert every.frames == 130
    with VideoReader(tmp_path / "a.mkv") as a, VideoReader(tmp_path / "b.mkv") as b:
        np.testing.assert_array_equal(np.concatenate(list(a)), np.concatenate(list(b))[50:63])


@pytest.mark.parametrize(
    ("start", "duration", "expected"),
    [
        (0.0, None, (0, 130)),
        (0.0, 0.04, (0, 1)),
        (0.04, 0.04, (1, 2)),
        (0.05, 0.001, (2, 3)),
        (1.0, 0.1, (25, 28)),
        (5.0, 99.0, (125, 130)),
    ],
)
def test_seconds_to_frames(start: float, duration: float | None, expected: tuple[int, int]) -> None:
    assert Part(start, duration).frames(130, FPS) == expected


@pytest.mark.parametrize(
    ("start", "duration", "message"),
    [
        (5.2, None, r"^start_seconds=5\.2: expected a time in the file \(130 frames, 5\.2 s\)$"),
        (-1.0, None, "^start_seconds=-1: expected 0 or more seconds"),
        (0.0, 0.0, "^duration_seconds=0: expected more than 0 seconds$"),
    ],
)
def test_missing_parts_are_refused(start: float, duration: float | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Part(start, duration).frames(130, FPS)
