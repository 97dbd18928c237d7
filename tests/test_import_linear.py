"""scripts/import_linear.py: equal codes and frames, errors; the linear path and its bit plan."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))
from import_linear import SECOND_PASS_STAGES, to_config, to_tokenizer  # noqa: E402

from vtok.errors import CheckpointError  # noqa: E402
from vtok.models.checkpoint import load_checkpoint  # noqa: E402
from vtok.nn.config import PRESETS  # noqa: E402

CONFIG = {
    "width": [12, 16],
    "blocks": [2, 1],
    "dim": 5,
    "plan": [0, 0, 0, 1, 1, 0, 1, 2, 2, 3, 3, 4, 0, 4, 2, 3, 1, 2],
}


def block_shapes(name: str, dim: int, *, fine: bool = False) -> dict[str, list[int]]:
    kernel, wide = (3, 2 * dim) if fine else (5, 3 * dim)
    shapes = {
        "depthwise.weight": [dim, 1, kernel, kernel],
        "depthwise.bias": [dim],
        "recall.weight": [dim, 1, kernel, kernel],
        "expand.weight": [wide, dim, 1, 1],
        "expand.bias": [wide],
        "project.weight": [dim, wide, 1, 1],
        "project.bias": [dim],
    }
    return {f"{name}.{k}": v for k, v in shapes.items() if not (fine and k == "recall.weight")}


def conv_shapes(name: str, dim: int, dim_out: int, kernel: int = 1) -> dict[str, list[int]]:
    return {f"{name}.weight": [dim_out, dim, kernel, kernel], f"{name}.bias": [dim_out]}


SHAPES = {
    **conv_shapes("enc_in", 48, 64, 3),
    **conv_shapes("enc_fold", 1024, 12),
    **conv_shapes("enc_out", 12, 5),
    **block_shapes("enc.0", 12),
    **block_shapes("enc.1", 12),
    **conv_shapes("dec_in", 5, 16),
    **conv_shapes("dec_unfold", 16, 768),
    **conv_shapes("dec_out", 48, 48, 3),
    **block_shapes("dec.0", 16),
    **block_shapes("dec_fine", 48, fine=True),
    **conv_shapes("lin_enc", 768, 5),
    **conv_shapes("lin_dec", 5, 768),
}


SECOND = {**CONFIG, "second": 1, "plan": [*CONFIG["plan"], 4, 0, 1, 2, 3, 4, 0, 1, 2]}
SECOND_SHAPES = {
    **SHAPES,
    **conv_shapes("second.err", 768, 12),
    **conv_shapes("second.lin", 768, 5),
    **block_shapes("second.blocks.0", 12),
    **conv_shapes("second.out", 12, 5),
}


def make_tensors(
    shapes: dict[str, list[int]] = SHAPES, scale: float = 1.4
) -> dict[str, torch.Tensor]:
    """Weights by a formula, the same on any machine, each with an effect on the result."""
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        count = int(np.prod(shape))
        wave = np.sin(1.7 * number + 12.9898 * np.arange(count) ** 1.1)
        size = max(1, count // shape[0]) ** -0.5
        tensors[name] = torch.from_numpy((scale * size * wave).astype(np.float32)).view(shape)
    return tensors


def make_linear_clip() -> torch.Tensor:
    """Float [1, 3, 9, 16, 24] in -1..1 by a formula."""
    grids = np.meshgrid(*map(np.arange, (3, 9, 16, 24)), indexing="ij")
    c, t, y, x = (grid.astype(np.float64) for grid in grids)
    clip = np.sin(0.9 * c + 0.35 * t + 0.02 * y * x) * np.cos(0.4 * y - 0.3 * x + 0.5 * t * c)
    return torch.from_numpy(clip.astype(np.float32))[None]


def test_codes_and_frames_equal_those_of_the_trainer() -> None:
    """linear.npz holds what the trainer's own class computed from these weights and this clip."""
    expected = np.load(ROOT / "tests" / "golden" / "linear.npz")
    tokenizer = to_tokenizer(CONFIG, make_tensors())
    with torch.no_grad():
        codes = tokenizer.encode(make_linear_clip(), quantize=True)
        assert np.array_equal(codes.numpy(), expected["codes"])
        for stages in (1, 2):
            frames = tokenizer.decode(codes[:, :stages])
            np.testing.assert_allclose(frames, expected[f"frames_{stages}"], atol=1e-4)


def test_second_pass_equals_that_of_the_trainer() -> None:
    """second_pass.npz holds what the trainer's own class computed, as for linear.npz."""
    expected = np.load(ROOT / "tests" / "golden" / "second_pass.npz")
    tokenizer, clip = to_tokenizer(SECOND, make_tensors(SECOND_SHAPES, 0.7)), make_linear_clip()
    assert tokenizer.config.second_pass == (1, SECOND_PASS_STAGES)
    with torch.no_grad():
        for name, stages in (("first", SECOND_PASS_STAGES - 1), ("second", SECOND_PASS_STAGES)):
            latents = tokenizer.encode_latents(clip, num_stages=stages)
            np.testing.assert_allclose(latents, expected[f"latents_{name}"], atol=2e-3)
        assert torch.equal(latents, tokenizer.encode(clip))
        frames = tokenizer.decode(tokenizer.quantize(latents))
        np.testing.assert_allclose(frames, expected["frames"], atol=4e-3)


def test_bits_of_a_known_plan_are_reordered_for_the_entropy_coder() -> None:
    preset = PRESETS["vtok-base"]
    assert preset.bit_plan is not None
    stages = [preset.bit_plan[start : start + 9] for start in range(0, 72, 9)]
    other = [dim for stage in stages for dim in reversed(stage)]
    sizes = {"width": [256, 320], "blocks": [5, 4]}
    assert to_config({**sizes, "plan": other}) == preset
    assert to_config({**sizes, "plan": CONFIG["plan"]}).bit_plan == tuple(CONFIG["plan"])


def test_script_writes_a_checkpoint(tmp_path: Path) -> None:
    package = {"config": json.dumps(CONFIG), "model": make_tensors()}
    torch.save(package, tmp_path / "weights.pt")
    target = tmp_path / "linear.safetensors"
    call = [sys.executable, str(ROOT / "scripts" / "import_linear.py"), tmp_path / "weights.pt"]
    subprocess.run([*call, target, "--name", "small"], check=True, cwd=ROOT)
    tokenizer, info = load_checkpoint(target)
    assert (info.name, tokenizer.config.bit_plan) == ("small", tuple(CONFIG["plan"]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spam.weight": torch.zeros(1)}, "unknown tensor spam.weight"),
        ({"enc_out.weight": torch.zeros(4, 12, 1, 1)}, "do not fit the config"),
    ],
)
def test_wrong_tensors_are_refused(changed: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        to_tokenizer(CONFIG, {**make_tensors(), **changed})
