"""Pipelined model calls: equal results in order, errors in order."""

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_clip
from torch import nn

from vtok.models.load import LoadedTokenizer
from vtok.nn.interface import StreamState
from vtok.pipeline._runtime import MOST_WORKERS, CallState, pipelined_calls
from vtok.pipeline.codec import Decoder, Encoder, clip_to_frames


class Part(NamedTuple):
    number: int
    begins: bool = False


pytestmark = pytest.mark.usefixtures("_restored_threads")


def parts_of(*lengths: int) -> list[Part]:
    return [Part(n, n == 0) for length in lengths for n in range(length)]


@settings(max_examples=12, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(["fast", "classic", "linear", "second_pass", "vtok-base"]),
    threads=st.integers(2, 6),
)
def test_results_do_not_depend_on_number_of_workers(
    data: st.DataObject, kind: str, threads: int, models: dict[str, LoadedTokenizer]
) -> None:
    model, size = models[kind], (16, 24)
    frames = clip_to_frames(make_clip(data.draw(st.integers(1, 100)), *size))
    found = []
    for count in (1, threads):
        torch.set_num_threads(count)
        chunks = list(Encoder(model).encode([frames]))
        shown = list(Decoder(model, size).decode(chunks))
        found.append((chunks, shown))
    (alone, shown_alone), (beside, shown_beside) = found
    assert [chunk.num_frames for chunk in beside] == [chunk.num_frames for chunk in alone]
    codes = zip(alone, beside, strict=True)
    assert all(np.array_equal(a.codes, b.codes) for a, b in codes)
    assert np.array_equal(np.concatenate(shown_alone), np.concatenate(shown_beside))
    assert len(np.concatenate(shown_beside)) == len(frames)


def test_calls_run_at_once_and_results_keep_order(models: dict[str, LoadedTokenizer]) -> None:
    torch.set_num_threads(3)
    together = threading.Barrier(3)

    def work(part: Part, state: StreamState) -> int:
        if part.number < 3:
            together.wait(timeout=30)  # one alone would wait in vain
        time.sleep(0.01 * (3 - part.number % 3))  # the later ones are done first
        return part.number

    assert list(pipelined_calls(parts_of(7), work, models["fast"])) == list(range(7))


def test_prefetch_is_bounded_by_workers(
    models: dict[str, LoadedTokenizer],
) -> None:
    torch.set_num_threads(2)
    asked = []

    def parts() -> Iterator[Part]:
        for part in parts_of(50):
            asked.append(part)
            yield part

    results = pipelined_calls(parts(), lambda part, _: part.number, models["fast"])
    for number in range(10):
        assert next(results) == number
        assert len(asked) <= number + 1 + 3
    results.close()


def test_disabled_pipelining_starts_on_request(models: dict[str, LoadedTokenizer]) -> None:
    torch.set_num_threads(4)
    begun = []

    def work(part: Part, state: StreamState) -> int:
        begun.append(part.number)
        return part.number

    for number in pipelined_calls(parts_of(5), work, models["fast"], enabled=False):
        assert begun == list(range(number + 1))


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_each_call_gets_previous_state(threads: int, models: dict[str, LoadedTokenizer]) -> None:
    torch.set_num_threads(threads)
    layer = nn.Identity()

    def work(part: Part, state: StreamState) -> list[int]:
        started, past = state.started, state.past(layer)
        assert started == (past is not None)
        mine = torch.tensor([*([] if past is None else past.tolist()), part.number])
        state.keep(layer, mine)
        return list(mine.tolist())

    found = list(pipelined_calls(parts_of(5, 1, 3), work, models["fast"]))
    expected = [list(range(n + 1)) for length in (5, 1, 3) for n in range(length)]
    assert found == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_error_of_call_keeps_order_and_ends(
    threads: int, models: dict[str, LoadedTokenizer]
) -> None:
    torch.set_num_threads(threads)
    layer, begun = nn.Identity(), []

    def work(part: Part, state: StreamState) -> int:
        begun.append(part.number)
        state.past(layer)
        if part.number == 3:
            raise ValueError("the third")
        state.keep(layer, torch.zeros(1))
        return part.number

    results = pipelined_calls(parts_of(100), work, models["fast"])
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert list(results) == []
    assert len(begun) <= 3 + 1 + 3
    assert not [one for one in threading.enumerate() if one.name.startswith("vtok-model")]


def test_error_of_input_keeps_order(
    models: dict[str, LoadedTokenizer],
) -> None:
    torch.set_num_threads(2)

    def parts() -> Iterator[Part]:
        yield Part(0, begins=True)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(pipelined_calls(parts(), lambda part, _: part.number, models["fast"]))


def test_closing_early_ends_threads(models: dict[str, LoadedTokenizer]) -> None:
    torch.set_num_threads(2)
    results = pipelined_calls(parts_of(100), lambda part, _: part.number, models["fast"])
    assert next(results) == 0
    results.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("vtok-model")]


@pytest.mark.parametrize("threads", [2, 5, 9])
def test_torch_threads_are_divided_and_restored(
    threads: int, models: dict[str, LoadedTokenizer]
) -> None:
    torch.set_num_threads(threads)
    own = set(pipelined_calls(parts_of(20), lambda *_: torch.get_num_threads(), models["fast"]))
    assert own == {max(1, threads // min(threads, MOST_WORKERS))}
    assert torch.get_num_threads() == threads
    assert _in_new_thread() == threads


def _in_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_ended_call_is_not_waited_for() -> None:
    layer, first = nn.Identity(), CallState(None)
    first.end()
    assert CallState(first).past(layer) is None
