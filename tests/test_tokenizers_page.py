"""docs/tokenizers.md lists every family, and its recipe runs from import to decoded frames."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from videos import make_video

from vtok.evaluation.probe import make_digests
from vtok.models.cosmos import CosmosConfig, CosmosTokenizer, read_cosmos
from vtok.models.imports import FAMILIES
from vtok.models.load import resolve
from vtok.video.reader import VideoReader

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tokenizers.md").read_text()
RECIPE = PAGE[PAGE.index("## Tokenize a data set") :]
SHELL = re.findall(r"```sh\n(.*?)```", RECIPE, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", RECIPE, re.DOTALL)
IMPORTED = "hf:nvidia/Cosmos-0.1-Tokenizer-DV8x8x8"
SIDE = 32
PROGRAMS = {
    "vtok": f"#!{sys.executable}\nfrom vtok.cli.app import main\nmain()\n",
    "nvidia-smi": "#!/bin/sh\necho GPU 0\necho GPU 1\n",
}


def test_every_family_is_listed() -> None:
    table = PAGE[PAGE.index("## Families") : PAGE.index("| model |")]
    assert set(FAMILIES) == set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE))


def test_digests_of_the_page_are_those_of_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_cosmos(tmp_path / "DV8x8x8")
    tokenizer = read_cosmos(tmp_path / "DV8x8x8")[0].requires_grad_(False)

    class Original:
        """Stand-in for the TorchScript encoder."""

        def float(self) -> "Original":
            return self

        def __call__(self, clip: Tensor) -> tuple[Tensor]:
            return (tokenizer.to_codes(tokenizer.encode_latents(clip))[:, 0].int(),)

    monkeypatch.setattr(torch.jit, "load", lambda path: Original())
    (block,) = re.findall(r"```python\n(import hashlib.*?)```", PAGE, re.DOTALL)
    exec(block, {})
    digests = make_digests(resolve(tokenizer))
    assert capsys.readouterr().out.split() == [digest.codes_sha256 for digest in digests]


def save_tiny_cosmos(folder: Path) -> None:
    """Save an 8x8x8 tokenizer with random weights under the published names."""
    torch.manual_seed(0)
    config = CosmosConfig(
        z_channels=8, channels=8, encoder_widths=(8,) * 3, decoder_widths=(8,) * 3, num_res_blocks=1
    )
    tensors = {}
    for name, tensor in CosmosTokenizer.from_config(config).state_dict().items():
        theirs = re.sub(r"(norm\w*)\.(weight|bias)$", r"\1.norm.\2", name)
        tensors[theirs.replace(".conv.", ".conv3d.")] = torch.randn_like(tensor) * 0.3
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.slow
def test_recipe_runs(tmp_path: Path) -> None:
    save_tiny_cosmos(tmp_path / "Cosmos-0.1-Tokenizer-DV8x8x8")
    (tmp_path / "videos").mkdir()
    for name, frames in (("a", 49), ("b", 98)):
        make_video(tmp_path / "videos" / f"{name}.mp4", frames)
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT), "VTOK_MODELS": str(tmp_path / "models"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    script = "".join(SHELL).replace(IMPORTED, IMPORTED.partition("/")[2])
    script = script.replace("256x256", f"{SIDE}x{SIDE}")
    programs = [["bash", "-eo", "pipefail", "-c", script], [sys.executable, "-c", "".join(PYTHON)]]
    for command in programs:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    with VideoReader(tmp_path / "predicted.mp4") as reader:
        assert np.concatenate(list(reader)).shape == (49, SIDE, SIDE, 3)
