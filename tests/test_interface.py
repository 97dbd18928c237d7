"""Tokenizers of other architectures take the same ways as the shipped model."""

import io
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import KINDS, ToyTokenizer, make_toy, register_toy
from commands import rows, vtok
from models import ARCHITECTURES, make_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vtok import VideoTokenizer
from vtok.codefile.dump import DumpReader
from vtok.codefile.dump import dump as write_dump
from vtok.codefile.edit import Kept, cut, join
from vtok.codefile.packing import decode_parts, encode_parts
from vtok.codefile.reader import CodeFileReader
from vtok.dataset.api import encode_dataset
from vtok.dataset.options import DatasetOptions
from vtok.errors import CheckpointError, CodeFileError, OptionError, ShapeError, UsageError
from vtok.evaluation.evaluate import EvalOptions, Part, evaluate_file
from vtok.models import registry
from vtok.models.checkpoint import load_checkpoint, read_info, save_checkpoint
from vtok.models.load import LoadedTokenizer, load, resolve
from vtok.nn.geometry import Geometry, Stream, Window
from vtok.pipeline import codec
from vtok.pipeline.array_files import LatentFile, StoredArray
from vtok.pipeline.arrays import fit_array
from vtok.pipeline.codec import Decoder, clip_to_frames, fill, frames_to_clip, steps_per_call
from vtok.pipeline.decode import decode_file, read_codes, read_frames
from vtok.pipeline.encode import encode_file
from vtok.pipeline.inspect import is_decoded, is_encoded
from vtok.pipeline.options import DecodeOptions, EncodeOptions
from vtok.pipeline.rate import psnr_per_frame
from vtok.tokens.model import load_token_model
from vtok.training.learner import initialize_from
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader
from vtok.video.writer import VideoWriter


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))
    register_toy()


@pytest.fixture
def toys(tmp_path: Path) -> dict[str, Path]:
    """A checkpoint of each kind."""
    paths = {kind: tmp_path / f"toy-{kind}.safetensors" for kind in KINDS}
    for kind, path in paths.items():
        save_checkpoint(path, make_toy(kind), f"toy-{kind}", licence="MIT", source="a test")
    return paths


