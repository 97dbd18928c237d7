"""Settings and fixtures for all tests: one torch thread, no deadlines, a browser."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import Browser, open_browser
from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)  # the machine may be busy
settings.load_profile("no-deadline")
# a shell that starts the tests in the background makes them, and their children, ignore SIGINT
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Make floating-point results independent of the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pages of `vtok report`; see `make_pages`."""
    from report_pages import make_pages  # imports the package, which most tests need not do here

    return make_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start one Chromium per test process; skip the test if it is not installed."""
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser, pages: Path) -> Iterator[Browser]:
    """Show the page of one clip, and fail if the console reports anything during the test."""
    window.resize(1200, 900)
    window.take_complaints()
    window.open(pages / "one.html")
    yield window
    assert window.take_complaints() == []
