"""Answers of the decoding process, computed in this one: kinds of inputs, and their sound."""

import sys
from fractions import Fraction
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinds import GROUPS
from makers import Kind, film
from test_sound import packets_of
from videos import Frames, make_film, read_barcodes

from vtok._sound import Sound
from vtok.pipeline.options import EncodeOptions
from vtok.video.frames import map_ring
from vtok.video.reader import ERRORS, make_request
from vtok.video.worker import Channel, _answer

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from odd_files import Came, difference

KINDS = [
    kind
    for group in ("Streams and tables", "Pictures", "Arrays", "Times", "Pixels", "Damage")
    for kind in GROUPS[group]
    if not kind.is_set
]
KINDS += [kind for kind in GROUPS["Refused"] if kind.error.startswith(("not a", "no video"))]
KINDS += [
    Kind(f"from 5 s, {suffix}", partial(film, name=f"a.{suffix}", num_frames=180), range(150, 180),
         options={"start_seconds": 5.0})
    for suffix in ("mp4", "mkv", "avi")
]  # fmt: skip


class Recorder(Channel):
    """Channel that keeps messages and frames in place of sending them."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.frames: list[Frames] = []

    def open_memory(self, fields: dict[str, Any]) -> None:
        pass

    def alive(self) -> None:
        pass

    def receive(self) -> bytes:
        return b""

    def ring(self, batch_frames: int, height: int, width: int) -> Frames:
        return map_ring(None, batch_frames, height, width)

    def send(self, kind: str, **fields: Any) -> None:
        self.messages.append({"kind": kind, **fields})

    def send_batch(self, ring: Frames, slot: int, count: int) -> None:
        self.frames.append(ring[slot, :count].copy())


def answer(path: Path, kind: Kind) -> Came:
    """Read an input as the decoding process does."""
    options, channel = EncodeOptions(**kind.options), Recorder()
    _answer(make_request(path, options.part, options.fps, None, options.reading), channel)
    info, end = channel.messages[0], channel.messages[-1]
    if end["kind"] == "error":
        return Came([], [], error=str(ERRORS[end["type"]](*end["arguments"])))
    numbers = read_barcodes(np.concatenate(channel.frames))
    times = [float(number / Fraction(info["fps"])) for number in range(len(numbers))]
    if uneven := end["durations"]:
        base = Fraction(uneven["time_base"])
        times = [float(tick * base) for tick in accumulate(uneven["ticks"][:-1], initial=0)]
    return Came(numbers, times, notes=(*info["info"]["notes"], *end["notes"]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_answers(kind: Kind, tmp_path: Path) -> None:
    assert not difference(answer(kind.make(tmp_path), kind), kind)


def test_sound_is_sent_in_packets(tmp_path: Path) -> None:
    path, channel = make_film(tmp_path / "a.mp4"), Recorder()
    _answer({"path": str(path), "clock": ["0", None, True]}, channel)
    *blocks, end = channel.messages
    sent = [Sound.from_message(block["block"]) for block in blocks]
    assert [packet.data for sound in sent for packet in sound.packets] == packets_of(path)
    assert end == {"kind": "end", "notes": []}