def rewrite(path: Path, **changes: object) -> None:
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["vtok"])
    save_file(load_file(path), path, {"vtok": json.dumps({**header, **changes})})


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_geometry_of_own_models(kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    shapes, quantizer = tokenizer.geometry, tokenizer.quantizer
    assert (shapes.temporal_compression, shapes.spatial_compression) == (
        tokenizer.temporal_compression, tokenizer.spatial_compression,
    )  # fmt: skip
    assert (shapes.latent_dim, shapes.entries) == (quantizer.dim, quantizer.codebook_size)
    assert (shapes.stored_bits, shapes.lookback) == (
        quantizer.bits_per_stage, tokenizer.decoder_lookback,
    )  # fmt: skip


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(4, 8, 6, 64000, plan=Window(17), trained_frames=49),
        Geometry(1, 16, 18, 2**18, num_codebooks=2, square=True, size_multiple=32),
        Geometry(4, 8, 16, None, plan=Stream(3, 1)),
    ],
)
def test_geometry_as_json(geometry: Geometry) -> None:
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": 1}, "entries=1: expected"),
        ({"latent_dim": 10**30}, "latent_dim=1000"),
        ({"num_stages": True}, "num_stages=True"),
        ({"plan": {"kind": "window", "frames": 16}}, "window=16: expected 1 [+] a multiple of 4"),
        ({"plan": {"kind": "stream", "lookback": -1, "lookahead": 0}}, "lookback=-1"),
        ({"plan": {"kind": "tiles"}}, "expected a stream or a window"),
        ({"plan": 3}, "expected a stream or a window"),
        ({"square": 1}, "square=1"),
        ({"size_multiple": 12}, "size_multiple=12"),
        ({"spam": 1}, "geometry: fields"),
    ],
)
def test_hostile_geometry(changes: dict, message: str) -> None:
    given = Geometry(4, 8, 6, 64000).to_dict()
    with pytest.raises(UsageError, match=message):
        Geometry.from_dict({**given, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_round_trip(kind: str, toys: dict[str, Path], tmp_path: Path) -> None:
    tokenizer, info = load_checkpoint(toys[kind])
    made = make_toy(kind)
    assert isinstance(tokenizer, ToyTokenizer)
    assert (info.arch, info.licence, info.source) == ("toy", "MIT", "a test")
    assert info.geometry == tokenizer.geometry == made.geometry
    assert all(torch.equal(tokenizer.state_dict()[key], t) for key, t in made.state_dict().items())
    assert resolve(made).info.config_sha256 == info.config_sha256
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, made, f"toy-{kind}", licence="MIT", source="a test")
    assert again.read_bytes() == toys[kind].read_bytes()


def test_fingerprint_covers_architecture(toys: dict[str, Path]) -> None:
    first = read_info(toys["plain"]).config_sha256
    registry.ARCHITECTURES["other"] = registry.ARCHITECTURES["toy"]
    rewrite(toys["plain"], arch="other")
    assert read_info(toys["plain"]).config_sha256 != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "spam"}, "architecture 'spam': this vtok knows vtok, "),
        ({"arch": 3}, "expected text"),
        ({"licence": "a\nb"}, "expected text"),
        ({"config": {"window": 7, "lookahead": 0, "continuous": False}}, "geometry plan .*damaged"),
        ({"config": {"window": 6, "lookahead": 0, "continuous": False}}, "window=6"),
        ({"config": {"spam": 1}}, "toy: expected window"),
        ({"version": 1}, "checkpoint fields"),
        ({"version": 3}, "update vtok"),
    ],
)
def test_damaged_checkpoints(changes: dict, message: str, toys: dict[str, Path]) -> None:
    rewrite(toys["window"], **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(toys["window"])


def test_own_features_refuse_other_architectures(toys: dict[str, Path]) -> None:
    path = toys["plain"]
    refused = "toy-plain is a toy tokenizer: learned tokens work with vtok models only"
    with pytest.raises(UsageError, match=refused):
        load_token_model(model=path)
    with pytest.raises(UsageError, match="toy-plain is a toy tokenizer: training from a"):
        initialize_from(make_tokenizer(), str(path))
    with pytest.raises(UsageError, match="a toy tokenizer"):
        VideoTokenizer.from_pretrained(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_calls_equal_one_call(kind: str) -> None:
    toy = make_toy(kind)
    if toy.window:
        return
    clip = torch.rand(1, 3, 9, 8, 12) * 2 - 1
    whole = toy.encode_latents(clip)
    state = toy.new_state()
    parts = [toy.encode_latents(part, state) for part in clip.split([1, 4, 2, 2], dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole)
    shown, state, ahead = [], toy.new_state(), toy.geometry.lookahead
    for first, end in ((0, 2), (2, 3), (3, 5)):
        some = min(ahead, 5 - end)
        shown.append(toy.decode(whole[:, :, first : end + some], state=state, ahead=some))
    torch.testing.assert_close(torch.cat(shown, dim=2), toy.decode(whole))


def test_default_quantizer_passes_gradients() -> None:
    toy = make_toy("plain")
    latents = torch.randn(1, 3, 2, 3, 4, requires_grad=True)
    quantized = toy.quantize(latents)
    torch.testing.assert_close(quantized, toy.from_codes(toy.to_codes(latents)))
    (gradient,) = torch.autograd.grad(quantized.sum(), latents)
    assert gradient.abs().sum() > 0


def test_loaded_tokenizer_of_other_architecture(toys: dict[str, Path]) -> None:
    model = load(toys["ahead"], device="cpu", dtype="float32")
    codes = model.encode(torch.zeros(1, 3, 3, 8, 8), quantize=True)
    assert (list(codes.shape), model.geometry.entries) == ([1, 2, 2, 2], 60)
    assert model.decode(codes).shape == (1, 3, 3, 8, 8)
    with pytest.raises(OptionError, match="lookahead=2"):
        registry.ARCHITECTURES["toy"].build({"window": 0, "lookahead": 2, "continuous": False})


CODED = [kind for kind in KINDS if kind != "latents"]
SIZE = (18, 26)  # height and width, not on the grid
FRAMES = 38


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of noise at 10 frames/s."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, *SIZE, 3), np.uint8)
    with VideoWriter(path, width=SIZE[1], height=SIZE[0], fps=Fraction(10), crf=10) as writer:
        writer.write(frames)
    return path


@pytest.fixture
def models(toys: dict[str, Path]) -> dict[str, LoadedTokenizer]:
    return {kind: load(path, device="cpu", dtype="float32") for kind, path in toys.items()}


def read(path: Path) -> Frames:
    with VideoReader(path) as reader:
        return np.concatenate(list(reader))


def direct(model: LoadedTokenizer, frames: Frames) -> Frames:
    """Decoded frames, by calls of the tokenizer on the whole video or on each window."""
    toy, shown = model.tokenizer, []
    assert isinstance(toy, ToyTokenizer)
    length = toy.window or len(frames)
    for start in range(0, len(frames), length):
        part = frames[start : start + length]
        latents = toy.encode_latents(frames_to_clip(fill(part, length), model))
        decoded = latents if toy.config.continuous else toy.to_codes(latents)
        with torch.no_grad():
            shown.append(clip_to_frames(toy.decode(decoded, size=SIZE, num_frames=len(part))))
    return np.concatenate(shown)


def decoded(model: LoadedTokenizer, data: bytes) -> Frames:
    reader = CodeFileReader(io.BytesIO(data))
    return np.concatenate(list(Decoder(model, SIZE).decode(read_codes(reader))))


def encoded(source: Path, model: LoadedTokenizer, **options: float) -> bytes:
    out = io.BytesIO()
    encode_file(source, out, model=model, options=EncodeOptions(**options))
    return out.getvalue()


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("count", [1, 2, 5, 6, 38])
def test_code_file_decodes_to_frames_of_tokenizer(
    kind: str, count: int, models: dict[str, LoadedTokenizer], clip: Path
) -> None:
    model = models[kind]
    data = encoded(clip, model, duration_seconds=count / 10)
    expected = direct(model, read(clip)[:count])
    np.testing.assert_array_equal(decoded(model, data), expected)
    reader = CodeFileReader(io.BytesIO(data))
    assert reader.version == (1, 2)
    assert reader.header.format.num_entries == 60
    assert reader.index.num_segments == (-(-count // 5) if kind == "window" else 1)
    one_by_one = Decoder(model, SIZE)
    parts = [part for chunk in read_codes(reader) for part in one_by_one.decode_next(chunk)]
    np.testing.assert_array_equal(np.concatenate([*parts, *one_by_one.finish()]), expected)


@pytest.mark.parametrize("kind", CODED)
def test_random_access_and_cut_are_exact(
    kind: str, models: dict[str, LoadedTokenizer], clip: Path
) -> None:
    model, whole = models[kind], direct(models[kind], read(clip))
    data = encoded(clip, model)
    for first, end in ((0, 38), (0, 1), (3, 9), (17, 18), (15, 31), (16, 33), (20, 38), (37, 38)):
        reader = CodeFileReader(io.BytesIO(data))
        shown = Decoder(model, SIZE).decode(read_frames(reader, model, (first, end)))
        np.testing.assert_array_equal(np.concatenate(list(shown)), whole[first:end])
        part = io.BytesIO()
        assert sum(row[0] for row in cut(reader, part, frames=(first, end))) == end - first
        np.testing.assert_array_equal(decoded(model, part.getvalue()), whole[first:end])
        if end - first > 2:  # a cut of a cut
            again, middle = io.BytesIO(), (1, end - first - 1)
            list(cut(CodeFileReader(io.BytesIO(part.getvalue())), again, frames=middle))
            np.testing.assert_array_equal(
                decoded(model, again.getvalue()), whole[first + 1 : end - 1]
            )


def test_windows_in_batches(
    models: dict[str, LoadedTokenizer], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["window"]
    data = encoded(clip, model)
    whole = decoded(model, data)
    monkeypatch.setattr(codec, "windows_at_once", lambda model, size: 3)
    assert encoded(clip, model) == data
    np.testing.assert_array_equal(decoded(model, data), whole)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("kind", CODED)
def test_damage_costs_one_window_or_chunk(
    kind: str, models: dict[str, LoadedTokenizer], clip: Path
) -> None:
    model, data = models[kind], bytearray(encoded(clip, models[kind]))
    reader = CodeFileReader(io.BytesIO(bytes(data)))
    data[reader.chunks[1].offset + 40] ^= 1
    reader = CodeFileReader(io.BytesIO(bytes(data)), salvage=True)
    shown = np.concatenate(list(Decoder(model, SIZE).decode(read_codes(reader))))
    lost = sum(end - first for first, end in reader.gaps)
    assert len(shown) + lost == FRAMES
    if kind == "window":
        assert reader.gaps == [(5, 10)]
        whole = direct(model, read(clip))
        np.testing.assert_array_equal(shown, np.concatenate([whole[:5], whole[10:]]))


def test_windows_of_latents_are_read_by_range(tmp_path: Path, clip: Path) -> None:
    registry_config = {"window": 5, "lookahead": 0, "continuous": True}
    torch.manual_seed(0)
    model = resolve(registry.ARCHITECTURES["toy"].build(registry_config).eval())
    out = tmp_path / "a.safetensors"
    encode_file(clip, out, model=model, options=EncodeOptions("safetensors"))
    file, whole = LatentFile(out, "a"), read_frames_of(LatentFile(out, "a"), model, (0, FRAMES))
    assert file.num_steps == 8 * 3
    for first, end in ((0, 1), (4, 6), (5, 10), (13, 38)):
        np.testing.assert_array_equal(read_frames_of(file, model, (first, end)), whole[first:end])


@pytest.mark.parametrize("kind", [*CODED, "latents"])
def test_arrays_without_header_decode_to_frames_of_tokenizer(
    kind: str, models: dict[str, LoadedTokenizer], clip: Path, tmp_path: Path
) -> None:
    model, out = models[kind], tmp_path / "a.npy"
    encode_file(clip, out, model=model, options=EncodeOptions("npy", latent_dtype="float32"))
    options = DecodeOptions(size=f"{SIZE[1]}x{SIZE[0]}")
    found = fit_array(StoredArray("a", np.load(out)), model, options)
    whole, lookback = direct(model, read(clip)), model.geometry.lookback
    for first, end in ((0, FRAMES), (17, 18), (20, 38)):
        chunks = found.chunks((first, end), lookback, steps_per_call(model, SIZE))
        shown = np.concatenate(list(Decoder(model, SIZE).decode(chunks)))
        np.testing.assert_array_equal(shown, whole[first:end])


def read_frames_of(file: LatentFile, model: LoadedTokenizer, frames: tuple[int, int]) -> Frames:
    chunks = file.chunks(frames, model.geometry.lookback)
    return np.concatenate(list(Decoder(model, SIZE).decode(chunks)))


@pytest.mark.parametrize("to", ["safetensors", "pt"])
def test_latents_decode_to_frames_of_tokenizer(
    to: str, models: dict[str, LoadedTokenizer], clip: Path, tmp_path: Path
) -> None:
    model, out = models["latents"], tmp_path / f"a.{to}"
    options = EncodeOptions(to, latent_dtype="float32")
    result = encode_file(clip, out, model=model, options=options)
    assert (result.code_shape, result.bits_per_code) == ((3, 20, 5, 7), 32)
    file, whole = LatentFile(out, "a"), direct(model, read(clip))
    np.testing.assert_array_equal(read_frames_of(file, model, (0, FRAMES)), whole)
    for first, end in ((0, 1), (3, 9), (17, 18), (20, 38)):
        shown = read_frames_of(file, model, (first, end))
        np.testing.assert_array_equal(shown, whole[first:end])
    back = tmp_path / "back.mp4"
    assert decode_file(out, back, model=model).frames == FRAMES
    assert is_encoded(out, clip, model, options)
    assert not is_encoded(out, clip, model, EncodeOptions(to))
    assert is_decoded(back, out, DecodeOptions())


def test_latents_as_npy(models: dict[str, LoadedTokenizer], clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npy"
    encode_file(clip, out, model=models["latents"], options=EncodeOptions("npy"))
    latents = np.load(out)
    assert (latents.shape, latents.dtype) == ((3, 20, 5, 7), np.float16)
    other = tmp_path / "a.safetensors"
    encode_file(clip, other, model=models["latents"], options=EncodeOptions("safetensors"))
    np.testing.assert_array_equal(load_file(other)["latents"].numpy(), latents)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 41}, "not its number of frames"),
        ({"num_frames": -1}, "num_frames"),
        ({"format": {"dtype": "float64"}}, "float16 or float32"),
        ({"format": {"latent_dim": 4}}, "do not match"),
        ({"format": {"window": 7}}, "not its number of frames"),
        ({"format": {"grid": [5, 8]}}, "format.grid"),
        ({"spam": 1}, "unknown keys"),
    ],
)
def test_hostile_latents(
    change: dict, message: str, models: dict[str, LoadedTokenizer], clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.safetensors"
    encode_file(clip, out, model=models["latents"], options=EncodeOptions("safetensors"))
    with safe_open(out, "np") as file:
        about = json.loads(file.metadata()["vtok"])
    header = about["header"]
    layout = {**header["format"], **change.get("format", {})}
    about["header"] = {**header, **change, "format": layout}
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    save_file(load_file(out), out, {"vtok": text})
    with pytest.raises(CodeFileError, match=message):
        LatentFile(out, "a")


def test_latents_of_numbers_that_are_not_finite(
    models: dict[str, LoadedTokenizer], clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.safetensors"
    encode_file(clip, out, model=models["latents"], options=EncodeOptions("safetensors"))
    with safe_open(out, "np") as file:
        metadata = file.metadata()
    latents = load_file(out)["latents"]
    latents[1, 3] = float("nan")
    save_file({"latents": latents}, out, metadata)
    with pytest.raises(CodeFileError, match="NaN or infinities in steps 0 to 7"):
        decode_file(out, tmp_path / "a.mp4", model=models["latents"])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("latents", {}, "to=vtok: expected safetensors, npy or pt: toy-latents has latents"),
        ("latents", {"to": "npy", "num_bits": 9}, "num_bits=9: expected none: toy-latents"),
        ("latents", {"to": "npy", "effort": 2}, "effort=2: expected none: toy-latents"),
        ("plain", {"hysteresis": 0.2}, "hysteresis=0.2: expected 0: models such as toy-plain"),
        ("plain", {"num_stages": 2}, "num_stages=2: expected 1, the only stage"),
        ("plain", {"num_bits": 3}, "num_bits=3: expected 6 or more, one stage"),
        ("plain", {"min_psnr": 30.0}, "min_psnr=30: expected none: toy-plain has a single stage"),
        ("plain", {"max_bpp": 0.5}, "max_bpp=0.5: expected none: toy-plain has a single stage"),
    ],
)
def test_options_that_a_family_does_not_have(
    kind: str, options: dict, message: str, models: dict[str, LoadedTokenizer], clip: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        encode_file(clip, io.BytesIO(), model=models[kind], options=EncodeOptions(**options))


@pytest.mark.parametrize("kind", CODED)
def test_effort_improves_frames(kind: str, models: dict[str, LoadedTokenizer], clip: Path) -> None:
    model, frames = models[kind], read(clip)[:10]
    errors = [
        np.square(decoded(model, data).astype(float) - frames).mean()
        for data in (encoded(clip, model, num_frames=10, effort=n) for n in (0, 6))
    ]
    assert errors[1] < errors[0]


def test_code_beyond_the_entries_is_refused(models: dict[str, LoadedTokenizer], clip: Path) -> None:
    data = encoded(clip, models["plain"], num_frames=1)
    reader = CodeFileReader(io.BytesIO(data))
    codes = np.full_like(next(iter(reader)).codes, 60)
    with pytest.raises(ShapeError, match=r"a code is 60, the codebook has 0\.\.59"):
        encode_parts(codes, reader.header.format)
    whole = replace(reader.header.format, entries=None)
    bad = encode_parts(codes, whole)
    with pytest.raises(CodeFileError, match=r"a code is 60, the codebook has 0\.\.59"):
        decode_parts(bad, 1, reader.header.format)
    dump = io.BytesIO()
    list(write_dump(CodeFileReader(io.BytesIO(data)), dump, "text"))
    lines = dump.getvalue().split(b"\n")
    lines[2] = b"60 " + lines[2].split(b" ", 1)[1]
    with pytest.raises(CodeFileError, match="line 3 a code is 60"):
        list(DumpReader(io.BytesIO(b"\n".join(lines))).write(io.BytesIO()))


@pytest.mark.parametrize("kind", CODED)
def test_dump_and_pack_restore_the_file(
    kind: str, models: dict[str, LoadedTokenizer], clip: Path
) -> None:
    data, dump, back = encoded(clip, models[kind]), io.BytesIO(), io.BytesIO()
    list(write_dump(CodeFileReader(io.BytesIO(data)), dump, "jsonl"))
    list(DumpReader(io.BytesIO(dump.getvalue())).write(back))
    assert back.getvalue() == data


@pytest.mark.parametrize("kind", CODED)
def test_joined_files_follow_each_other(
    kind: str, models: dict[str, LoadedTokenizer], clip: Path
) -> None:
    model, data = models[kind], encoded(clip, models[kind], num_frames=7)
    readers = [CodeFileReader(io.BytesIO(data)) for _ in range(2)]
    out, once = io.BytesIO(), decoded(model, data)
    list(join([reader.header for reader in readers], readers, out, Kept()))
    np.testing.assert_array_equal(decoded(model, out.getvalue()), np.concatenate([once, once]))


@pytest.mark.parametrize("kind", CODED)
def test_commands(kind: str, toys: dict[str, Path], clip: Path, tmp_path: Path) -> None:
    model, codes = ("--model", toys[kind], "--device", "cpu"), tmp_path / "a.vtok"
    (row,) = rows(vtok("encode", clip, "-o", codes, *model, "--json"))
    assert (row["frames"], row["vocab_size"], row["bits_per_code"]) == (FRAMES, 60, 6)
    (facts,) = rows(vtok("info", codes, "--json"))
    assert facts["codebook_size"] == 60
    assert facts.get("window") == (3 if kind == "window" else None)
    (facts,) = rows(vtok("info", toys[kind], "--json"))
    assert (facts["arch"], facts["codebook_size"], facts["licence"]) == ("toy", 60, "MIT")
    (row,) = rows(vtok("verify", codes, "--deep", *model, "--json"))
    assert row["model_matches"]
    part, both = tmp_path / "part.vtok", tmp_path / "both.vtok"
    assert vtok("cut", codes, "-o", part, "--start", "1", "--duration", "1").exit_code == 0
    assert vtok("cat", part, codes, "-o", both).exit_code == 0
    (row,) = rows(vtok("decode", both, "-o", tmp_path / "a.mp4", *model, "--json"))
    assert row["frames"] == FRAMES + 10
    (row,) = rows(vtok("decode", codes, "-o", tmp_path / "b.mp4", "--start", "2", *model, "--json"))
    assert row["frames"] == FRAMES - 20
    piped = vtok("encode", "-", "-o", "-", *model, data=clip.read_bytes())
    assert decoded(load(toys[kind], device="cpu", dtype="float32"), piped.stdout_bytes).shape
    back = vtok("decode", "-", "-o", tmp_path / "c.mp4", *model, data=piped.stdout_bytes)
    assert back.exit_code == 0
    refused = vtok("encode", clip, "-o", tmp_path / "d.vtok", *model, "--stages", "2")
    assert refused.stderr == "error: --stages 2: expected 1, the only stage\n"


def test_commands_for_latents(toys: dict[str, Path], clip: Path, tmp_path: Path) -> None:
    model = ("--model", toys["latents"], "--device", "cpu")
    refused = vtok("encode", clip, "-o", tmp_path / "a.vtok", *model)
    assert refused.exit_code == 2
    expected = "expected safetensors, npy or pt: toy-latents has latents and no codes"
    assert refused.stderr == f"error: --to vtok: {expected}\n"
    out = tmp_path / "a.safetensors"
    (row,) = rows(vtok("encode", clip, "-o", out, *model, "--json", "--latents", "float32"))
    assert (row["code_shape"], row["vocab_size"]) == ([3, 20, 5, 7], 0)
    (facts,) = rows(vtok("info", out, "--json"))
    assert (facts["kind"], facts["latents"], facts["type"]) == (
        "latents", [3, 20, 5, 7], "float32",
    )  # fmt: skip
    (facts,) = rows(vtok("info", toys["latents"], "--json"))
    assert facts["codebook_size"] is None
    (row,) = rows(vtok("decode", out, "-o", tmp_path / "a.mp4", "--start", "1", *model, "--json"))
    assert row["frames"] == FRAMES - 10
    stream = io.BufferedReader(io.BytesIO(out.read_bytes()))
    assert decode_file(stream, tmp_path / "b.mp4", model=toys["latents"]).frames == FRAMES


@pytest.mark.parametrize("kind", CODED)
def test_evaluation_measures_the_decoded_file(
    kind: str, models: dict[str, LoadedTokenizer], clip: Path, tmp_path: Path
) -> None:
    model, part, measured = models[kind], Part(frames=33), []
    result = evaluate_file(
        clip,
        model=model,
        options=EvalOptions(part, metrics=("psnr",)),
        keep=tmp_path,
        watch=lambda bits, frames, originals: measured.append(frames),
    )
    (point,) = result.points
    data = (tmp_path / "6.vtok").read_bytes()
    shown = decoded(model, data)
    np.testing.assert_array_equal(np.concatenate(measured), shown)
    psnr = psnr_per_frame(shown, read(clip)[:33]).mean()
    assert point.quality["psnr"] == pytest.approx(psnr, abs=1e-3)
    assert (point.bits, point.bytes, result.usage[0].codebook_size) == (6, len(data), 60)


@pytest.mark.parametrize(
    ("kind", "to"),
    [*((kind, "vtok") for kind in CODED), ("window", "memmap"), ("latents", "safetensors"),
     ("latents", "tar")],
)  # fmt: skip
def test_dataset(kind: str, to: str, toys: dict[str, Path], clip: Path, tmp_path: Path) -> None:
    options = DatasetOptions(
        to, EncodeOptions(size=f"{SIZE[1]}x{SIZE[0]}"), psnr=True, batch=2, workers=2, device="cpu"
    )
    sources = []
    for number in range(2):
        sources.append(tmp_path / f"{number}.mp4")
        sources[-1].write_bytes(clip.read_bytes())
    folder = tmp_path / "set"
    totals = encode_dataset(sources, folder, model=toys[kind], options=options)
    assert (totals.done, totals.failed) == (2, 0)
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert {record["vocab_size"] for record in records} == {0 if kind == "latents" else 60}
    model = load(toys[kind], device="cpu", dtype="float32")
    expected = direct(model, read(clip))
    psnr = psnr_per_frame(expected, read(clip)).mean()
    assert records[0]["psnr"] == pytest.approx(psnr, abs=0.01)
    if to == "memmap":
        about = json.loads((folder / "metadata_0.json").read_text())
        assert about["vocab_size"] == 60
    again = encode_dataset(sources, folder, model=toys[kind], options=options)
    assert (again.done, again.up_to_date) == (0, 2)


@pytest.mark.parametrize("to", ["vtok", "tar-vtok", "memmap"])
def test_dataset_formats_without_latents(to: str, toys: dict[str, Path], tmp_path: Path) -> None:
    options = DatasetOptions(to, EncodeOptions(size="16x16"), device="cpu")
    with pytest.raises(OptionError, match="toy-latents has latents and no codes"):
        encode_dataset([tmp_path], tmp_path / "set", model=toys["latents"], options=options)
