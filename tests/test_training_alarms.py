"""The watch speaks when codes die or numbers are none, once, and neither too early nor again."""

import json
import math

import pytest

from vtok.training.metrics import PATIENCE, Watch
from vtok.training.report import Alarm


def told(watch: Watch, steps: range, *, usage: float = 0.9, entropy: float = 0.95) -> list[Alarm]:
    """All alarms of steps that are alike."""
    alarms = (watch.check(step, 0.1, usage, entropy, 1.0) for step in steps)
    return [alarm for alarm in alarms if alarm]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "place"), [("loss", 0), ("gradient", 1)])
def test_what_is_not_finite_is_told_at_once(name: str, place: int, value: float) -> None:
    numbers = [0.1, 1.0]
    numbers[place] = value
    watch = Watch()
    alarm = watch.check(7, numbers[0], 0.9, 0.9, numbers[1])
    assert alarm is not None
    assert (alarm.step, alarm.kind) == (7, "not_finite")
    assert f"the {name} is not a finite number ({value})" in alarm.text
    assert watch == Watch()  # nothing of a step that is undone stays


def test_a_healthy_run_is_quiet() -> None:
    assert told(Watch(), range(5 * PATIENCE)) == []


def test_bits_that_die_are_told_once_after_a_while_and_again_after_a_recovery() -> None:
    watch = Watch()
    assert told(watch, range(1, 50)) == []
    (alarm,) = told(watch, range(50, 50 + 5 * PATIENCE), entropy=0.1)
    assert (alarm.step, alarm.kind) == (50 + PATIENCE, "collapse")
    assert "90.0% of the codebook" in alarm.text
    assert "0.10 of 1 bit" in alarm.text
    assert told(watch, range(600, 610)) == []
    assert len(told(watch, range(610, 610 + 2 * PATIENCE), entropy=0.1)) == 1


def test_a_short_dip_is_no_collapse() -> None:
    watch = Watch()
    for start in range(0, 10 * PATIENCE, PATIENCE):
        assert told(watch, range(start, start + PATIENCE - 1), entropy=0.0) == []
        assert told(watch, range(start + PATIENCE - 1, start + PATIENCE)) == []


def test_usage_is_measured_against_the_best_of_the_run() -> None:
    # a codebook of 2^18 that few positions cannot fill is no collapse by itself
    watch = Watch()
    assert told(watch, range(3 * PATIENCE), usage=0.02) == []
    (alarm,) = told(watch, range(400, 400 + 2 * PATIENCE), usage=0.003)
    assert alarm.kind == "collapse"


def test_steps_far_apart_count_as_steps() -> None:
    assert len(told(Watch(), range(0, 3 * PATIENCE, PATIENCE), entropy=0.1)) == 1


def test_waiting_for_data_is_told_once() -> None:
    watch = Watch()
    waits = [watch.check_data(step, 0.8) for step in range(3 * PATIENCE)]
    (alarm,) = [wait for wait in waits if wait]
    assert (alarm.step, alarm.kind) == (PATIENCE, "stalled_data")
    assert alarm.text.startswith("80% of the time")
    assert all(watch.check_data(step, 0.3) is None for step in range(300, 600))
    assert told(watch, range(600, 700)) == []


@pytest.mark.parametrize("stop", [0, 30, 49, 50, 120, 151, 300])
def test_a_restored_watch_speaks_as_one_that_never_stopped(stop: int) -> None:
    def run(watch: Watch, first: int, last: int) -> list[Alarm]:
        found = []
        for step in range(first, last):
            low = 50 <= step < 200
            found += [watch.check(step, 0.1, 0.1 if low else 0.8, 0.9, 1.0)]
            found += [watch.check_data(step, 0.9 if step > 120 else 0.1)]
        return [alarm for alarm in found if alarm]

    watch = Watch()
    before = run(watch, 0, stop)
    restored = Watch.from_dict(json.loads(json.dumps(watch.to_dict())))
    assert restored == watch
    whole = run(Watch(), 0, 400)
    assert before + run(restored, stop, 400) == whole
    assert [alarm.kind for alarm in whole] == ["collapse", "stalled_data"]


def test_a_state_without_a_watch_starts_one() -> None:
    assert Watch.from_dict({}) == Watch()
