"""What training shows: a picture that fits any terminal, lines to grep, JSON; alarms always."""

import io
import json
import math
import re
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from vtok.cli.display import LINE_EVERY, TrainDisplay, draw_step, step_line, train_display
from vtok.training.runlog import Alarm, StepReport, ValidationReport

STEP = StepReport(
    step=1234,
    steps=3000,
    loss=0.0831,
    parts={"l1": 0.0312, "ms_ssim": 0.0512, "entropy": -0.612, "adversarial": 0.7},
    psnr={1: 22.41, 2: 24.88, 3: 25.5},
    code_usage=0.983,
    bit_entropy=0.943,
    gradient_norm=0.42,
    learning_rate=0.0098,
    clips_per_second=8.43,
    waiting=0.034,
    seconds_left=3723.4,
    skipped=2,
)
VALIDATION = ValidationReport(1200, {1: 21.5, 2: 23.25}, 0.97, Path("runs/x/step-1200.png"))
ALARM = Alarm(1230, "collapse", "the codes collapse")


def drawn(report: StepReport, validation: ValidationReport | None, width: int, rows: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(draw_step(report, validation, rows))
    return console.file.getvalue()


@contextmanager
def live(width: int = 100):
    """A live display, and what it wrote so far; it draws when it is told to."""
    console = Console(file=io.StringIO(), width=width, height=30, force_terminal=True)
    with Live("", console=console, auto_refresh=False, redirect_stdout=False) as picture:
        yield TrainDisplay(picture, quiet=False, as_json=False), picture, console.file


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_picture_fits_and_shows_everything(width: int) -> None:
    text = drawn(STEP, VALIDATION, width, 10)
    assert max(map(len, text.splitlines())) <= width
    for fact in (
        "step 1,234/3,000", "1:02:03 left", "8.43 clips/s", "loss 0.0831", "l1 0.0312",
        "ms_ssim 0.0512", "entropy -0.6120", "adversarial 0.7000", "gradient 0.42", "rate 0.0098",
        "22.41 dB", "24.88 dB", "25.50 dB", "21.50 dB", "23.25 dB", "codes in use 98.3%",
        "entropy of a bit 0.94", "waiting for data 3%", "skipped 2",
    ):  # fmt: skip
        assert fact in text, fact


def test_a_bar_grows_with_psnr() -> None:
    lines = drawn(STEP, None, 100, 10).splitlines()
    rows = [next(line for line in lines if line.startswith(f"{k} stage")) for k in (1, 2, 3)]
    # without colours a bar is as long as its value; what is left of it is blank
    lengths = [row.count("━") for row in rows]
    assert 0 < lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("width", [1, 20, 40])
def test_a_tiny_terminal_and_odd_numbers_do_no_harm(width: int) -> None:
    odd = replace(
        STEP, loss=math.nan, parts={"l1": math.inf}, psnr={1: math.nan, 2: -math.inf, 3: 1e9},
        seconds_left=None, steps=0,
    )  # fmt: skip
    assert drawn(odd, None, width, 1)


@pytest.mark.parametrize(
    ("most", "shown"), [(1, [16]), (2, [1, 16]), (4, [1, 6, 11, 16]), (99, [*range(1, 17)])]
)
def test_many_stages_leave_room(most: int, shown: list[int]) -> None:
    many = replace(STEP, psnr={k: 20.0 + k for k in range(1, 17)})
    text = drawn(many, None, 80, most)
    assert [int(k) for k in re.findall(r"^(\d+) stages?", text, re.M)] == shown


def test_live_draws_steps_and_prints_the_rest_above() -> None:
    with live() as (display, picture, file):
        display.say("resumed at step 1200")
        display.step(STEP)
        display.validated(VALIDATION)
        display.alarm(ALARM)
        display.step(STEP)
        picture.refresh()
        text = file.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for line in (
        "resumed at step 1200",
        "validation=1200 psnr=1:21.50,2:23.25",
        "warning: step 1230: the codes collapse",
        "step 1,234/3,000",
        "23.25 dB",
    ):
        assert line in plain, line


def test_a_run_without_a_step_leaves_no_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for steps in (0, 1):
        with train_display(quiet=False, as_json=False) as display:
            display.say("finished at step 3000")
            for _ in range(steps):
                display.step(STEP)
        erased = capsys.readouterr().err.endswith("\x1b[2K")  # the line that was drawn
        assert erased == (steps == 0)


def test_live_lets_no_text_steer_the_terminal() -> None:
    with live() as (display, _, file):
        before = len(file.getvalue())
        display.say("\x1b[2J[bold]clip\nname.mp4[/bold]")
        said = file.getvalue()[before:]
    assert "\\x1b[2J[bold]clip\\nname.mp4[/bold]" in said


def test_off_a_terminal_there_are_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with train_display(quiet=False, as_json=False) as display:
        for step in range(1, 2 * LINE_EVERY + 6):
            display.step(replace(STEP, step=step, steps=2 * LINE_EVERY + 5))
        display.validated(VALIDATION)
        display.alarm(ALARM)
        display.say("saved")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    steps = [1, LINE_EVERY, 2 * LINE_EVERY, 2 * LINE_EVERY + 5]
    assert [line.split()[0] for line in lines[:4]] == [f"step={k}/{steps[-1]}" for k in steps]
    assert lines[4:] == [
        "validation=1200 psnr=1:21.50,2:23.25 usage=0.970 picture=runs/x/step-1200.png",
        "warning: step 1230: the codes collapse",
        "saved",
    ]


def test_a_line_is_fields_of_name_and_value() -> None:
    fields = dict(field.split("=") for field in step_line(STEP).split())
    assert fields == {
        "step": "1234/3000", "loss": "0.0831", "l1": "0.0312", "ms_ssim": "0.0512",
        "entropy": "-0.6120", "adversarial": "0.7000", "psnr": "1:22.41,2:24.88,3:25.50",
        "usage": "0.983", "bit_entropy": "0.943", "gradient": "0.42", "rate": "0.0098",
        "clips/s": "8.43", "waiting": "0.034", "left": "1:02:03", "skipped": "2",
    }  # fmt: skip
    assert "left=-:--:-- " in step_line(replace(STEP, seconds_left=None))


def test_quiet_leaves_nothing_but_alarms(capsys: pytest.CaptureFixture[str]) -> None:
    with train_display(quiet=True, as_json=False) as display:
        display.step(replace(STEP, step=1))
        display.validated(VALIDATION)
        display.say("saved")
        display.alarm(ALARM)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "warning: step 1230: the codes collapse\n")


def test_json_is_a_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    with train_display(quiet=False, as_json=True) as display:
        display.step(replace(STEP, loss=math.nan))
        display.validated(VALIDATION)
        display.say("saved")
        display.alarm(ALARM)
    out, err = capsys.readouterr()
    step, validation, alarm = (
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        for line in out.splitlines()
    )
    assert (step["kind"], step["step"], step["loss"]) == ("step", 1234, None)
    assert step["psnr"] == {"1": 22.41, "2": 24.88, "3": 25.5}
    assert step["parts"] == STEP.parts
    assert (validation["kind"], validation["picture"]) == ("validation", "runs/x/step-1200.png")
    assert (alarm["kind"], alarm["alarm"], alarm["text"]) == ("alarm", "collapse", ALARM.text)
    assert err == "warning: step 1230: the codes collapse\n"


def test_json_into_a_pipe_stays_whole_beside_a_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with train_display(quiet=False, as_json=True) as display:
        display.step(STEP)
    out, err = capsys.readouterr()
    assert json.loads(out)["step"] == 1234
    assert "step 1,234/3,000" in err
