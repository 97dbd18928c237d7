"""Headless Chromium for tests of pages. Tests that need it are skipped if it is not installed."""

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
    "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip
TIMEOUT_SECONDS = 60.0  # long, because the machine may be busy


class Browser:
    """A browser window with the operations that tests need."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript and return its result."""
        return self.driver.execute_script(script, *arguments)

    def resize(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Set the viewport in pixels, and the preferred colour scheme."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
        )
        self.prefer("prefers-color-scheme", "dark" if dark else "light")

    def prefer(self, feature: str, value: str) -> None:
        """Emulate one CSS media feature and reset all others."""
        features = [{"name": feature, "value": value}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, page: Path, fragment: str = "") -> None:
        """Load a report page from scratch and wait until it has drawn its first frame."""
        self.driver.get("about:blank")
        self.driver.get(f"{page.as_uri()}#{fragment}")
        self.wait_for("return document.getElementById('stage').dataset.drawn")

    def wait_for(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript until its result is true, and return the result."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not (result := self.run(script, *arguments)):
            assert time.monotonic() < end, f"not true within {TIMEOUT_SECONDS:g} s: {script}"
            time.sleep(0.02)
        return result

    def wait_until_drawn(self, wanted: str) -> None:
        """Wait until the stage shows `wanted`: clip, view, coder, bits and frame."""
        script = "return document.getElementById('stage').dataset.drawn === arguments[0]"
        self.wait_for(script, wanted)

    def find(self, selector: str) -> Any:
        """Return the first element that matches a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        """Press keys, one after another, wherever the focus is."""
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.driver)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def screenshot(self, selector: str | None = None) -> npt.NDArray[np.uint8]:
        """Return the pixels of the viewport or of one element, uint8 [H, W, 3]."""
        if selector is None:
            data = self.driver.get_screenshot_as_png()
        else:
            data = self.find(selector).screenshot_as_png
        return np.asarray(Image.open(BytesIO(data)).convert("RGB"))

    def take_complaints(self) -> list[str]:
        """Return and clear the console messages and the network addresses that were requested."""
        found = [entry["message"] for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                found.append(event["params"]["request"]["url"])
        return [
            line for line in found if not line.startswith(("file:", "data:", "blob:", "about:"))
        ]


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with an empty profile folder; skip the test if it is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    program, server = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or server is None:
        pytest.skip("no chromium and chromedriver: run scripts/install_browser")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(server))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
