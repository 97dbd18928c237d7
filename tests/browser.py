"""A real Chromium without a window, for tests of pages; where there is none, those are skipped."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip
PATIENCE = 60.0  # seconds: a busy machine is no failure


class Browser:
    """One window, and what tests ask of it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def resize(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Make the window so many pixels large."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})

    def open(self, page: Path, fragment: str = "") -> None:
        """Load a page afresh, and wait until it has drawn its pictures."""
        self.driver.get("about:blank")
        self.driver.get(f"{page.as_uri()}#{fragment}")
        self.wait("return document.getElementById('stage').dataset.drawn")

    def wait(self, script: str, *arguments: Any) -> Any:
        """What a script returns, as soon as that is true."""
        end = time.monotonic() + PATIENCE
        while not (result := self.run(script, *arguments)):
            assert time.monotonic() < end, script
            time.sleep(0.02)
        return result

    def drawn(self, wanted: str) -> None:
        """Wait until the stage shows this: clip, view, coder, bits, frame."""
        self.wait("return document.getElementById('stage').dataset.drawn === arguments[0]", wanted)

    def find(self, selector: str) -> Any:
        """The first element of a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        """Press keys wherever the page has its focus."""
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.driver)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def shot(self, selector: str | None = None) -> npt.NDArray[np.uint8]:
        """What is to be seen, of the window or of one element, uint8 [H, W, 3]."""
        source = self.driver if selector is None else self.find(selector)
        data = source.get_screenshot_as_png() if selector is None else source.screenshot_as_png
        return np.asarray(Image.open(BytesIO(data)).convert("RGB"))

    def complaints(self) -> list[str]:
        """What the console was told since the last time, and addresses that were asked for."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                said.append(event["params"]["request"]["url"])
        return [line for line in said if not line.startswith(("file:", "data:", "blob:", "about:"))]


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start Chromium with a fresh profile in `folder`; skips the test where it is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    program, server = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or server is None:
        pytest.skip("no chromium with chromedriver: scripts/install_browser gets them")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(server))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
