"""The page of `vtok report` for everybody: on a phone, in the dark, by keyboard, read aloud."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from browser import Browser
from report_pages import END, RIGHT, SPACE


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone(browser: Browser, pages: Path, dark: bool) -> None:
    browser.resize(360, 740, phone=True, dark=dark)
    browser.open(pages / "two.html")
    for key, view in enumerate(("wipe", "error", "codes", "pair", "all"), start=1):
        browser.press(str(key))
        browser.wait_until_drawn(f"0 {view} vtok 12 0")
        width, inner = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert (width, inner) == (360, 360)
    shot = browser.screenshot()
    assert shot.shape == (740, 360, 3)
    paper = shot[2, 2].astype(int).sum() / 3
    assert paper < 60 if dark else paper > 200
    small = browser.run(
        """return [...document.querySelectorAll("button, select, input")]
            .filter((e) => e.offsetParent && !e.matches(".link"))
            .filter((e) => e.getBoundingClientRect().height < 24)
            .map((e) => e.outerHTML)"""
    )
    assert small == []  # large enough for a thumb


def test_everything_has_a_name_and_a_place_for_the_focus(browser: Browser) -> None:
    nameless = browser.run(
        """return [...document.querySelectorAll("button, select, input, [role=slider], [role=img]")]
            .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.title))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    browser.press("\ue004")  # Tab
    rings = []
    for _ in range(6):
        browser.press("\ue004")
        rings.append(browser.run("return getComputedStyle(document.activeElement).outlineStyle"))
    assert set(rings) == {"solid"}
    focused = browser.run("return document.activeElement.dataset.value")
    browser.press(SPACE)  # a button under the keyboard's focus is pressed, and keeps it
    assert browser.run("return document.activeElement.dataset.value") == focused
    assert browser.find("#play").get_attribute("aria-label") == "Play"


def test_contrast_of_words(browser: Browser, pages: Path) -> None:
    for dark in (False, True):
        browser.resize(1200, 900, dark=dark)
        browser.open(pages / "one.html")
        pairs = browser.run(
            """const find = (selector) => document.querySelector(selector);
            const of = (selector, name) => getComputedStyle(find(selector))[name];
            return [[of("body", "color"), of("body", "backgroundColor")],
                    [of("#summary", "color"), of("body", "backgroundColor")],
                    [of("#reading, .small", "color"), of(".card", "backgroundColor")],
                    [of("[aria-pressed=false]", "color"), of(".choice", "backgroundColor")]];"""
        )
        for ink, paper in pairs:
            assert contrast(ink, paper) >= 4.5, (dark, ink, paper)


def contrast(ink: str, paper: str) -> float:
    """Of two CSS colours, as the accessibility guidelines (WCAG 2) define it."""
    light = []
    for colour in (ink, paper):
        levels = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_a_picture_stands_still(browser: Browser, pages: Path) -> None:
    browser.open(pages / "photo.html")
    browser.press(RIGHT, SPACE, END)
    browser.wait_until_drawn("0 wipe vtok 12 0")
    assert browser.find("#play").get_attribute("disabled")
    assert "1 / 1" in browser.find("#time").text


def test_nothing_moves_for_those_who_ask(browser: Browser) -> None:
    script = "return getComputedStyle(document.querySelector('.choice button')).transitionDuration"
    assert browser.run(script) != "0s"
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [still]})
    assert browser.run(script) == "0s"
    assert browser.find("#play").get_attribute("aria-label") == "Play"  # nothing plays by itself


def test_the_browser_is_installed_once_only() -> None:
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("it would be installed now")
    script = Path(__file__).parent.parent / "scripts" / "install_browser"
    done = subprocess.run([script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("already installed: Chromium")
