"""Public calls leave the settings of torch, Python and the environment as they found them."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import tiny_model
from videos import make_video

from vtok.dataset.api import DatasetOptions, encode_dataset
from vtok.dataset.worker import ClipEncoder, DiskFailure
from vtok.errors import InputError, VtokError
from vtok.models.load import LoadedTokenizer
from vtok.pipeline._runtime import many_videos
from vtok.pipeline.decode import decode_file
from vtok.pipeline.encode import encode_file


def settings() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        sys.getswitchinterval(),
        dict(os.environ),
        Path.cwd(),
    )


@pytest.fixture
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return tiny_model(tmp_path_factory.mktemp("model"))


def unchanged(call: Callable[[], Any], error: type[VtokError] | None = None) -> None:
    before = settings()
    if error is None:
        call()
    else:
        with pytest.raises(error):
            call()
    assert settings() == before


@pytest.mark.usefixtures("three_threads")
def test_encode_and_decode_restore_settings(tmp_path: Path, model: LoadedTokenizer) -> None:
    video = make_video(tmp_path / "a.mp4", 20)
    codes, broken = tmp_path / "a.vtok", tmp_path / "broken.vtok"
    unchanged(lambda: encode_file(video, codes, model=model))
    unchanged(lambda: decode_file(codes, tmp_path / "b.mp4", model=model))
    unchanged(lambda: encode_file(tmp_path / "none.mp4", codes, model=model), InputError)
    broken.write_bytes(codes.read_bytes()[:-200])
    unchanged(lambda: decode_file(broken, tmp_path / "c.mp4", model=model), VtokError)


@pytest.mark.usefixtures("three_threads")
def test_encode_dataset_restores_settings(
    tmp_path: Path, model: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    make_video(videos / "a.mp4", 10)
    options = DatasetOptions(model=str(model.info.path))
    unchanged(lambda: encode_dataset([videos], tmp_path / "out", options=options))

    def fail(self: ClipEncoder, task: object) -> None:
        raise DiskFailure("no room")

    monkeypatch.setattr(ClipEncoder, "encode", fail)
    unchanged(lambda: encode_dataset([videos], tmp_path / "full", options=options), DiskFailure)


def test_many_videos_restores_settings_after_errors() -> None:
    def fail() -> None:
        with many_videos(torch.device("cpu")):
            assert torch.get_num_threads() == 1
            raise InputError("x")

    unchanged(fail, InputError)
