"""What a page shows of a clip: gathered while the clip is measured, without decoding it again."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from commands import tiny_model
from videos import make_video

from vtok.evaluation.compare import coded_frames, compare_file
from vtok.evaluation.evaluate import EvalOptions, Part
from vtok.evaluation.metrics import psnr
from vtok.evaluation.report import exhibit_file
from vtok.pipeline.codec import Decoder
from vtok.pipeline.result import CodeChunk
from vtok.video.frames import Frames
from vtok.video.images import frame_to_webp
from vtok.video.reader import VideoReader


def test_each_rate_is_decoded_once_and_seen_as_its_file_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path)
    source = make_video(tmp_path / "a.mp4", 50)  # more than a pass and a chunk
    decoded: Counter[int] = Counter()

    decode_next = Decoder.decode_next

    def counted(decoder: Decoder, chunk: CodeChunk) -> Iterator[Frames]:
        decoded[len(chunk.codes)] += chunk.num_frames
        return decode_next(decoder, chunk)

    options = EvalOptions(Part(), bits=(6, 18), metrics=("psnr",))
    with compare_file(source, model=model, codecs=(), options=options) as comparison:
        again = {
            point.bits: list(coded_frames(comparison, point)) for point in comparison.result.points
        }
    monkeypatch.setattr(Decoder, "decode_next", counted)
    monkeypatch.setattr(Decoder, "decode", None)
    make = partial(exhibit_file, source, model=model, options=options)
    all_ = make(most_bytes=10**7)
    few = make(most_bytes=all_.num_bytes // 2)
    assert decoded == {1: 2 * 50, 3: 2 * 50}
    assert [len(strip.pictures) for strip in all_.strips] == [50] * 3
    with VideoReader(source) as reader:
        originals = np.concatenate(list(reader))
    for strip in all_.strips[1:]:
        pairs = zip(again[strip.bits], originals, strict=True)
        assert strip.psnr == [psnr(frame[None], own[None]) for frame, own in pairs]
        assert strip.pictures == [frame_to_webp(frame) for frame in again[strip.bits]]
    assert 1 < few.pictured < 50
    for strip, whole in zip(few.strips, all_.strips, strict=True):
        assert strip.psnr == whole.psnr
        assert strip.pictures == whole.pictures[: few.pictured]
        assert strip.fidelity == whole.fidelity[: few.pictured]
