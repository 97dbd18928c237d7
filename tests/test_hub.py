"""Files of repositories on the Hub: layouts, shards, and damaged indexes; nothing is downloaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import vtok
from huggingface_hub import errors
from test_diffusers_vae import TINY

from vtok.errors import CheckpointError, InputError
from vtok.models import hub
from vtok.models.checkpoint import load_checkpoint
from vtok.models.imports import FAMILIES

USUAL = FAMILIES["diffusers"].hub_files
WEIGHTS = "diffusion_pytorch_model"
SHARDS = [f"{WEIGHTS}-0000{number}-of-00002.safetensors" for number in (1, 2)]
SHARDED = ["config.json", f"{WEIGHTS}.safetensors.index.json", *SHARDS]
INDEX = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}


class Repository:
    """Stand-in for `hf_hub_download` with the files of a folder, which it copies to a cache."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache

    def __call__(self, repo_id: str, filename: str, *, revision: str | None = None) -> str:
        """Return the path of a file in the cache."""
        if not (self.folder / filename).is_file():
            raise errors.EntryNotFoundError("404")
        (self.cache / filename).parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(self.folder / filename, self.cache / filename))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a repository that downloads come from."""
    folder = tmp_path / "repository"
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", Repository(folder, tmp_path / "snapshot")
    )
    return folder


def write(folder: Path, names: list[str], index: object = INDEX) -> None:
    folder.mkdir(parents=True)
    for name in names:
        text = json.dumps(index) if name.endswith(".index.json") else "{}"
        (folder / name).write_text(text)


@pytest.mark.parametrize("names", [["config.json", f"{WEIGHTS}.safetensors"], SHARDED])
@pytest.mark.parametrize(
    ("place", "path"),
    [("vae", "hf:a/b"), ("", "hf:a/b"), ("other/vae", "hf:a/b@main/other/vae"),
     ("vae", "hf:a/b/vae/config.json")],
)  # fmt: skip
def test_layouts(names: list[str], place: str, path: str, repository: Path, tmp_path: Path) -> None:
    write(repository / place, names)
    folder = hub.download(hub.parse(path), USUAL)
    assert folder == tmp_path / "snapshot" / place
    assert sorted(file.name for file in folder.iterdir()) == sorted(names)


def test_file_of_a_pair_brings_the_other(repository: Path, tmp_path: Path) -> None:
    write(repository, ["encoder.jit", "decoder.jit"])
    folder = hub.download(hub.parse("hf:a/b/encoder.jit"), FAMILIES["cosmos"].hub_files)
    assert sorted(file.name for file in folder.iterdir()) == ["decoder.jit", "encoder.jit"]


@pytest.mark.parametrize("missing", SHARDED)
def test_incomplete_repository(missing: str, repository: Path) -> None:
    write(repository / "vae", [name for name in SHARDED if name != missing])
    with pytest.raises(InputError, match=r"^hf:a/b/vae/.*: no such file in the repository"):
        hub.download(hub.parse("hf:a/b"), USUAL)


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": []}, {"weight_map": {"a": "../a.safetensors"}},
     {"weight_map": {"a": "b.bin"}}, {"weight_map": {"a": 1}},
     {"weight_map": {str(n): f"{n}.safetensors" for n in range(201)}}],
)  # fmt: skip
def test_damaged_index(index: object, repository: Path) -> None:
    write(repository / "vae", SHARDED, index)
    with pytest.raises(CheckpointError, match="not an index of the shards"):
        hub.download(hub.parse("hf:a/b"), USUAL)


@pytest.mark.slow
def test_sharded_autoencoder_is_imported(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VTOK_MODELS", str(tmp_path / "models"))
    diffusers = pytest.importorskip("diffusers")
    kind, arguments, _ = TINY["Wan 2.1"]
    original = getattr(diffusers, kind)(**arguments)
    original.save_pretrained(repository / "vae", max_shard_size="60KB")
    assert {file.name for file in (repository / "vae").iterdir()} == set(SHARDED)
    result = vtok("import", "diffusers", "hf:Wan-AI/tiny", "--name", "wan")
    assert result.exit_code == 0, result.stderr
    assert "Loading" not in result.stderr
    tensors = load_checkpoint("wan")[0].state_dict()
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensors[f"model.{name}"], tensor)
