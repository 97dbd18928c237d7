"""Encoding effort: better pictures from ordinary files, and the cases that are refused."""

import io
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from codefiles import load_tiny
from commands import rows, vtok

from vtok.codefile.reader import CodeFileReader
from vtok.dataset.api import encode_dataset
from vtok.dataset.options import DatasetOptions, make_recipe, with_recipe
from vtok.errors import OptionError, UsageError
from vtok.evaluation.evaluate import EvalOptions, Part, evaluate_file
from vtok.evaluation.metrics import psnr_per_frame
from vtok.models.load import LoadedTokenizer, load
from vtok.pipeline.codec import Decoder, Encoder
from vtok.pipeline.decode import read_codes
from vtok.pipeline.encode import encode_file
from vtok.pipeline.inspect import is_encoded
from vtok.pipeline.options import EncodeOptions
from vtok.pipeline.refine import Effort
from vtok.pipeline.result import CodeChunk, Observer
from vtok.tokens.encode import check_token_options
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader

CLIP = Path(__file__).parents[1] / "examples" / "bee.mp4"
SHORT = {"size": "64", "duration_seconds": 1.0}


@pytest.fixture(scope="module")
def shipped() -> LoadedTokenizer:
    return load("vtok-base", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def frames() -> Frames:
    with VideoReader(CLIP, size="64", duration_seconds=1.0) as reader:
        return np.concatenate(list(reader))


@pytest.fixture(params=["fast", "classic"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedTokenizer:
    return load_tiny(tmp_path, request.param)


def encode(model: LoadedTokenizer, **options: float) -> bytes:
    out = io.BytesIO()
    encode_file(CLIP, out, model=model, options=EncodeOptions(**SHORT, **options))
    return out.getvalue()


def decode(data: bytes, model: LoadedTokenizer, shape: tuple[int, ...]) -> Frames:
    chunks = read_codes(CodeFileReader(io.BytesIO(data)))
    return np.concatenate(list(Decoder(model, shape[1:3]).decode(chunks)))


def error(shown: Frames, frames: Frames) -> float:
    return float(np.square(shown.astype(np.float64) - frames).mean())


def codes(model: LoadedTokenizer, batches: list[Frames], steps: int, stages: int) -> np.ndarray:
    effort = [Effort(model, steps, stages)] if steps else []
    chunks = Encoder(model, stages, observers=effort).encode(batches)
    return np.concatenate([chunk.codes for chunk in chunks], axis=2)


@pytest.mark.parametrize(("bits", "gain"), [(18, 0.08), (72, 0.1)])
def test_better_pictures(shipped: LoadedTokenizer, frames: Frames, bits: int, gain: float) -> None:
    plain = encode(shipped, num_bits=bits)
    better = encode(shipped, num_bits=bits, effort=4)
    headers = [CodeFileReader(io.BytesIO(data)).header for data in (plain, better)]
    assert [header.metadata for header in headers] == [{}, {"effort": "4"}]
    assert headers[0].format == headers[1].format
    found = [psnr_per_frame(decode(x, shipped, frames.shape), frames) for x in (plain, better)]
    assert found[1].mean() > found[0].mean() + gain


def test_streaming_and_repeats_give_the_same_codes(tiny: LoadedTokenizer, frames: Frames) -> None:
    stages = tiny.tokenizer.quantizer.num_stages
    few = frames[:, :16, :24].repeat(2, axis=0)[:37]  # two chunks
    whole = codes(tiny, [few], 2, stages)
    assert (whole != codes(tiny, [few], 0, stages)).any()
    np.testing.assert_array_equal(whole, codes(tiny, [few], 2, stages))
    parts = [few[:3], few[3:4], few[4:]]
    np.testing.assert_array_equal(whole, codes(tiny, parts, 2, stages))


def test_first_call_is_never_worse(tiny: LoadedTokenizer, frames: Frames) -> None:
    stages = tiny.tokenizer.quantizer.num_stages
    few = frames[:9, :16, :24]  # one model call
    shown = []
    for steps in (0, 1, 3):
        found = CodeChunk(codes(tiny, [few], steps, stages), len(few))
        shown.append(np.concatenate(list(Decoder(tiny, few.shape[1:3]).decode([found]))))
    errors = [error(one, few) for one in shown]
    assert max(errors[1:]) <= errors[0] * (1 + 1e-6)


def test_next_chunk_follows_the_stages_that_were_kept(shipped: LoadedTokenizer) -> None:
    """With rate control, the decoder's state before a chunk is that of the shortened codes."""
    wide = np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3), np.uint8)

    class KeepOne(Observer):
        def on_chunk(self, chunk: CodeChunk) -> CodeChunk:
            return CodeChunk(chunk.codes[:1], chunk.num_frames)

    effort = Effort(shipped, 1, 2)
    encoder = Encoder(shipped, 2, observers=[KeepOne(), effort], steps_per_chunk=8)
    chunks = list(encoder.encode([wide]))
    assert [len(chunk.codes) for chunk in chunks] == [1, 1]
    decoder = Decoder(shipped, (32, 32))
    for chunk in chunks:
        list(decoder.decode_next(chunk))
    ours, theirs = effort._state.memory, decoder._state.memory
    assert ours.keys() == theirs.keys()
    for layer, memory in ours.items():
        torch.testing.assert_close(memory, theirs[layer])


def test_rate_control_keeps_its_limit(shipped: LoadedTokenizer, frames: Frames) -> None:
    plain, better = (encode(shipped, min_psnr=24, effort=steps) for steps in (0, 4))
    header = CodeFileReader(io.BytesIO(better)).header
    assert header.metadata == {"effort": "4", "rate": "min-psnr 24"}
    found = psnr_per_frame(decode(better, shipped, frames.shape), frames).mean()
    assert found >= 24
    assert len(better) <= len(plain) * 1.02


def test_dataset(tmp_path: Path) -> None:
    tiny = load_tiny(tmp_path)
    options = EncodeOptions(size="64", effort=1)
    recipe = make_recipe(DatasetOptions(encode=options), tiny.info, "float32")
    assert with_recipe(DatasetOptions(), recipe).encode.effort == 1
    assert "effort" not in make_recipe(DatasetOptions(), tiny.info, "float32")
    folder = tmp_path / "set"
    encode_dataset([CLIP], folder, model=tiny, options=DatasetOptions(encode=options, batch=2))
    (made,) = (path for path in folder.rglob("*.vtok") if path.is_file())
    assert CodeFileReader(io.BytesIO(made.read_bytes())).header.metadata == {"effort": "1"}


def test_evaluation_encodes_for_each_rate(shipped: LoadedTokenizer) -> None:
    part = Part(frames=9, size="64")
    bits = (9, 18)
    plain, better = (
        evaluate_file(CLIP, model=shipped, options=EvalOptions(part, bits, ("psnr",), True, steps))
        for steps in (0, 3)
    )
    assert [point.bits for point in better.points] == [9, 18]
    for before, after in zip(plain.points, better.points, strict=True):
        assert after.quality["psnr"] > before.quality["psnr"]


def test_command(tmp_path: Path) -> None:
    model = load_tiny(tmp_path)
    out = tmp_path / "a.vtok"
    arguments = ["encode", CLIP, "-o", out, "--model", model.info.path, "--size", 64]
    (row,) = rows(vtok(*arguments, "--duration", 0.5, "--effort", 1, "--json"))
    assert row["status"] == "ok"
    options = EncodeOptions(size="64", duration_seconds=0.5, effort=1)
    assert is_encoded(out, CLIP, model, options)
    assert not is_encoded(out, CLIP, model, EncodeOptions(size="64", duration_seconds=0.5))
    (facts,) = rows(vtok("info", out, "--json"))
    assert facts["effort"] == "1"
    refused = vtok(*arguments, "--overwrite", "--effort", -1)
    assert (refused.exit_code, refused.stderr) == (
        2, "error: --effort -1: expected 0 to 1000 steps\n",
    )  # fmt: skip


@pytest.mark.parametrize("steps", [-1, 1001, 10**30])
def test_steps_out_of_range(steps: int) -> None:
    for kind in (EncodeOptions, EvalOptions):
        with pytest.raises(OptionError, match=f"^effort={steps}: expected 0 to 1000 steps$"):
            kind(effort=steps)


def test_tokens_have_no_effort() -> None:
    with pytest.raises(UsageError, match="`effort` does not apply to tokens"):
        check_token_options(EncodeOptions(effort=1))


def test_decoder_without_gradients(tmp_path: Path) -> None:
    model = load_tiny(tmp_path)
    decode = torch.no_grad()(type(model.tokenizer).decode)
    model.tokenizer.decode = MethodType(decode, model.tokenizer)
    with pytest.raises(OptionError, match="the decoder of tiny is not differentiable"):
        encode(model, effort=2)
