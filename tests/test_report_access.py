"""Accessibility of the page of `vtok report`: phones, dark mode, keyboard, screen readers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from browser import Browser
from report_pages import END, RIGHT, SPACE


@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_a_phone(browser: Browser, pages: Path, dark: bool) -> None:
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
    assert small == []  # controls are large enough to touch


def test_controls_have_names_and_visible_focus(browser: Browser) -> None:
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
    browser.press(SPACE)  # presses the focused button, which keeps the focus
    assert browser.run("return document.activeElement.dataset.value") == focused
    assert browser.find("#play").get_attribute("aria-label") == "Play"


def test_text_has_enough_contrast(browser: Browser, pages: Path) -> None:
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
    """Return the contrast ratio of two CSS colours as defined by WCAG 2."""
    light = []
    for colour in (ink, paper):
        levels = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_image_cannot_be_played(browser: Browser, pages: Path) -> None:
    browser.open(pages / "photo.html")
    browser.press(RIGHT, SPACE, END)
    browser.wait_until_drawn("0 wipe vtok 12 0")
    assert browser.find("#play").get_attribute("disabled")
    assert "1 / 1" in browser.find("#time").text


def test_reduced_motion_disables_animation(browser: Browser) -> None:
    script = "return getComputedStyle(document.querySelector('.choice button')).transitionDuration"
    assert browser.run(script) != "0s"
    browser.prefer("prefers-reduced-motion", "reduce")
    assert browser.run(script) == "0s"
    assert browser.find("#play").get_attribute("aria-label") == "Play"  # not playing


def install_browser(path: Path) -> "subprocess.CompletedProcess[str]":
    """Run scripts/install_browser with one folder as search path of programs."""
    script = Path(__file__).parent.parent / "scripts" / "install_browser"
    (path / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    return subprocess.run(
        [path / "bash", script],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_install_browser_does_nothing_if_installed(tmp_path: Path) -> None:
    for name in ("chromium", "chromedriver"):
        program = tmp_path / name
        program.write_text(f"#!{tmp_path}/bash\necho {name} 1.0\n")
        program.chmod(0o755)
    done = install_browser(tmp_path)
    assert done.stdout == "already installed: chromium 1.0\n", done.stderr
    assert done.returncode == 0


def test_install_browser_fails_without_apt(tmp_path: Path) -> None:
    done = install_browser(tmp_path)
    assert done.stderr.startswith("error: apt-get not found")
    assert done.returncode == 1
