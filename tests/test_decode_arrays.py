"""`vtok decode` of arrays of codes: every format that vtok writes, and codes without a header."""

import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import encode, rows, tiny_checkpoint, vtok
from safetensors.numpy import save_file
from videos import make_video

from vtok.models.load import load
from vtok.pipeline.decode import decode_file
from vtok.pipeline.options import DecodeOptions
from vtok.video.reader import VideoReader, probe

FRAMES, WIDTH, HEIGHT = 38, 62, 46  # 11 latent steps of 4 frames, the last one partly used
SIZE = f"{WIDTH}x{HEIGHT}"
OPTIONS = ["--size", SIZE, "--fps", "25", "--frames", str(FRAMES)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a video, its codes in all file formats, and decoded frames."""
    folder = tmp_path_factory.mktemp("arrays")
    model = load(tiny_checkpoint(folder))
    video = make_video(folder / "a.mp4", FRAMES, width=WIDTH, height=HEIGHT, fps="25")
    for to in ("vtok", "npy", "safetensors", "pt"):
        encode(video, folder / f"a.{to}", model, to=to)
    decode(folder, folder / "a.vtok", folder / "a.mkv")
    return folder


@pytest.fixture
def codes(made: Path) -> np.ndarray:
    return np.load(made / "a.npy")


def decode(made: Path, source: str | Path, output: Path, *options: Any) -> np.ndarray:
    """Decode losslessly, and return the frames of the video."""
    model = ["--model", made / "tiny.safetensors", "--crf", "0"]
    result = vtok("decode", source, "-o", output, *model, *options)
    assert result.exit_code == 0, result.stderr
    return read(output)


def read(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.concatenate(list(reader))


def error(made: Path, source: Path, *options: Any) -> str:
    """Expect an error of one line and no output."""
    output = source.with_name("refused.mkv")
    result = vtok("decode", source, "-o", output, "--model", made / "tiny.safetensors", *options)
    assert result.exit_code in (2, 4, 5)
    assert (result.stdout, result.stderr.count("\n"), output.exists()) == ("", 1, False)
    return result.stderr


@pytest.mark.parametrize("to", ["npy", "safetensors", "pt"])
def test_file_decodes_to_the_frames_of_the_code_file(made: Path, tmp_path: Path, to: str) -> None:
    options = OPTIONS if to == "npy" else []
    found = decode(made, made / f"a.{to}", tmp_path / "a.mkv", *options)
    np.testing.assert_array_equal(found, read(made / "a.mkv"))
    assert probe(tmp_path / "a.mkv").fps == 25


@pytest.mark.parametrize("to", ["npy", "safetensors"])
def test_part_equals_the_part_of_the_whole(made: Path, tmp_path: Path, to: str) -> None:
    options = OPTIONS[:4] if to == "npy" else []
    part = ["--start-frame", "13", "--frames", "9"]
    found = decode(made, made / f"a.{to}", tmp_path / "a.mkv", *options, *part)
    np.testing.assert_array_equal(found, read(made / "a.mkv")[13:22])


def test_stages_select_the_first_stages(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    np.save(tmp_path / "b.npy", codes[:1])
    one = decode(made, made / "a.safetensors", tmp_path / "a.mkv", "--stages", "1")
    np.testing.assert_array_equal(
        decode(made, tmp_path / "b.npy", tmp_path / "b.mkv", *OPTIONS), one
    )
    assert "--stages 2: expected 1, the only stage" in error(
        made, tmp_path / "b.npy", *OPTIONS, "--stages", "2"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda codes: codes[:, None],
        lambda codes: codes[None],
        lambda codes: codes.astype(np.int64),
        lambda codes: codes.astype(">i4"),
        np.asfortranarray,
    ],
    ids=["stages and codebooks", "batch", "int64", "big-endian", "Fortran order"],
)
def test_shapes_and_types(made: Path, tmp_path: Path, codes: np.ndarray, change: Any) -> None:
    np.save(tmp_path / "b.npy", change(codes))
    found = decode(made, tmp_path / "b.npy", tmp_path / "b.mkv", *OPTIONS)
    np.testing.assert_array_equal(found, read(made / "a.mkv"))


def test_single_stage_may_leave_its_axis_out(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    np.save(tmp_path / "b.npy", codes[:1])
    np.save(tmp_path / "c.npy", codes[0])
    expected = decode(made, tmp_path / "b.npy", tmp_path / "b.mkv", *OPTIONS)
    found = decode(made, tmp_path / "c.npy", tmp_path / "c.mkv", *OPTIONS)
    np.testing.assert_array_equal(found, expected)


def test_codes_from_a_stream(made: Path, tmp_path: Path) -> None:
    stream = io.BufferedReader(io.BytesIO((made / "a.npy").read_bytes()))
    options = DecodeOptions(size=SIZE, fps=Fraction(25), num_frames=FRAMES, crf=0)
    decode_file(stream, tmp_path / "a.mkv", model=made / "tiny.safetensors", options=options)
    np.testing.assert_array_equal(read(tmp_path / "a.mkv"), read(made / "a.mkv"))


def test_without_a_header_the_whole_grid_is_shown(
    made: Path, tmp_path: Path, codes: np.ndarray
) -> None:
    np.save(tmp_path / "b.npy", codes)
    model = ["--model", made / "tiny.safetensors"]
    result = vtok("decode", tmp_path / "b.npy", *model)
    assert "frame rate not known, 25/s taken" in result.stderr
    info = probe(tmp_path / "b.decoded.mp4")
    steps, height, width = codes.shape[1:]
    space = load(made / "tiny.safetensors").geometry.spatial_compression
    assert (info.width, info.height) == (width * space, height * space)
    assert (info.num_frames, info.fps) == (1 + (steps - 1) * 4, 25)


def test_header_beside_the_file(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    np.save(tmp_path / "b.npy", codes)
    facts = {"width": WIDTH, "height": HEIGHT, "fps": "30000/1001", "frames": FRAMES}
    (tmp_path / "b.json").write_text(json.dumps(facts))
    found = decode(made, tmp_path / "b.npy", tmp_path / "b.mkv")
    np.testing.assert_array_equal(found, read(made / "a.mkv"))
    assert round(float(probe(tmp_path / "b.mkv").fps), 3) == 29.97
    decode(made, tmp_path / "b.npy", tmp_path / "c.mkv", "--fps", "10")
    assert probe(tmp_path / "c.mkv").fps == 10


def test_info_of_a_code_file_is_a_header(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    np.save(tmp_path / "b.npy", codes)
    (tmp_path / "b.json").write_text(vtok("info", "--json", made / "a.vtok").stdout)
    found = decode(made, tmp_path / "b.npy", tmp_path / "b.mkv")
    np.testing.assert_array_equal(found, read(made / "a.mkv"))


@pytest.mark.parametrize("to", ["npy", "safetensors", "tar", "tar-vtok", "memmap", "parquet"])
def test_data_set_decodes_by_id_and_index(made: Path, tmp_path: Path, to: str) -> None:
    if to == "parquet":
        pytest.importorskip("pyarrow")
    table, root = tmp_path / "clips.csv", tmp_path / "set"
    table.write_text(
        f"id,path,start_frame,frames\none,{made / 'a.mp4'},0,{FRAMES}\ntwo,{made / 'a.mp4'},5,9\n"
    )
    model = ["--model", made / "tiny.safetensors"]
    result = vtok("dataset", "encode", table, "-o", root, "--to", to, "--size", SIZE, "-q", *model)
    assert result.exit_code == 0, result.stderr
    files = {"memmap": "video_0.bin", "parquet": "000000.parquet"}
    shard = root / files.get(to, "000000.tar")
    single = to in ("npy", "safetensors")
    for number, id_ in enumerate(("one", "two")):
        for by in ([],) if single else (["--id", id_], ["--index", number]):
            source = root / f"{id_}.{to}" if single else shard
            found = decode(made, source, tmp_path / f"{id_}{len(by) and by[0]}.mkv", *by)
            if id_ == "one":
                np.testing.assert_array_equal(found, read(made / "a.mkv"))
            assert found.shape == ((FRAMES, 9)[number], HEIGHT, WIDTH, 3)
    if not single:
        message = f"{shard}: holds 2 items (one, two): give --id or --index"
        assert message in error(made, shard)
        assert f"--id six: expected an id of an item in {shard} (one, two)" in error(
            made, shard, "--id", "six"
        )
        assert f"--index 2: expected 0 to 1 for {shard}" in error(made, shard, "--index", "2")


def test_other_weights_are_refused(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    np.save(tmp_path / "b.npy", codes)
    (tmp_path / "b.json").write_text(json.dumps({"model": "tiny", "weights_sha256": "0" * 64}))
    message = "made with other weights than those of tiny: give the model that made it as --model"
    assert message in error(made, tmp_path / "b.npy")


def bad(codes: np.ndarray, place: tuple[int, ...], value: int) -> np.ndarray:
    changed = codes.astype(np.int64)
    changed[place] = value
    return changed


ARRAYS = {
    "holds 64 at [1, 2, 0, 0], the codes of tiny go from 0 to 63": (
        lambda codes: bad(codes, (1, 2, 0, 0), 64), []),
    "holds -1 at [0, 0, 0, 1]": (lambda codes: bad(codes, (0, 0, 0, 1), -1), []),
    "holds float32, but tiny takes codes, which are integers": (
        lambda codes: codes.astype(np.float32), []),
    "has the shape [4, 11, 12, 16], tiny takes [t, h, w] or [1 to 3, t, h, w] or [S, 1, t, h, w]": (
        lambda codes: np.concatenate([codes, codes[:1]]), []),
    "has the shape [12, 16]": (lambda codes: codes[0, 0], []),
    "has the shape [3, 0, 12, 16]": (lambda codes: codes[:, :0], []),
    "--size 99x99: expected a size that fits 64x48, of ": (
        lambda codes: codes, ["--size", "99x99"]),
    "--size 99: expected WIDTHxHEIGHT": (lambda codes: codes, ["--size", "99"]),
    "--fps 0: expected a rate": (lambda codes: codes, ["--fps", "0"]),
    "--id x: expected none: ": (lambda codes: codes, ["--id", "x"]),
    "--num-tokens 2: expected none: ": (lambda codes: codes, ["--num-tokens", "2"]),
    "damaged or cut (ValueError: holds object, not integers)": (
        lambda codes: np.array([None]), []),
}  # fmt: skip


@pytest.mark.parametrize("message", ARRAYS)
def test_arrays_that_do_not_fit(
    made: Path, tmp_path: Path, codes: np.ndarray, message: str
) -> None:
    change, options = ARRAYS[message]
    np.save(tmp_path / "b.npy", change(codes), allow_pickle=True)
    assert message in error(made, tmp_path / "b.npy", *options)


FACTS = {
    '{"frames": 99}': "its 11 steps are not those of 99 frames",
    '{"frames": "many"}': "its header states frames 'many'",
    '{"fps": [1]}': "its header states a frame rate of '[1]'",
    '{"width": 10}': "a grid of 12x16 positions does not fit frames of 10x48",
    "[]": "b.json is no JSON object",
    "{": "b.json is no JSON",
}


@pytest.mark.parametrize("facts", FACTS)
def test_headers_that_do_not_fit(made: Path, tmp_path: Path, codes: np.ndarray, facts: str) -> None:
    np.save(tmp_path / "b.npy", codes)
    (tmp_path / "b.json").write_text(facts)
    assert FACTS[facts] in error(made, tmp_path / "b.npy")


@pytest.mark.parametrize("length", [0, 5, 60, 100, 2000])
@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.pt"])
def test_cut_files_are_refused(made: Path, tmp_path: Path, name: str, length: int) -> None:
    (tmp_path / name).write_bytes((made / name).read_bytes()[:length])
    assert str(tmp_path / name) in error(made, tmp_path / name)


def test_stated_shape_takes_no_memory(made: Path, tmp_path: Path) -> None:
    with (tmp_path / "b.npy").open("wb") as file:
        about = {"descr": "<u2", "fortran_order": False, "shape": (1 << 40, 12, 16)}
        np.lib.format.write_array_header_1_0(file, about)
        file.write(b"\0" * 100)
    assert "states the shape [1099511627776, 12, 16], but has 100 bytes" in error(
        made, tmp_path / "b.npy"
    )


def test_model_must_be_known(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    np.save(tmp_path / "b.npy", codes)
    result = vtok("decode", tmp_path / "b.npy")
    message = "b.npy: does not state the model that made its codes: pass --model"
    assert (result.exit_code, message in result.stderr) == (5, True)


def test_options_of_arrays_are_refused_for_code_files(made: Path) -> None:
    for options in (["--fps", "5"], ["--size", "64x48"], ["--id", "a"], ["--index", "0"]):
        assert f"{options[0]} {options[1]}: expected none: " in error(
            made, made / "a.vtok", *options, "--overwrite"
        )


def test_tensors_of_other_programs(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    save_file({"codes": codes.astype(np.int32)}, tmp_path / "b.safetensors")
    torch.save({"codes": torch.from_numpy(codes.astype(np.int64))}, tmp_path / "b.pt")
    for suffix in ("safetensors", "pt"):
        found = decode(made, tmp_path / f"b.{suffix}", tmp_path / f"{suffix}.mkv", *OPTIONS)
        np.testing.assert_array_equal(found, read(made / "a.mkv"))


def test_damaged_header_is_named(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    for text in ("{", "[1]", "{}", "é"):
        save_file({"codes": codes}, tmp_path / "b.safetensors", {"vtok": text})
        assert "b.safetensors: header: " in error(made, tmp_path / "b.safetensors")


def test_shard_of_another_program(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    np.save(tmp_path / "b.npy", codes)
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(tmp_path / "b.npy", "x/one.npy")
        shard.add(tmp_path / "b.npy", "new\nline.npy")
    found = decode(made, tmp_path / "s.tar", tmp_path / "a.mkv", *OPTIONS, "--id", "x/one")
    np.testing.assert_array_equal(found, read(made / "a.mkv"))
    assert "s.tar: holds 2 items (x/one, new_line): give --id" in error(made, tmp_path / "s.tar")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "KeyError: 'segments'"),
        ({"segments": [], "shape": [1]}, "holds no items"),
        ({"segments": [{"id": "a"}], "shape": [1 << 40, 1, 1, 1]}, "cannot reshape"),
        ({"segments": [{"id": "a", "first": 3, "steps": 9}], "shape": [4, 1, 1, 1]}, "not match"),
        ({"segments": 5, "shape": 5}, "TypeError"),
    ],
)
def test_damaged_memory_maps(made: Path, tmp_path: Path, about: Any, message: str) -> None:
    (tmp_path / "video_7.bin").write_bytes(bytes(16))
    (tmp_path / "metadata_7.json").write_text(json.dumps(about))
    for name in ("video_7.bin", "metadata_7.json"):
        assert message in error(made, tmp_path / name)


def test_json_counts_the_codes(made: Path, tmp_path: Path, codes: np.ndarray) -> None:
    np.save(tmp_path / "b.npy", codes)
    model = ["--model", made / "tiny.safetensors"]
    (row,) = rows(vtok("decode", tmp_path / "b.npy", "--json", *model, *OPTIONS))
    assert (row["codes"], row["code_shape"]) == (codes.size, list(codes.shape))
    assert (row["frames"], row["bytes"], row["status"]) == (FRAMES, codes.nbytes, "ok")
