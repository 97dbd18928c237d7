"""Tokenizers without codes in eval, compare, report, doctor and data sets."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from commands import rows, vtok
from test_families import FAMILIES, make
from test_frame_times import BASE, TICKS, seconds
from videos import make_timed_video, make_video

from vtok.dataset.api import encode_dataset
from vtok.dataset.options import DatasetOptions
from vtok.errors import OptionError
from vtok.evaluation.compare import compare_file, deltas, write_side_by_side
from vtok.evaluation.evaluate import EvalOptions, Part, evaluate_file
from vtok.models.checkpoint import save_checkpoint
from vtok.models.load import LoadedTokenizer, load
from vtok.pipeline.array_files import LatentFile
from vtok.pipeline.codec import Decoder
from vtok.pipeline.decode import decode_file
from vtok.pipeline.encode import encode_file
from vtok.pipeline.inspect import is_decoded
from vtok.pipeline.options import DecodeOptions, EncodeOptions
from vtok.pipeline.rate import psnr_per_frame
from vtok.video.reader import VideoReader

FRAMES, SIZE = 22, (40, 52)  # two windows of Cosmos; height and width, not on the grid
NAMES = {"cosmos, continuous": "windows", "taehv": "stream"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a video and the checkpoints windows and stream."""
    folder = tmp_path_factory.mktemp("continuous")
    make_video(folder / "clip.mp4", FRAMES, width=SIZE[1], height=SIZE[0])
    for family, name in NAMES.items():
        save_checkpoint(folder / f"{name}.safetensors", make(*FAMILIES[family]), name)
    return folder


@pytest.fixture(params=NAMES.values())
def model(request: pytest.FixtureRequest, folder: Path) -> LoadedTokenizer:
    return load(folder / f"{request.param}.safetensors", device="cpu", dtype="float32")


def test_evaluation_measures_the_file_of_latents(
    model: LoadedTokenizer, folder: Path, tmp_path: Path
) -> None:
    written, frames = tmp_path / "a.safetensors", []
    encode_file(folder / "clip.mp4", written, model=model, options=EncodeOptions("safetensors"))
    result = evaluate_file(
        folder / "clip.mp4",
        model=model,
        options=EvalOptions(metrics=("psnr", "ssim")),
        watch=lambda bits, decoded, originals: frames.append(decoded),
    )
    (point,) = result.points
    latents = LatentFile(written, "a").chunks((0, FRAMES), None)
    decoded = np.concatenate(list(Decoder(model, SIZE).decode(latents)))
    apart = np.abs(np.concatenate(frames).astype(int) - decoded)
    assert (apart > 1).mean() < 0.01
    with VideoReader(folder / "clip.mp4") as reader:
        psnr = psnr_per_frame(decoded, np.concatenate(list(reader))).mean()
    assert point.quality["psnr"] == pytest.approx(psnr, abs=0.05)
    assert point.quality["ssim"] is not None
    assert (point.bytes, point.setting) == (written.stat().st_size, "float16 latents")
    assert point.bits == 16 * model.geometry.latent_dim
    assert point.raw_bpp < point.bpp
    assert (result.usage, result.frames) == ((), FRAMES)


@pytest.mark.parametrize("options", [{"bits": (9,)}, {"effort": 2}])
def test_options_of_codes_are_refused(model: LoadedTokenizer, folder: Path, options: dict) -> None:
    name = model.info.name
    with pytest.raises(OptionError, match=f"expected none: {name} has latents and no codes"):
        evaluate_file(folder / "clip.mp4", model=model, options=EvalOptions(**options))


def test_codecs_are_matched_to_the_bytes_of_latents(
    model: LoadedTokenizer, folder: Path, tmp_path: Path
) -> None:
    options = EvalOptions(Part(frames=FRAMES), metrics=("psnr",))
    with compare_file(
        folder / "clip.mp4", model=model, codecs=["x264"], options=options
    ) as comparison:
        ours, theirs = comparison.result.points
        write_side_by_side(tmp_path / "both.mp4", comparison, bits=ours.bits)
    assert (theirs.coder, theirs.bits) == ("x264", ours.bits)
    assert deltas([ours, theirs])
    with VideoReader(tmp_path / "both.mp4") as reader:
        assert sum(map(len, reader)) == FRAMES


def test_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    model = ("--model", "stream.safetensors", "--device", "cpu", "--metrics", "psnr")
    shown = vtok("eval", "clip.mp4", "clip.mp4", *model)
    assert shown.exit_code == 0
    assert "codebook" not in shown.stdout
    assert "mean of 2 clips" in shown.stdout
    (row,) = rows(vtok("eval", "clip.mp4", *model, "--json"))
    assert (row["codebooks"], row["rates"][0]["bits"]) == ([], 96)
    refused = vtok("eval", "clip.mp4", *model, "--bits", "9,18")
    expected = "expected none: stream has latents and no codes"
    assert refused.stderr == f"error: --bits 9,18: {expected}\n"
    refused = vtok("report", "clip.mp4", *model)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "stream has latents and no codes to show" in refused.stderr
    found = vtok("doctor", "--model", "stream.safetensors", "--device", "cpu", "--json")
    states = {row["name"]: row["state"] for row in rows(found)}
    assert states["round trip"] == "ok"


@pytest.mark.parametrize("to", ["parquet", "tar", "npy", "safetensors"])
def test_data_set(model: LoadedTokenizer, folder: Path, tmp_path: Path, to: str) -> None:
    encode_file(folder / "clip.mp4", tmp_path / "a.npy", model=model, options=EncodeOptions("npy"))
    alone = np.load(tmp_path / "a.npy")
    options = DatasetOptions(to, EncodeOptions(), device="cpu", dtype="float32", workers=1)
    totals = encode_dataset(
        [folder / "clip.mp4"], tmp_path / "set", model=model.info.path, options=options
    )
    assert (totals.done, totals.failed) == (1, 0)
    (record,) = map(json.loads, (tmp_path / "set" / "manifest.jsonl").read_text().splitlines())
    assert (record["vocab_size"], record["code_shape"]) == (0, list(alone.shape))
    if to == "parquet":
        (row,) = pyarrow.parquet.read_table(tmp_path / "set" / "000000.parquet").to_pylist()
        assert (row["shape"], row["vocab_size"]) == (list(alone.shape), 0)
        stored = np.frombuffer(row["codes"], row["dtype"]).reshape(row["shape"])
        np.testing.assert_allclose(stored, alone, atol=0.01)


def test_decoded_part_of_an_uneven_video_is_up_to_date(folder: Path, tmp_path: Path) -> None:
    model = load(folder / "stream.safetensors", device="cpu", dtype="float32")
    source, codes = tmp_path / "a.mp4", tmp_path / "a.safetensors"
    make_timed_video(source, TICKS, BASE)
    encode_file(source, codes, model=model, options=EncodeOptions("safetensors"))
    options = DecodeOptions(duration_seconds=seconds(TICKS)[10])
    assert decode_file(codes, tmp_path / "b.mp4", model=model, options=options).frames == 10
    assert is_decoded(tmp_path / "b.mp4", codes, options)
    assert not is_decoded(tmp_path / "b.mp4", codes, DecodeOptions())
