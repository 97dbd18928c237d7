"""Alarms: each problem is reported once, neither too early nor repeatedly."""

import json
import math

import pytest

from vtok.training.metrics import PATIENCE, Watch
from vtok.training.runlog import Alarm


def alarms_of(
    watch: Watch, steps: range, *, usage: float = 0.9, entropy: float = 0.95
) -> list[Alarm]:
    """Return the alarms of identical steps."""
    alarms = (watch.check(step, 0.1, usage, entropy, 1.0) for step in steps)
    return [alarm for alarm in alarms if alarm]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "place"), [("loss", 0), ("gradient", 1)])
def test_non_finite_values_are_reported_at_once(name: str, place: int, value: float) -> None:
    numbers = [0.1, 1.0]
    numbers[place] = value
    watch = Watch()
    alarm = watch.check(7, numbers[0], 0.9, 0.9, numbers[1])
    assert alarm is not None
    assert (alarm.step, alarm.kind) == (7, "not_finite")
    assert f"the {name} is not a finite number ({value})" in alarm.text
    assert watch == Watch()  # an undone step leaves no trace


def test_healthy_run_has_no_alarms() -> None:
    assert alarms_of(Watch(), range(5 * PATIENCE)) == []


def test_collapse_is_reported_once_and_again_after_recovery() -> None:
    watch = Watch()
    assert alarms_of(watch, range(1, 50)) == []
    (alarm,) = alarms_of(watch, range(50, 50 + 5 * PATIENCE), entropy=0.1)
    assert (alarm.step, alarm.kind) == (50 + PATIENCE, "collapse")
    assert "90.0% of the codebook" in alarm.text
    assert "0.10 bits of entropy" in alarm.text
    assert alarms_of(watch, range(600, 610)) == []
    assert len(alarms_of(watch, range(610, 610 + 2 * PATIENCE), entropy=0.1)) == 1


def test_short_dip_is_not_a_collapse() -> None:
    watch = Watch()
    for start in range(0, 10 * PATIENCE, PATIENCE):
        assert alarms_of(watch, range(start, start + PATIENCE - 1), entropy=0.0) == []
        assert alarms_of(watch, range(start + PATIENCE - 1, start + PATIENCE)) == []


def test_usage_is_relative_to_the_best_of_the_run() -> None:
    # few positions cannot fill a codebook of 2^18
    watch = Watch()
    assert alarms_of(watch, range(3 * PATIENCE), usage=0.02) == []
    (alarm,) = alarms_of(watch, range(400, 400 + 2 * PATIENCE), usage=0.003)
    assert alarm.kind == "collapse"


def test_patience_counts_steps_not_calls() -> None:
    assert len(alarms_of(Watch(), range(0, 3 * PATIENCE, PATIENCE), entropy=0.1)) == 1


def test_waiting_for_data_is_reported_once() -> None:
    watch = Watch()
    waits = [watch.check_data(step, 0.8) for step in range(3 * PATIENCE)]
    (alarm,) = [wait for wait in waits if wait]
    assert (alarm.step, alarm.kind) == (PATIENCE, "stalled_data")
    assert alarm.text.startswith("80% of the time")
    assert all(watch.check_data(step, 0.3) is None for step in range(300, 600))
    assert alarms_of(watch, range(600, 700)) == []


@pytest.mark.parametrize("stop", [0, 30, 49, 50, 120, 151, 300])
def test_restored_watch_reports_the_same_alarms(stop: int) -> None:
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


def test_missing_watch_state_has_defaults() -> None:
    assert Watch.from_dict({}) == Watch()
