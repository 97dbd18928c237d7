"""Files of learned tokens: round trip, deterministic bytes, parts, and damaged files."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_frame_times import BASE, TICKS
from token_models import tiny_token_model
from videos import make_timed_video, make_video

from vtok.codefile.reader import CodeFileReader
from vtok.errors import CodeFileError, UsageError
from vtok.models.load import ModelCache
from vtok.pipeline.codec import Encoder
from vtok.pipeline.decode import decode_file
from vtok.pipeline.options import DecodeOptions, EncodeOptions
from vtok.tokens.decode import decode_tokens, decode_tokens_file
from vtok.tokens.encode import encode_token_codes_file, encode_tokens_file
from vtok.tokens.file import TokenFile, is_token_file, seems_tokens
from vtok.tokens.model import TokenModel, TokenModels, load_token_model
from vtok.video.reader import VideoReader, probe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TokenModel:
    return tiny_token_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "clip.mp4", 38, fps="30000/1001")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, video: Path, model: TokenModel) -> Path:
    path = tmp_path_factory.mktemp("made") / "clip.tokens.safetensors"
    encode_tokens_file(video, path, model=model)
    return path


def ways(model: TokenModel) -> dict[str, object]:
    """How the tiny models are found when decoding."""
    models = ModelCache(model.model.info.path, dtype="float32")
    return {"model": models, "tokens": TokenModels(model.info.path)}


def test_uneven_times_are_reported(model: TokenModel, tmp_path: Path) -> None:
    source = make_timed_video(tmp_path / "a.mp4", TICKS[:20], BASE)
    result = encode_tokens_file(source, tmp_path / "a.tokens.safetensors", model=model)
    assert result.note == "times of frames are left out: tokens files have one rate"


def test_file_holds_tokens_and_times(made: Path, video: Path, model: TokenModel) -> None:
    held = load_file(made)
    assert held["tokens"].shape == (11, 8, 16)  # 1 + ceil(37 / 4) steps
    assert held["tokens"].dtype == np.float16
    with VideoReader(video) as reader:
        frames = np.concatenate(list(reader))
    latents = torch.cat(
        [x for x, _ in Encoder(model.model).map_latents([frames], lambda latents: latents)], dim=2
    )
    expected = model.pipeline.encode(latents, 8)[0].half().numpy()
    np.testing.assert_array_equal(held["tokens"], expected)
    second = 1001 / 30000
    np.testing.assert_allclose(held["times"][0], (0, second))
    np.testing.assert_allclose(held["times"][1], (second, 5 * second))
    np.testing.assert_allclose(held["times"][-1], (37 * second, 38 * second))
    with safe_open(made, framework="np") as file:
        about = json.loads(file.metadata()["vtok"])
    assert about["shape"] == [11, 8, 16]
    assert about["num_frames"] == 38
    assert about["tokens"]["weights_sha256"] == model.info.weights_sha256
    assert about["header"]["model"]["weights_sha256"] == model.model.info.weights_sha256


def test_output_bytes_are_deterministic(
    made: Path, video: Path, model: TokenModel, tmp_path: Path
) -> None:
    again = tmp_path / "again.safetensors"
    result = encode_tokens_file(video, again, model=model)
    assert again.read_bytes() == made.read_bytes()
    assert result.shape == (11, 8, 16)
    assert result.frames == 38
    assert result.bytes == made.stat().st_size


def test_times_of_part(video: Path, model: TokenModel, tmp_path: Path) -> None:
    how = EncodeOptions(start_seconds=0.5, duration_seconds=0.3, fps=Fraction(10))
    encode_tokens_file(video, tmp_path / "x", model=model, options=how)
    np.testing.assert_allclose(load_file(tmp_path / "x")["times"][0], (0.5, 0.6))


def test_decoding_equals_pipeline(made: Path, model: TokenModel, tmp_path: Path) -> None:
    result = decode_tokens_file(made, tmp_path / "clip.mp4", **ways(model))
    info = probe(tmp_path / "clip.mp4")
    assert (info.width, info.height, info.num_frames) == (64, 48, 38)
    assert info.fps == Fraction(30000, 1001)
    assert result.frames == 38
    frames = np.concatenate(list(decode_tokens(TokenFile(made, "x"), model, (0, 38))))
    tokens = torch.from_numpy(load_file(made)["tokens"]).float().unsqueeze(0)
    latents = model.pipeline.decode(tokens, (12, 16))
    clip = model.model.tokenizer.decode(latents, num_frames=38)
    whole = clip.add(1).mul(127.5).round().clamp(0, 255)[0].permute(1, 2, 3, 0).byte().numpy()
    assert np.abs(frames.astype(int) - whole).max() <= 1
    assert frames.std() > 1


@pytest.mark.parametrize("part", [(0, 5), (1, 2), (7, 20), (30, 38), (37, 38)])
def test_part_equals_whole(made: Path, model: TokenModel, part: tuple[int, int]) -> None:
    file = TokenFile(made, "x")
    whole = np.concatenate(list(decode_tokens(file, model, (0, 38))))
    some = np.concatenate(list(decode_tokens(file, model, part)))
    assert some.shape == whole[slice(*part)].shape
    assert np.abs(some.astype(int) - whole[slice(*part)]).max() <= 1


def test_num_tokens_keeps_the_first_tokens(
    made: Path, video: Path, model: TokenModel, tmp_path: Path
) -> None:
    few = tmp_path / "few.safetensors"
    encode_tokens_file(video, few, model=model, num_tokens=3)
    for frames, count in ((TokenFile(made, "x"), 3), (TokenFile(few, "x"), None)):
        shown = np.concatenate(list(decode_tokens(frames, model, (0, 38), count)))
        if count:
            expected = shown
    np.testing.assert_array_equal(shown, expected)


def test_binary_streams(made: Path, video: Path, model: TokenModel, tmp_path: Path) -> None:
    with video.open("rb") as source, (tmp_path / "out").open("wb") as target:
        encode_tokens_file(source, target, model=model)
    assert load_file(tmp_path / "out")["tokens"].shape == (11, 8, 16)
    with made.open("rb") as source:
        assert seems_tokens(source)
        decode_tokens_file(source, tmp_path / "clip.mp4", **ways(model))
    assert probe(tmp_path / "clip.mp4").num_frames == 38


def test_reads_only_requested_steps(made: Path) -> None:
    file = TokenFile(made, "x")
    assert file.read(2, 4).shape == (2, 8, 16)
    parts = [tokens for tokens, _ in file.chunks(range(1, 11), 4)]
    np.testing.assert_array_equal(np.concatenate(parts), load_file(made)["tokens"][1:])


def test_damage_is_one_line(made: Path, model: TokenModel, tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.tokens.safetensors", tmp_path / "clip.mp4"
    whole = made.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        bad.write_bytes(whole[:cut])
        with pytest.raises(CodeFileError, match=r"bad\.tokens.*damaged or cut"):
            decode_tokens_file(bad, out, **ways(model))
    nan = np.frombuffer(whole[-2:], np.float16).copy()
    nan[:] = np.nan
    bad.write_bytes(whole[:-2] + nan.tobytes())
    with pytest.raises(CodeFileError, match=r"holds NaN or infinities in steps 8 to 10"):
        decode_tokens_file(bad, out, **ways(model))
    save_file({"codes": np.zeros(3, np.uint16)}, bad)
    with pytest.raises(CodeFileError, match="not of learned tokens"):
        decode_tokens_file(bad, out, **ways(model))
    assert not out.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [11, 8]), ("shape", [11, 65, 16]), ("shape", [11, 8, 99999]),
        ("shape", [0, 8, 16]), ("num_frames", 300), ("num_frames", "38"), ("version", 2),
        ("tokens", {"name": "x"}), ("header", {}), ("format", "other"),
    ],
)  # fmt: skip
def test_false_metadata_is_refused(made: Path, tmp_path: Path, key: str, value: object) -> None:
    with safe_open(made, framework="np") as file:
        about = json.loads(file.metadata()["vtok"])
    text = json.dumps({**about, key: value}, sort_keys=True, separators=(",", ":"))
    save_file(load_file(made), tmp_path / "x", metadata={"vtok": text})
    with pytest.raises(CodeFileError, match=r"^bad: "):
        TokenFile(tmp_path / "x", "bad")


def test_other_weights_are_refused(made: Path, model: TokenModel, tmp_path: Path) -> None:
    other = tiny_token_model(tmp_path, seed=5)
    with pytest.raises(CodeFileError, match=r"made with the token learner tiny-v11 .*, not with"):
        decode_tokens_file(made, tmp_path / "x.mp4", **ways(other))


def test_unavailable_token_counts_are_refused(
    made: Path, video: Path, model: TokenModel, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="at most 48, the positions of frames of 64x48"):
        encode_tokens_file(video, tmp_path / "x", model=model, num_tokens=49)
    with pytest.raises(UsageError, match="num_tokens=65: expected 1 to 64"):
        encode_tokens_file(video, tmp_path / "x", model=model, num_tokens=65)
    nine, staged = DecodeOptions(num_tokens=9), EncodeOptions(num_stages=2)
    with pytest.raises(UsageError, match="num_tokens=9: expected 1 to 8 for"):
        decode_tokens_file(made, tmp_path / "x.mp4", options=nine, **ways(model))
    with pytest.raises(UsageError, match="does not apply to tokens"):
        encode_tokens_file(video, tmp_path / "x", model=model, options=staged)
    assert not list(tmp_path.iterdir())


def test_is_token_file(made: Path, video: Path, tmp_path: Path) -> None:
    assert is_token_file(made)
    assert seems_tokens(made)
    for other in (video, tmp_path / "missing"):
        assert not is_token_file(other)
        assert not seems_tokens(other)


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory, video: Path, model: TokenModel) -> Path:
    path = tmp_path_factory.mktemp("coded") / "clip.vtok"
    result = encode_token_codes_file(video, path, model=model)
    assert result.code_shape == (8 * 3, 11, 1, 1)
    assert result.frames == 38
    return path


def test_codes_equal_tokens(coded: Path, made: Path, model: TokenModel) -> None:
    with coded.open("rb") as stream:
        reader = CodeFileReader(stream)
        codes = np.concatenate([chunk.codes for chunk in reader], axis=2)
    tokens = torch.from_numpy(load_file(made)["tokens"]).float()
    expected = model.pipeline.bits.to_codes(tokens).permute(1, 2, 0).numpy()
    assert codes.shape == (8, 3, 11, 1, 1)
    # tokens in the file are rounded: a bit near its border may fall to the other side
    assert (codes[..., 0, 0] == expected).mean() > 0.95


def test_decode_whole_cut_and_part(coded: Path, model: TokenModel, tmp_path: Path) -> None:
    from vtok.pipeline.edit import cut_file
    from vtok.pipeline.options import CutOptions

    decode_file(coded, tmp_path / "whole.mp4", **ways(model))
    assert probe(tmp_path / "whole.mp4").num_frames == 38
    decode_file(coded, tmp_path / "few.mp4", options=DecodeOptions(num_tokens=3), **ways(model))
    cut_file(coded, tmp_path / "cut.vtok", options=CutOptions(num_stages=3))
    decode_file(tmp_path / "cut.vtok", tmp_path / "cut.mp4", **ways(model))
    assert (tmp_path / "few.mp4").read_bytes() == (tmp_path / "cut.mp4").read_bytes()
    assert (tmp_path / "few.mp4").read_bytes() != (tmp_path / "whole.mp4").read_bytes()
    part = DecodeOptions(start_seconds=0.5, duration_seconds=0.2)
    result = decode_file(coded, tmp_path / "part.mp4", options=part, **ways(model))
    assert result.frames == 6


def test_header_names_token_learner(coded: Path, model: TokenModel, tmp_path: Path) -> None:
    other = tiny_token_model(tmp_path, seed=5)
    with pytest.raises(CodeFileError, match="made with the token learner tiny-v11"):
        decode_file(coded, tmp_path / "x.mp4", **ways(other))


def test_num_tokens_needs_a_file_of_tokens(video: Path, model: TokenModel, tmp_path: Path) -> None:
    from vtok.pipeline.encode import encode_file

    encode_file(video, tmp_path / "x.vtok", model=model.model)
    how = DecodeOptions(num_tokens=3)
    with pytest.raises(UsageError, match="expected a file of learned tokens"):
        decode_file(tmp_path / "x.vtok", tmp_path / "x.mp4", options=how, **ways(model))


def test_load_by_path_checks_the_tokenizer(model: TokenModel) -> None:
    again = load_token_model(model.info.path, model=model.model)
    assert again.info == model.info
