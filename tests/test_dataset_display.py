"""Display of `vtok dataset encode`."""

import pytest
from rich.console import Console

from vtok.cli.display import (
    DatasetDisplay,
    draw_dataset,
    planned_line,
    progress_line,
    summary_line,
)
from vtok.dataset.scheduler import Totals

TOTALS = Totals(
    items=120, up_to_date=20, todo=100, done=49, failed=1, faults=2, duplicates=3, failed_before=4,
    frames=490, bytes=5000, phase_seconds={"fetch": 1.0, "decode": 3.0, "model": 5.0, "write": 1.0},
    seconds=10.0,
)  # fmt: skip


def test_progress_lines() -> None:
    assert progress_line(TOTALS, 10.0) == (
        "clips=50/100 failed=1 frames/s=49.0 clips/s=5.00 fetching=10% decoding=30% model=50% "
        "writing=10% left=0:00:10"
    )
    assert "left=-:--:--" in progress_line(Totals(todo=3), 1.0)
    assert planned_line(TOTALS) == (
        "120 clips, 20 up to date, 4 failed before (--retry-failed tries them again), "
        "2 that are not clips, 3 duplicates, 100 to do"
    )
    assert summary_line(TOTALS).startswith("49 clips done, 20 up to date, 7 failed: 490 frames")


@pytest.mark.parametrize("width", [80, 120])
def test_drawing_takes_two_lines(width: int) -> None:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(draw_dataset(TOTALS, 10.0))
    first, second = capture.get().splitlines()
    assert "50/100 clips" in first
    assert "0:00:10 left" in first
    assert "model 50%" in second


def test_failures_are_printed_immediately(capsys: pytest.CaptureFixture[str]) -> None:
    display = DatasetDisplay(None, quiet=True, as_json=True)
    display.planned(TOTALS)
    display.finished(
        {"id": "a\nb", "status": "failed", "phase": "decode", "message": "is bad"}, TOTALS
    )
    out, err = capsys.readouterr()
    assert err == "error: a\\nb: decode: is bad\n"
    assert out.startswith('{"id": "a\\nb"')
