"""What all tests share: one thread, so that machines give the same figures, and no deadlines."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import Browser, open_browser
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")
# ignored where a shell started the tests in the background, and then by all that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pages of `vtok report`; see `make_pages`."""
    from report_pages import make_pages  # and all that it needs, only where it is needed

    return make_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium; tests that ask for it are skipped where there is none."""
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser, pages: Path) -> Iterator[Browser]:
    """The page of one clip, just loaded; nothing may complain while the test runs."""
    window.resize(1200, 900)
    window.complaints()
    window.open(pages / "one.html")
    yield window
    assert window.complaints() == []
