"""`vtok import magvit2` gives the codes and frames of magvit2-pytorch.

The golden files were made with magvit2-pytorch by scripts/peers/magvit2_parity.py, which also
compares every layer kind with it.
"""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import rows, vtok
from safetensors.torch import load_file

from vtok import StreamState, VideoTokenizer
from vtok.errors import CheckpointError, UsageError
from vtok.models.checkpoint import load_checkpoint
from vtok.models.magvit2 import BROKEN_KINDS, IGNORED, Magvit2Config, convert, read_magvit2
from vtok.training.config import read_config

GOLDEN = Path(__file__).parent / "golden" / "magvit2.pt"
CONFIG = GOLDEN.with_suffix(".toml")


@pytest.fixture(scope="module")
def package() -> dict[str, Any]:
    return torch.load(GOLDEN, weights_only=True)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> VideoTokenizer:
    output = tmp_path_factory.mktemp("made") / "made.safetensors"
    result = vtok("import", "magvit2", GOLDEN, "-o", output, "--config", CONFIG)
    assert result.exit_code == 0, result.stderr
    return load_checkpoint(output)[0]


def test_codes_and_frames_equal_magvit2(imported: VideoTokenizer) -> None:
    golden = load_file(GOLDEN.with_suffix(".safetensors"))
    codes = golden["codes"].movedim(-1, 1)  # it has the codebooks last
    with torch.inference_mode():
        assert torch.equal(imported.encode(golden["clip"], quantize=True), codes)
        frames = imported.decode(codes)
    assert codes.unique().numel() > 10
    assert (frames - golden["frames"]).abs().max() < 1e-4


