"""Settings and fixtures for all tests: one torch thread, no deadlines, a browser."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from browser import Browser, open_browser
from hypothesis import settings

if TYPE_CHECKING:
    from vtok.models.load import LoadedTokenizer

settings.register_profile("no-deadline", deadline=None)  # the machine may be busy
settings.load_profile("no-deadline")
os.environ["VTOK_MODELS"] = os.devnull  # no imported models, unless a test sets a folder
# a shell that starts the tests in the background makes them, and their children, ignore SIGINT
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Make floating-point results independent of the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture
def _restored_threads() -> Iterator[None]:
    """Restore the number of torch threads after a test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `encode_file` write chunks of 8 latent steps, so that short videos have several."""
    monkeypatch.setattr("vtok.pipeline.encode.CHUNK_STEPS", 8)


@pytest.fixture(scope="module")
def models() -> "dict[str, LoadedTokenizer]":
    """Return `vtok-base` and a tiny tokenizer of each kind that streams."""
    from models import load_all  # imports the package, which most tests need not do here

    return load_all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> "LoadedTokenizer":
    """Return a tiny tokenizer."""
    from codefiles import load_tiny

    return load_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of 120 frames with beeps."""
    from videos import make_film

    return make_film(tmp_path_factory.mktemp("film") / "a.mp4")


@pytest.fixture(scope="module")
def data(model: "LoadedTokenizer") -> bytes:
    """Return a code file of 130 frames in five chunks; the last chunk shows 5 of 8 frames."""
    from codefiles import random_file

    return random_file(model, 130)


@pytest.fixture(scope="module")
def whole(data: bytes, model: "LoadedTokenizer") -> np.ndarray:
    """Return the frames of `data`."""
    from codefiles import all_frames

    return all_frames(data, model)


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
