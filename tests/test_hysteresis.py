"""Hysteresis: codes that stay as they are while latents hardly change, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from codefiles import load_tiny
from commands import rows, vtok
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok.codefile.reader import CodeFileReader
from vtok.dataset.options import DatasetOptions, make_recipe, with_recipe
from vtok.errors import OptionError, UsageError
from vtok.evaluation.evaluate import EvalOptions, Part, evaluate_file
from vtok.models.checkpoint import save_checkpoint
from vtok.models.load import LoadedTokenizer, load
from vtok.nn.quantize import LATENT_BOUND
from vtok.nn.tokenizer import VideoTokenizer
from vtok.pipeline.codec import Decoder, Encoder
from vtok.pipeline.inspect import is_encoded
from vtok.pipeline.options import EncodeOptions
from vtok.pipeline.refine import Effort, Hysteresis, refiners
from vtok.pipeline.result import CodeChunk
from vtok.tokens.encode import check_token_options
from vtok.video.reader import VideoReader

CLIP = Path(__file__).parents[1] / "examples" / "bee.mp4"
PLAN = (0, 1, 0, 2, 0, 1, 3, 3, 2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    """A tokenizer with dimensions of one to three bits."""
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    tokenizer = VideoTokenizer(codebook_size=8, num_stages=3, bit_plan=PLAN, init_dim=4, layers=())
    save_checkpoint(path, tokenizer, "plain")
    return load(path, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def shipped() -> LoadedTokenizer:
    return load("vtok-base", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    with VideoReader(CLIP, size="64", duration_seconds=1.0) as reader:
        return np.concatenate(list(reader))


def random_latents(seed: int) -> torch.Tensor:
    """Latents of `plain` that move by small steps."""
    random = torch.Generator().manual_seed(seed)
    moves = torch.randn(1, 4, 12, 2, 3, generator=random)
    return (0.3 * moves.cumsum(2)).tanh() * LATENT_BOUND


def codes(
    model: LoadedTokenizer, batches: list[np.ndarray], width: float, effort: int = 0
) -> np.ndarray:
    """Codes of 18 bits."""
    observers = refiners(model, effort, width, 2)
    chunks = Encoder(model, 2, observers=observers).encode(batches)
    return np.concatenate([chunk.codes for chunk in chunks], axis=2)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), stages=st.integers(1, 3), width=st.floats(0.0, 1.0))
def test_values_stay_until_latents_pass_the_border(
    plain: LoadedTokenizer, seed: int, stages: int, width: float
) -> None:
    """A value is the nearest one, or that of the step before within the width; and it is coded."""

    def quantize(latents: torch.Tensor) -> torch.Tensor:
        return plain.tokenizer.from_codes(plain.tokenizer.to_codes(latents, stages))

    hysteresis, latents = Hysteresis(plain, width, stages), random_latents(seed)
    held = hysteresis.hold(latents, None)
    nearest = quantize(latents)
    torch.testing.assert_close(held[:, :, 0], nearest[:, :, 0])
    half = (latents - nearest).abs().amax((0, 2, 3, 4), keepdim=True)
    cells = plain.tokenizer.quantizer.half_cells(stages).view_as(half)
    assert (half <= cells + 1e-6)[cells > 0].all()
    close = (latents[:, :, 1:] - held[:, :, :-1]).abs() <= (1 + width) * cells
    assert torch.equal(held[:, :, 1:], torch.where(close, held[:, :, :-1], nearest[:, :, 1:]))
    assert torch.equal(quantize(held), held)
    assert torch.equal(hysteresis.hold(latents[:, :, 5:], held[:, :, 4:5]), held[:, :, 5:])


def test_latents_at_a_border_keep_their_codes(plain: LoadedTokenizer) -> None:
    """Noise around a border gives one value, and a larger change another."""
    path = torch.tensor([0.02, -0.03, 0.01, -0.02, -0.39]).view(1, 1, -1, 1, 1)
    latents = path.expand(1, 4, -1, 1, 1)
    held = Hysteresis(plain, 0.9, 3).hold(latents, None)[0, :, :, 0, 0]
    for values in held:
        assert values[0] > 0
        assert (values[1:4] == values[0]).all()
    assert held[0, 4] < 0  # the dimension of three bits


@pytest.mark.parametrize("effort", [0, 2])
def test_fewer_changes(shipped: LoadedTokenizer, frames: np.ndarray, effort: int) -> None:
    found = [codes(shipped, [frames], width, effort) for width in (0.0, 0.2, 0.5)]
    changes = [(np.diff(one, axis=2) != 0).mean() for one in found]
    assert changes[0] > changes[1] > changes[2] > 0


@pytest.mark.parametrize("effort", [0, 2])
def test_streaming_gives_the_same_codes(
    shipped: LoadedTokenizer, frames: np.ndarray, effort: int
) -> None:
    whole = codes(shipped, [frames], 0.3, effort)
    parts = [frames[:3], frames[3:4], frames[4:]]
    np.testing.assert_array_equal(whole, codes(shipped, parts, 0.3, effort))


def test_effort_decodes_the_codes_that_are_held(shipped: LoadedTokenizer) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3), np.uint8)
    effort = Effort(shipped, 1, 2, Hysteresis(shipped, 0.5, 2))
    chunks = list(Encoder(shipped, 2, observers=[effort]).encode([wide]))
    decoder = Decoder(shipped, (32, 32))
    for chunk in chunks:
        list(decoder.decode_next(CodeChunk(chunk.codes, chunk.num_frames)))
    for layer, memory in effort._state.memory.items():
        torch.testing.assert_close(memory, decoder._state.memory[layer])


def test_files_are_smaller(shipped: LoadedTokenizer) -> None:
    part = Part(frames=29, size="128")
    plain, held = (
        evaluate_file(CLIP, model=shipped, options=EvalOptions(part, (9, 18), ("psnr",), **more))
        for more in ({}, {"hysteresis": 0.2})
    )
    for before, after in zip(plain.points, held.points, strict=True):
        assert after.bytes < 0.96 * before.bytes
        assert before.quality["psnr"] - 0.3 < after.quality["psnr"] < before.quality["psnr"]


def test_dataset_recipe(tmp_path: Path) -> None:
    tiny = load_tiny(tmp_path)
    options = DatasetOptions(encode=EncodeOptions(hysteresis=0.25))
    recipe = make_recipe(options, tiny.info, "float32")
    assert with_recipe(DatasetOptions(), recipe).encode.hysteresis == 0.25
    assert "hysteresis" not in make_recipe(DatasetOptions(), tiny.info, "float32")


def test_command(tmp_path: Path) -> None:
    model = load_tiny(tmp_path)
    out = tmp_path / "a.vtok"
    arguments = ["encode", CLIP, "-o", out, "--model", model.info.path, "--size", 64]
    (row,) = rows(vtok(*arguments, "--duration", 0.5, "--hysteresis", 0.2, "--json"))
    assert row["status"] == "ok"
    part = {"size": "64", "duration_seconds": 0.5}
    assert is_encoded(out, CLIP, model, EncodeOptions(**part, hysteresis=0.2))
    assert not is_encoded(out, CLIP, model, EncodeOptions(**part))
    (facts,) = rows(vtok("info", out, "--json"))
    assert facts["hysteresis"] == "0.2"
    assert CodeFileReader(io.BytesIO(out.read_bytes())).header.metadata == {"hysteresis": "0.2"}
    refused = vtok(*arguments, "--overwrite", "--hysteresis", 1.5)
    assert (refused.exit_code, refused.stderr) == (
        2, "error: --hysteresis 1.5: expected 0 to 1\n",
    )  # fmt: skip


@pytest.mark.parametrize("width", [-0.1, 1.1, float("nan"), float("inf")])
def test_widths_out_of_range(width: float) -> None:
    for kind in (EncodeOptions, EvalOptions):
        with pytest.raises(OptionError, match=r"^hysteresis=.*: expected 0 to 1$"):
            kind(hysteresis=width)


def test_tokens_have_no_hysteresis() -> None:
    with pytest.raises(UsageError, match="`hysteresis` does not apply to tokens"):
        check_token_options(EncodeOptions(hysteresis=0.1))