def test_imported_model_streams(imported: VideoTokenizer) -> None:
    clip, state = load_file(GOLDEN.with_suffix(".safetensors"))["clip"], StreamState()
    with torch.inference_mode():
        whole = imported.encode(clip)
        parts = [imported.encode(clip[:, :, a:b], state=state) for a, b in ((0, 1), (1, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-5)


def test_delay_of_magvit2_is_kept(imported: VideoTokenizer) -> None:
    # latent steps end two frames early: the first sees only the zeros before the video
    noise = torch.randn(2, 3, 5, 16, 16)
    noise[1, :, :2] = noise[0, :, :2]
    with torch.inference_mode():
        latents = imported.encode(noise)
    torch.testing.assert_close(latents[0], latents[1], rtol=0, atol=1e-5)
    with torch.inference_mode():
        changed = imported.encode(torch.cat((noise[:1, :, :1] + 1, noise[:1, :, 1:]), dim=2))
    assert (changed[:, :, 1] - latents[:1, :, 1]).abs().max() > 1e-3


def test_command_output(tmp_path: Path) -> None:
    output = tmp_path / "made.safetensors"
    arguments = ("import", "magvit2", GOLDEN, "-o", output, "--config", CONFIG)
    (row,) = rows(vtok(*arguments, "--json", "--name", "theirs"))
    assert (row["name"], row["temporal_compression"], row["spatial_compression"]) == (
        "theirs",
        4,
        2,
    )
    assert row["status"] == "ok"
    assert row["notes"] == ["left out 39 tensors that no code depends on"]
    before = output.read_bytes()
    again = vtok(*arguments)
    assert (again.exit_code, output.read_bytes()) == (1, before)
    assert vtok(*arguments, "--overwrite", "-q").exit_code == 0
    assert load_checkpoint(output)[1].name == "made"
    shown = vtok(*arguments, "--overwrite").stderr
    assert "4x2x2, 64 entries x 2 codebooks, 12 bits per position" in shown


def changed_golden(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Make a function that writes a changed golden checkpoint."""

    def write(path: Path) -> None:
        package = torch.load(GOLDEN, weights_only=True)
        change(package)
        torch.save(package, path)

    return write


class Payload:
    """Pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def compress(path: Path) -> None:
    with zipfile.ZipFile(GOLDEN) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))


STATE = "model_state_dict"
BIAS = "conv_in.conv.bias"
BAD_FILES: dict[str, tuple[Callable[[Path], Any], str, int]] = {
    "missing": (lambda path: None, "cannot be read", 5),
    "no zip": (lambda path: path.write_bytes(b"no checkpoint" * 100), "torch.save", 4),
    "cut": (lambda path: path.write_bytes(GOLDEN.read_bytes()[:100_000]), "cut short", 4),
    "compressed": (compress, "compressed", 4),
    "code": (lambda path: torch.save(Payload(path.with_suffix(".ran")), path), "no tensors", 4),
    "other content": (lambda path: torch.save([1, 2], path), "holds no tensors", 4),
    "missing tensor": (changed_golden(lambda p: p[STATE].pop(BIAS)), f"{BIAS} is missing", 4),
    "unknown tensor": (
        changed_golden(lambda p: p[STATE].update({"encoder_layers.77.x": torch.zeros(1)})),
        "unknown tensors: encoder_layers.77.x",
        4,
    ),
    "wrong shape": (
        changed_golden(lambda p: p[STATE].update({BIAS: torch.zeros(9)})),
        f"{BIAS} has shape [9], expected [8]",
        4,
    ),
    "integers": (changed_golden(lambda p: p[STATE].update({BIAS: torch.ones(8).int()})), BIAS, 4),
    "not finite": (
        changed_golden(lambda p: p[STATE].update({BIAS: torch.full((8,), torch.nan)})),
        f"{BIAS} holds infinities or NaN",
        4,
    ),
    "sparse": (
        changed_golden(lambda p: p[STATE].update({BIAS: torch.zeros(8).to_sparse()})),
        f"{BIAS} is missing",
        4,
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_checkpoint_is_a_one_line_error(case: str, tmp_path: Path) -> None:
    write, message, code = BAD_FILES[case]
    bad, output = tmp_path / "bad.pt", tmp_path / "out.safetensors"
    write(bad)
    before = sorted(tmp_path.iterdir())
    result = vtok("import", "magvit2", bad, "-o", output, "--config", CONFIG)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before  # nothing ran, nothing was written


BAD_CONFIGS = {
    "spam = 1": "no argument spam",
    "init_dim = 8": "codebook_size is missing",
    "codebook_size = 60": "codebook_size=60",
    "use_fsq = true\nfsq_levels = [8, 5]": "FSQ",
    'codebook_size = 64\npad_mode = "reflect"': "looks ahead",
    "codebook_size = 64\nseparate_first_frame_encoding = true": "first frame",
    "codebook_size = 64\nattn_heads = 4": "attn_heads=4",
    "codebook_size = 64\nlayers = ['spam']": "layers: 'spam'",
    "codebook_size = 64\nlayers = 'residual'": "expected a list",
    "codebook_size = 64\nlayers = [['residual', 2, 3]]": "expected a kind",
    "codebook_size = 64\nlayers = [['compress_space', -1]]": "expected a number",
    "codebook_size = 64\nlayers = ['consecutive_residual']": "expected (kind, units)",
    "codebook_size = 64\nlayers = ['cond_residual']": "dim_cond=None",
    "codebook_size = 64\nlayers = ['cond_residual']\ndim_cond = 4": "cannot hold their stem",
    "codebook_size = 64\ndim_cond_expansion_factor = inf": "too wide",
    "codebook_size = 64\nmax_dim = nan": "max_dim=nan",
    "codebook_size = 64\ninit_dim = '8'": "init_dim='8'",
    "codebook_size = 64\nlayers = [" + "'compress_time'," * 6 + "]": "63 frames of delay",
    "codebook_size = 64\nlayers = [" + "'compress_space'," * 20 + "]": "channels",
    "codebook_size = 64\ninput_conv_kernel_size = 7": "expected 3 numbers",
    "codebook_size = 64\ninput_conv_kernel_size = [7, 4, 4]": "input_conv_kernel_size",
    "codebook_size = 64\nlayers = ['cond_attend_time']": "cannot run it either",
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_bad_config_is_a_one_line_error(text: str, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    output = tmp_path / "out.safetensors"
    result = vtok("import", "magvit2", GOLDEN, "-o", output, "--config", config)
    assert result.exit_code == 2, result.stderr
    assert BAD_CONFIGS[text] in result.stderr
    assert result.stderr.startswith(f"error: {config}: ")
    assert not output.exists()


def test_config_of_another_model_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    shutil.copy(CONFIG, config)
    config.write_text(config.read_text().replace("codebook_size = 64", "codebook_size = 32"))
    output = tmp_path / "out.safetensors"
    result = vtok("import", "magvit2", GOLDEN, "-o", output, "--config", config)
    assert (result.exit_code, output.exists()) == (4, False)
    assert "quantizers.project_in.weight has shape [12, 32], expected [10, 32]" in result.stderr


def test_irrelevant_arguments_are_ignored() -> None:
    stated = read_config(CONFIG)
    more = {**stated, **dict.fromkeys(IGNORED, 0), "max_dim": 512}
    assert Magvit2Config.from_dict(more).stack == Magvit2Config.from_dict(stated).stack


def test_layer_widths_equal_magvit2() -> None:
    layers = ("residual", "compress_space", ("residual", 99), "compress_time", ("compress_time", 7))
    config = Magvit2Config(codebook_size=8, init_dim=4, max_dim=6, layers=layers)
    assert [layer.dim_out for layer in config.stack] == [4, 6, 6, 6, 6]
    assert config.delay == 3


def test_conditioned_layers_in_python() -> None:
    config = Magvit2Config(
        codebook_size=4, init_dim=2, dim_cond=3, layers=("cond_residual",),
        dim_cond_expansion_factor=2.0, input_conv_kernel_size=(1, 1, 1),
        output_conv_kernel_size=(1, 1, 1),
    )  # fmt: skip
    shapes = {
        "conv_in.conv.weight": (2, 3, 1, 1, 1), "conv_in.conv.bias": (2,),
        "conv_out.conv.weight": (3, 2, 1, 1, 1), "conv_out.conv.bias": (3,),
        "encoder_cond_in.0.weight": (6, 3), "encoder_cond_in.0.bias": (6,),
        "decoder_cond_in.0.weight": (6, 3), "decoder_cond_in.0.bias": (6,),
    }  # fmt: skip
    for side in ("encoder", "decoder"):
        shapes |= {
            f"{side}_layers.0.to_cond.weight": (2, 6), f"{side}_layers.0.to_cond.bias": (2,),
            f"{side}_layers.0.conv.weights": (2, 2, 3, 3, 3),
            f"{side}_layers.0.conv_out.weight": (2, 2, 1, 1, 1),
            f"{side}_layers.0.conv_out.bias": (2,),
        }  # fmt: skip
    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    made = convert(state, config)
    clip, cond = torch.randn(1, 3, 2, 4, 4), torch.randn(1, 3)
    with torch.inference_mode():
        latents = made.tokenizer.encode(clip, cond=made.encoder_stem(cond))
        # the computation of magvit2, with modulated weights
        weight, bias = state["conv_in.conv.weight"], state["conv_in.conv.bias"]
        x = torch.nn.functional.conv3d(clip, weight, bias)
        stem = torch.nn.functional.silu(
            cond @ state["encoder_cond_in.0.weight"].T + state["encoder_cond_in.0.bias"]
        )
        scale = stem @ state["encoder_layers.0.to_cond.weight"].T
        scale = scale + state["encoder_layers.0.to_cond.bias"] + 1
        kernel = state["encoder_layers.0.conv.weights"] * scale.view(1, 2, 1, 1, 1)
        kernel = kernel / kernel.square().sum((1, 2, 3, 4), keepdim=True).sqrt()
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1, 2, 0))
        hidden = torch.nn.functional.elu(torch.nn.functional.conv3d(padded, kernel))
        out, out_bias = (state[f"encoder_layers.0.conv_out.{n}"] for n in ("weight", "bias"))
        hidden = torch.nn.functional.elu(torch.nn.functional.conv3d(hidden, out, out_bias))
    # 2 channels for 2 bits: no projection
    torch.testing.assert_close(latents, made.tokenizer.quantizer.normalize(x + hidden))
    with pytest.raises(CheckpointError, match=r"conv\.weights is missing"):
        convert({k: v for k, v in state.items() if k != "encoder_layers.0.conv.weights"}, config)


def test_spherical_codes_are_folded_into_the_decoder(package: dict[str, Any]) -> None:
    stated = read_config(CONFIG)
    plain = read_magvit2(GOLDEN, Magvit2Config.from_dict(stated)).tokenizer
    sphere = read_magvit2(GOLDEN, Magvit2Config.from_dict({**stated, "lfq_spherical": True}))
    theirs = package[STATE]["quantizers.project_out.weight"].float()
    code = torch.full((12,), 1 / 6**0.5)  # 6 bits a codebook, all of them set
    expected = theirs @ code
    found = sphere.tokenizer.get_parameter("decoder.layers.0.conv.weight").flatten(1)
    torch.testing.assert_close(found @ torch.full((12,), 0.8), expected)
    ratio = plain.get_parameter("decoder.layers.0.conv.weight").flatten(1) / found
    torch.testing.assert_close(ratio, torch.full_like(ratio, 6**0.5))


def test_broken_kinds_are_refused() -> None:
    for kind in BROKEN_KINDS:
        with pytest.raises(UsageError, match=kind):
            Magvit2Config(codebook_size=8, layers=(kind,), dim_cond=4)
