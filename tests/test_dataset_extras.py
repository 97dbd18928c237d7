"""Sound and times of frames in data sets: recorded, read by PyTorch, and restored by decode."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from commands import tiny_checkpoint, vtok
from datasets import manifest
from test_sound import make_film, packets_of

from vtok.codefile.reader import CodeFileReader
from vtok.dataset.folder import DatasetFolder
from vtok.dataset.options import DatasetOptions
from vtok.errors import OptionError
from vtok.pipeline.options import EncodeOptions


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_film(tmp_path_factory.mktemp("film") / "a.mp4")


@pytest.mark.parametrize("to", ["vtok", "tar-vtok"])
def test_sound_is_kept_on_request(to: str, film: Path, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("dataset", "encode", film, "--to", to, "--size", "64x48", "--model", checkpoint)
    for mode in ("none", "copy"):
        done = vtok(
            *arguments, "-o", tmp_path / mode, "-q", *(["--audio", "copy"] * (mode == "copy"))
        )
        assert done.exit_code == 0, done.stderr
    (silent,), (loud,) = manifest(tmp_path / "none"), manifest(tmp_path / "copy")
    assert silent["audio_bytes"] is None
    assert loud["audio_bytes"] == loud["bytes"] - silent["bytes"]
    assert loud["bpp"] == silent["bpp"]
    path = tmp_path / "copy" / loud["output"]
    if to == "tar-vtok":
        with tarfile.open(path) as shard:
            member = shard.extractfile(shard.getnames()[0])
            assert member is not None
            path = tmp_path / "a.vtok"
            path.write_bytes(member.read())
    with path.open("rb") as stream:
        kept = [one.data for block in CodeFileReader(stream).sound() for one in block.packets]
    assert kept == packets_of(film)
    assert "audio" not in DatasetFolder(tmp_path / "none").recipe()
    other = vtok(*arguments, "-o", tmp_path / "copy")
    assert "its codes are made with other options (audio copy -> None)" in other.stderr


@pytest.mark.parametrize("to", ["npy", "safetensors", "tar", "parquet"])
def test_sound_in_arrays_is_refused(to: str) -> None:
    with pytest.raises(OptionError, match="hold no sound"):
        DatasetOptions(to=to, encode=EncodeOptions(audio="copy"))


def test_sound_in_files_of_tokens_is_refused(film: Path, checkpoint: Path) -> None:
    done = vtok("encode", film, "--to", "tokens", "--audio", "copy", "--model", checkpoint)
    assert done.exit_code == 2
    assert done.stderr == ("error: --audio copy: expected none: files of tokens hold no sound\n")
