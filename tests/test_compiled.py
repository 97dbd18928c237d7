"""The compiled loops of coder 1 give the bytes that numpy gives, and are used where they pay."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from vtok.codefile import entropy as loops
from vtok.codefile.byte_source import Damage
from vtok.codefile.entropy import StageCoder

Codes = npt.NDArray[np.int64]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first bit on."""
    pytest.importorskip("numba")
    if loops.compiled() is None:
        pytest.skip("numba does not compile here")
    monkeypatch.setattr(loops, "PAYS_AFTER", -1)


@contextlib.contextmanager
def by_numpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as context:
        context.setattr(loops, "PAYS_AFTER", 1 << 62)
        yield


def make_codes(shape: tuple[int, ...], bits: int, seed: int) -> Codes:
    """Codes `[stages, K, t, h, w]` that mostly stay as they are, in time and across stages."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, shape)
    stays = rng.random(shape) < 0.8
    codes[:, :, 1:] = np.where(stays[:, :, 1:], codes[:, :, :1], codes[:, :, 1:])
    if seed % 2:
        codes[1:] ^= np.where(stays[1:], codes[1:] ^ codes[:1], 0)
    return codes


def code(codes: Codes, bits: int) -> list[bytes]:
    coder = StageCoder(codes.shape[1:], bits)
    return [coder.encode(stage) for stage in codes]


CASES = [
    ((5, 1, 3, 12, 9), 9),  # more stages than are looked at
    ((3, 2, 2, 8, 8), 5),
    ((2, 1, 1, 1, 64), 32),
    ((2, 1, 2, 64, 1), 1),
    ((1, 1, 2, 70, 70), 3),  # passes of more than 1024 positions are split
    ((2, 1, 3, 2, 3), 7),  # some passes have no positions
]


def test_bytes_are_those_of_numpy(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, (shape, bits) in enumerate(CASES):
        codes = make_codes(shape, bits, seed)
        data = code(codes, bits)
        with by_numpy(monkeypatch):
            assert code(codes, bits) == data
        decoder, mixed = StageCoder(shape[1:], bits), StageCoder(shape[1:], bits)
        for number, part in enumerate(data):
            decoded = decoder.decode(part)
            assert decoded.dtype == np.int64
            assert np.array_equal(decoded, codes[number])
            if number % 2:  # one after the other, now this way and now that
                assert np.array_equal(mixed.decode(part), codes[number])
                continue
            with by_numpy(monkeypatch):
                assert np.array_equal(mixed.decode(part), codes[number])


def test_damage_is_found_as_by_numpy(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = make_codes((1, 1, 2, 8, 8), 6, 0)
    (data,) = code(codes, 6)
    rng = np.random.default_rng(1)
    wrong = [data[:-2], data + b"\0\0", rng.bytes(3), rng.bytes(40), b"", b"\xff" * 9]
    for place in rng.integers(0, len(data), 40):
        wrong.append(data[:place] + bytes([data[place] ^ 1 << rng.integers(8)]) + data[place + 1 :])
    for bad in wrong:
        found = outcome(bad)
        with by_numpy(monkeypatch):
            assert outcome(bad) == found


def outcome(data: bytes) -> str | bytes:
    try:
        return StageCoder((1, 2, 8, 8), 6).decode(data).tobytes()
    except Damage as error:
        return str(error)


def test_without_numba_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = make_codes((2, 1, 2, 8, 8), 6, 1)
    with by_numpy(monkeypatch):
        expected = code(codes, 6)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(loops, "PAYS_AFTER", -1)
    loops.compiled.cache_clear()
    try:
        assert loops.compiled() is None
        assert code(codes, 6) == expected
    finally:
        loops.compiled.cache_clear()


def test_little_is_coded_without_loading_it() -> None:
    """It takes half a second to load, which a short video does not."""
    program = (
        "import sys, numpy as np; from vtok.codefile import loops\n"
        "from vtok.codefile.entropy import StageCoder\n"
        "StageCoder((1, 2, 8, 8), 9).encode(np.zeros((1, 2, 8, 8), np.int64))\n"
        "print('numba' in sys.modules, loops.loops(loops.PAYS_AFTER // 2) is None,"
        " 'numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr
