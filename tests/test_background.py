"""Background threads: items in order, errors in order, no thread left running."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from test_entropy import make_codes

from vtok.codefile.header import CodeFormat
from vtok.codefile.packing import encode_parts
from vtok.pipeline._runtime import QUEUE_LENGTH, map_in_background, prefetch


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("vtok")}


def failing(count: int) -> Iterator[int]:
    yield from range(count)
    raise ValueError("spam")


def test_items_and_results_keep_their_order() -> None:
    def slowly(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(map_in_background(range(50), slowly)) == [(n, n * n) for n in range(50)]
    assert list(prefetch(range(50))) == list(range(50))
    assert list(map_in_background([], slowly)) == list(prefetch([])) == []
    assert not threads()


def test_prefetch_is_bounded_and_in_another_thread() -> None:
    found: list[int] = []

    def find() -> Iterator[int]:
        for number in range(20):
            found.append(number)
            yield number

    for number in prefetch(find()):
        time.sleep(0.002)
        assert len(found) <= number + QUEUE_LENGTH + 3
    (pair,) = map_in_background([threading.get_ident()], lambda mine: threading.get_ident() == mine)
    assert pair[1] is False


def test_errors_keep_their_order() -> None:
    items = prefetch(failing(5))
    assert [next(items) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="spam"):
        next(items)
    with pytest.raises(ValueError, match="spam"):
        list(map_in_background(failing(5), str))
    with pytest.raises(ZeroDivisionError):
        list(map_in_background([1, 0, 2], lambda number: 1 // number))
    assert not threads()


def test_closing_early_ends_thread() -> None:
    items = prefetch(iter(int, 1))  # endless
    assert next(items) == 0
    items.close()
    assert not threads()
    pairs = map_in_background(iter(int, 1), str)
    assert next(pairs) == (0, "0")
    pairs.close()
    assert not threads()


def test_parts_coded_in_background_are_equal() -> None:
    codes = make_codes("still", (2, 1, 4, 10, 12), 9)
    layout = CodeFormat(
        codebook_size=512, num_codebooks=1, num_stages=2, temporal_compression=4,
        spatial_compression=8, grid=(10, 12), chunk_steps=4, decoder_lookback=1,
    )  # fmt: skip
    chunks = [np.roll(codes, shift, 3) for shift in range(3)]
    made = map_in_background(chunks, lambda chunk: encode_parts(chunk, layout, compress=True))
    expected = [encode_parts(chunk, layout, compress=True) for chunk in chunks]
    assert [parts for _, parts in made] == expected
