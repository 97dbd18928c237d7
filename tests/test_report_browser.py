"""The page of `vtok report` in Chromium: pictures, controls, playback and keys."""

import re
import runpy
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from browser import Browser
from exhibits import drawn_frames, make_exhibit
from PIL import Image
from report_pages import END, EVIL, FRAMES, HEIGHT, HOME, RIGHT, SPACE, WIDTH

ROOT = Path(__file__).parent.parent


def error(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Return the mean absolute difference of two pictures in levels."""
    return float(np.abs(a.astype(float) - b).mean())


def canvas(browser: Browser, number: int = 0) -> npt.NDArray[np.uint8]:
    """Return the pixels of one canvas of the stage, uint8 [H, W, 3]."""
    text = browser.run(
        "return document.querySelectorAll('#panes canvas')[arguments[0]].toDataURL()", number
    )
    data = b64decode(text.partition(",")[2])
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def test_left_half_is_original_and_right_half_reconstruction(browser: Browser) -> None:
    original, coded = canvas(browser, 0), canvas(browser, 1)
    assert original.shape == coded.shape == (HEIGHT, WIDTH, 3)
    true = drawn_frames(FRAMES, WIDTH, HEIGHT)[0]
    assert error(original, true) < 4 < error(coded, true)
    seen = browser.screenshot(".pane")
    height, width = seen.shape[:2]
    assert width > 300
    assert seen.std() > 20  # not blank
    places = [
        int((k + 0.5) * side / n)
        for side, n in ((height, HEIGHT), (width, WIDTH))
        for k in range(n)
    ]
    ys, xs = np.array(places[:HEIGHT]), np.array(places[HEIGHT:])
    small = seen[ys][:, xs]
    inner = slice(40, 110)  # between the labels at the top and the lower edge
    left, right = slice(5, WIDTH // 2 - 20), slice(WIDTH // 2 + 20, WIDTH - 5)
    assert error(small[inner, left], original[inner, left]) < error(
        small[inner, left], coded[inner, left]
    )
    assert error(small[inner, right], coded[inner, right]) < error(
        small[inner, right], original[inner, right]
    )


def test_divider_moves_by_mouse_and_keys(browser: Browser) -> None:
    from selenium.webdriver import ActionChains

    before = browser.screenshot(".pane")
    divider = browser.find(".divider")
    assert divider.get_attribute("aria-valuenow") == "50"
    width = browser.run("return document.querySelector('.pane').clientWidth")
    ActionChains(browser.driver).drag_and_drop_by_offset(divider, -width // 4, 0).perform()
    assert abs(int(divider.get_attribute("aria-valuenow")) - 25) <= 1
    after = browser.screenshot(".pane")
    changed = np.abs(before.astype(float) - after).mean(axis=(0, 2)) > 3  # column by column
    assert changed[int(0.3 * width) : int(0.45 * width)].mean() > 0.9
    assert not changed[int(0.6 * width) :].any()
    browser.press("]", "]")
    assert abs(int(divider.get_attribute("aria-valuenow")) - 35) <= 1
    browser.run("document.querySelector('.divider').focus()")
    browser.press(HOME)
    assert divider.get_attribute("aria-valuenow") == "0"
    browser.press(RIGHT, END)
    assert divider.get_attribute("aria-valuenow") == "100"
    assert browser.run("return document.getElementById('stage').dataset.drawn").endswith(" 0")


def test_frames_step_wrap_and_play(browser: Browser) -> None:
    first = canvas(browser)
    browser.press(RIGHT)
    browser.wait_until_drawn("0 wipe vtok 12 1")
    second = canvas(browser)
    frames = drawn_frames(FRAMES, WIDTH, HEIGHT)
    assert error(first, frames[0]) < 4 < error(first, second)
    assert error(second, frames[1]) < 4
    browser.press(END)
    browser.wait_until_drawn(f"0 wipe vtok 12 {FRAMES - 1}")
    assert "9 / 9" in browser.find("#time").text
    browser.press(RIGHT)  # wraps around
    browser.wait_until_drawn("0 wipe vtok 12 0")
    browser.find("#back").click()
    browser.wait_until_drawn(f"0 wipe vtok 12 {FRAMES - 1}")
    browser.press(HOME)
    browser.wait_until_drawn("0 wipe vtok 12 0")
    browser.press(SPACE)
    browser.wait_for("return Number(document.getElementById('frame').value) >= 3")
    assert browser.find("#play").get_attribute("aria-label") == "Pause"
    browser.press(SPACE)
    assert browser.find("#play").get_attribute("aria-label") == "Play"
    paused_at = browser.run("return document.getElementById('frame').value")
    browser.run("return new Promise((done) => setTimeout(done, 200))")  # five frames long
    assert browser.run("return document.getElementById('frame').value") == paused_at


def test_rates_change_picture_and_figures(browser: Browser) -> None:
    true = drawn_frames(FRAMES, WIDTH, HEIGHT)[0]
    errors = []
    for bits in (6, 12, 18):
        browser.find(f"[data-name=bits] [data-value='{bits}']").click()
        browser.wait_until_drawn(f"0 wipe vtok {bits} 0")
        errors.append(error(canvas(browser, 1), true))
        assert f"{bits} bits" in browser.find("#reading").text
        assert browser.find("#figures tr.chosen").text.split()[1] == str(bits)
    assert errors[0] > errors[1] > errors[2]
    browser.press(",")
    browser.wait_until_drawn("0 wipe vtok 12 0")
    assert browser.run("return document.querySelectorAll('#curves .chosen').length") == 1


def test_error_map_is_bright_at_large_errors(browser: Browser) -> None:
    browser.press("2")
    browser.wait_until_drawn("0 error vtok 12 0")
    heat = canvas(browser, 1).astype(float).sum(-1)
    browser.press("1", ".")
    browser.wait_until_drawn("0 wipe vtok 18 0")
    browser.press(",")
    browser.wait_until_drawn("0 wipe vtok 12 0")
    gap = np.abs(canvas(browser, 0).astype(float) - canvas(browser, 1)).mean(-1)
    assert np.corrcoef(heat.ravel(), gap.ravel().clip(max=64))[0, 1] > 0.9
    low, high = heat[gap < 2], heat[gap > 64]
    assert low.size
    assert high.size
    assert low.max() < high.min()
    browser.press("2")
    browser.wait_until_drawn("0 error vtok 12 0")
    shown = re.search(r"mean error ([\d.]+) levels", browser.find("#reading").text)
    assert shown
    assert float(shown[1]) == pytest.approx(gap.mean(), abs=0.02)


@pytest.mark.parametrize(
    ("steps", "frame", "step"), [(None, 0, 0), (None, 3, 2), (2, 2, 1), (2, 3, 2), (2, 6, 4)]
)
def test_code_map_has_one_colour_per_code(
    steps: int | None, frame: int, step: int, browser: Browser, pages: Path
) -> None:
    codes = make_exhibit(frames=FRAMES, size=(WIDTH, HEIGHT), window=steps).codes
    page = pages / ("windows.html" if steps else "one.html")  # windows of 3 frames
    for view, plane in (("bits", 0), ("hash", 1)):
        browser.open(page, f"view=codes&plane={plane}&frame={frame}")
        browser.run(
            """const select = [...document.querySelectorAll("#legends select")].at(-1);
            select.value = arguments[0];
            select.dispatchEvent(new Event("change"));""",
            view,
        )
        browser.wait_until_drawn(f"0 codes vtok 12 {frame}")
        cells = canvas(browser, 1)[2::4, 2::4].reshape(-1, 3)  # the centre of each position
        shown = codes[plane, step].ravel()
        assert len(cells) == len(shown)
        pairs = {(code, tuple(colour)) for code, colour in zip(shown, cells.tolist(), strict=True)}
        assert len(pairs) == len(set(shown.tolist()))  # one colour for each code
        distinct = len({colour for _, colour in pairs})
        assert distinct == len(pairs) if view == "bits" else distinct > 0.8 * len(pairs)


@pytest.mark.parametrize(("view", "panes"), [("pair", 4), ("all", 4)])
def test_all_panes_show_the_same_frame(browser: Browser, view: str, panes: int) -> None:
    browser.press("4" if view == "pair" else "5", RIGHT)
    browser.wait_until_drawn(f"0 {view} vtok 12 1")
    assert browser.run("return document.querySelectorAll('.pane').length") == panes
    assert error(canvas(browser), drawn_frames(FRAMES, WIDTH, HEIGHT)[1]) < 4
    boxes = browser.run(
        "return [...document.querySelectorAll('.pane')].map((p) => [p.clientWidth, p.clientHeight])"
    )
    for width, height in boxes:
        assert width / height == pytest.approx(WIDTH / HEIGHT, rel=0.02)


def test_zoom_magnifies_within_the_pane(browser: Browser) -> None:
    before = browser.screenshot(".pane")
    browser.press("z", "z")
    browser.wait_for("return document.querySelector('#panes.zoomed')")
    after = browser.screenshot(".pane")
    assert error(before, after) > 5
    assert browser.run("return document.querySelector('.pane').clientWidth") == before.shape[1]


def test_view_is_kept_in_the_address(browser: Browser, pages: Path) -> None:
    browser.press("5", RIGHT, RIGHT, ".")
    browser.wait_for(
        "return location.hash.includes('frame=2') && location.hash.includes('bits=18')"
    )
    fragment = browser.run("return location.hash.slice(1)")
    browser.open(pages / "one.html", fragment)
    browser.wait_until_drawn("0 all vtok 18 2")
    browser.open(pages / "one.html", "clip=7&bits=5&view=x&frame=999&wipe=-3&plane=%00")
    browser.wait_until_drawn(f"0 wipe vtok 12 {FRAMES - 1}")


def test_page_of_several_clips_and_codecs(browser: Browser, pages: Path) -> None:
    browser.open(pages / "two.html")
    assert "owned" not in browser.driver.title
    name = Path(EVIL).name
    assert browser.find("#clips bdi").get_attribute("textContent") == name
    assert browser.run("return document.querySelectorAll('#clips img').length") == 2
    browser.press("c")
    browser.wait_until_drawn("0 wipe x264 12 0")
    assert len(browser.run("return [...document.querySelectorAll('.curve')].map(String)")) == 3
    assert "x264" in browser.find(".tag.right").text
    browser.press(END)
    browser.wait_until_drawn("0 wipe x264 12 3")  # four of its six frames are on the page
    assert browser.run("return document.querySelectorAll('#timeline .unseen').length") == 1
    browser.press("n")
    browser.wait_until_drawn("1 wipe vtok 12 3")  # that clip has no other codecs
    browser.press("p")
    browser.wait_until_drawn("0 wipe vtok 12 3")


@pytest.mark.slow
def test_script_takes_a_picture_of_a_page(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, view = str(ROOT / "scripts" / "report_picture.py"), "view=pair&frame=4"
    arguments = [str(pages / "one.html"), "--view", view, "--output", str(tmp_path / "a.jpg")]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.size == (1240, 1330)
        assert np.asarray(picture).std() > 20  # not blank
