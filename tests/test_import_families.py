"""`vtok import` tells files of one family from those of the others, with the golden tiny models."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import tiny_checkpoint, vtok
from safetensors.torch import save_file
from torch import Tensor

from vtok.errors import CheckpointError
from vtok.models.imports import FAMILIES, guess_families, import_checkpoint
from vtok.training.config import read_config

GOLDEN = Path(__file__).parent / "golden"
FOREIGN = runpy.run_path(str(GOLDEN.parents[1] / "scripts" / "peers" / "foreign.py"))


def golden(family: str, case: str) -> dict[str, Tensor]:
    """Tensors of a golden model with the published names."""
    shapes = json.loads(str(np.load(GOLDEN / f"{family}.npz")[f"{case} shapes"]))
    tensors: dict[str, Tensor] = FOREIGN["random_tensors"](shapes)
    return tensors


def lightning(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save({"epoch": 1, "state_dict": tensors}, path)
    return path


def plain(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file(tensors, path)
    return path


def diffusers(folder: Path) -> Path:
    """Folder of an autoencoder, of which only the name of the class is read here."""
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    return folder


FILES: dict[str, Callable[[Path], Path]] = {
    "cosmos": lambda f: plain(
        golden("cosmos", "Cosmos-Tokenizer-DV8x8x8"), f / "DV8x8x8.safetensors"
    ),
    "vidtok": lambda f: lightning(
        golden("vidtok", "vidtok_fsq_causal_444_4096"), f / "vidtok_fsq_causal_444_4096.ckpt"
    ),
    "open-magvit2": lambda f: lightning(golden("open_magvit2", "video"), f / "video.ckpt"),
    "1x": lambda f: lightning(golden("open_magvit2", "1x"), f / "magvit2.ckpt"),
    "o2-magvit2": lambda f: plain(golden("open_magvit2", "o2"), f / "model.safetensors"),
    "emu3": lambda f: plain(golden("emu3", "published"), f / "model.safetensors"),
    "taehv": lambda f: plain(golden("taehv", "taew2_2"), f / "taew2_2.safetensors"),
    "diffusers": diffusers,
    "magvit2": lambda f: Path(shutil.copy(GOLDEN / "magvit2.pt", f)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a file or folder of each family."""
    return {name: made(tmp_path_factory.mktemp(name)) for name, made in FILES.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", FAMILIES)
def test_files_of_another_family_are_named(
    family: str, given: str, files: dict[str, Path], tmp_path: Path
) -> None:
    path, output = files[given], tmp_path / "a.safetensors"
    allowed = given == family or (given, family) == ("1x", "open-magvit2")  # its first image models
    assert (family in guess_families(path)) == allowed
    if not allowed:
        with pytest.raises(CheckpointError, match=f"not {family}: import it as {given}$"):
            import_checkpoint(family, str(path), output)
        assert not output.exists()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "diffusers"])
def test_own_files_are_imported(family: str, files: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    if family == "magvit2":
        from vtok.models.magvit2 import Magvit2Config

        options["config"] = Magvit2Config.from_dict(read_config(GOLDEN / "magvit2.toml"))
    made = import_checkpoint(family, str(files[family]), tmp_path / "a.safetensors", **options)
    assert made.info.licence == (FAMILIES[family].licence or None)


def test_other_folders_and_names(files: dict[str, Path]) -> None:
    assert guess_families(files["o2-magvit2"].parent) == ("o2-magvit2",)
    assert guess_families(files["diffusers"].parent) == ()
    transformers = {f"model.vqmodel.{k}": x for k, x in golden("emu3", "transformers").items()}
    path = plain(transformers, files["emu3"].with_name("other.safetensors"))
    assert guess_families(path) == ("emu3",)
    averages = {
        f"ema.network-{key.replace('.', '-')}": x
        for key, x in golden("cosmos", "Cosmos-Tokenizer-DV8x8x8").items()
    }
    model = files["cosmos"].with_name("model.pt")
    torch.save({"model": averages}, model)
    assert guess_families(model) == ("cosmos",)
    assert guess_families(Path(__file__)) == ()


def test_folders_of_files_and_files_of_folders(files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "a.safetensors"
    for family in ("vidtok", "open-magvit2", "1x", "taehv"):
        result = vtok("import", family, files[family].parent, "-o", output)
        expected = f"error: {files[family].parent}: is a folder: pass the file in it, such as "
        assert (result.exit_code, len(result.stderr.splitlines())) == (5, 1)
        assert result.stderr.startswith(expected)
    result = vtok("import", "emu3", tmp_path, "-o", output)
    assert (result.exit_code, result.stderr) == (
        5, f"error: {tmp_path}: expected a folder of Emu3 with model.safetensors\n"
    )  # fmt: skip
    wan = {"encoder.conv_in.weight": torch.zeros(1), "encoder.down_blocks.0.conv1.weight":
           torch.zeros(1), "encoder.mid_block.resnets.0.conv1.weight": torch.zeros(1)}  # fmt: skip
    assert guess_families(plain(wan, tmp_path / "vae.safetensors")) == ("diffusers",)


def test_untold_version_is_asked_for(files: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(files["vidtok"], tmp_path / "last.ckpt"))
    result = vtok("import", "vidtok", path, "-o", tmp_path / "a.safetensors")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: pass --version 1.0 or 1.1, or --config: ")
    assert len(result.stderr.splitlines()) == 1


def test_command_says_it_in_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "a.safetensors"
    result = vtok("import", "taehv", files["1x"], "-o", output)
    expected = "looks like 1x or open-magvit2, not taehv: import it as 1x"
    assert (result.exit_code, result.stderr) == (4, f"error: {files['1x']}: {expected}\n")
    own = tiny_checkpoint(tmp_path)
    result = vtok("import", "cosmos", own, "-o", output)
    expected = "is the vtok checkpoint tiny already: no import needed"
    assert (result.exit_code, result.stderr) == (4, f"error: {own}: {expected}\n")
