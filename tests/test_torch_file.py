"""The reader of foreign weights: equal tensors of every kind of file; nothing of a file runs."""

import argparse
import pickle
import resource
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vtok.errors import CheckpointError, InputError
from vtok.models.pickled import BadPickleError, flatten, interpret
from vtok.models.torch_file import float_tensors, read_foreign, read_tensors

TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].double(), tensor.double())


def samples() -> dict[str, Tensor]:
    numbers = torch.arange(24).reshape(2, 3, 4) % 5
    tensors = {str(dtype).removeprefix("torch."): numbers.to(dtype) for dtype in TYPES}
    wide = torch.randn(4, 6)
    views = {"transposed": wide.T, "shared": wide, "slice": wide[1:, ::2]}
    odd = {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "of one": torch.ones(1, 1)}
    return {**tensors, **views, **odd, "parameter": nn.Parameter(torch.randn(3)).detach()}


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_of_torch_save(tmp_path: Path, protocol: int) -> None:
    path, expected = tmp_path / "a.pt", samples()
    torch.save(expected, path, pickle_protocol=protocol)
    assert_equal(read_tensors(path), expected)
    torch.save(OrderedDict(a=nn.Parameter(expected["scalar"])), path, pickle_protocol=protocol)
    assert_equal(read_tensors(path), {"a": expected["scalar"]})


class Traced(nn.Module):
    """A module with a constant in its trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
        self.register_buffer("steps", torch.arange(5))

    def forward(self, clip: Tensor) -> Tensor:
        """Scale the layers' output."""
        scaled: Tensor = self.layers(clip) * torch.tensor([0.5])
        return scaled


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_tensors_of_torchscript(tmp_path: Path, bfloat16: bool) -> None:
    module, path = Traced().eval(), tmp_path / "a.jit"
    clip = torch.randn(1, 3, 2, 2, 2)
    if bfloat16:
        module, clip = module.bfloat16(), clip.bfloat16()
    torch.jit.trace(module, clip).save(str(path))
    found = read_foreign(path)
    assert_equal(found.tensors, module.state_dict())
    assert_equal(found.constants, {"0": torch.tensor([0.5])})
    compressed = [info for info in zipfile.ZipFile(path).infolist() if info.compress_type]
    assert all("/code/" in info.filename for info in compressed)
    assert compressed


class Ran:
    """Create a file when unpickled, and hold attributes that refer to each other."""

    def __init__(self, path: Path) -> None:
        self.parent, self.path, self.width = self, path, 7

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["path"]).touch()


class RanByReduce:
    """Create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_lightning_file_with_foreign_classes(tmp_path: Path) -> None:
    path, ran = tmp_path / "a.ckpt", tmp_path / "ran"
    weights = {"encoder.weight": torch.randn(2, 3), "encoder.bias": torch.randn(2)}
    package = {
        "state_dict": OrderedDict(weights),
        "hyper_parameters": argparse.Namespace(width=8, name="small", levels=[8, 5]),
        "config": Ran(ran),
        "callbacks": {Ran: {"best": 1.5}, "set": {1, 2}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "by": RanByReduce(ran)}],
        "epoch": 3,
    }
    torch.save(package, path)
    found = read_foreign(path)
    assert_equal(read_tensors(path, "ema", "state_dict"), weights)
    assert set(found.tensors) == {
        "state_dict.encoder.weight", "state_dict.encoder.bias", "optimizer_states.0.state.0.exp_avg"
    }  # fmt: skip
    stated = {"name": "small", "width": 8, "levels.0": 8, "levels.1": 5}
    expected = {f"hyper_parameters.{key}": value for key, value in stated.items()}
    assert found.values == {**expected, "config.width": 7, "epoch": 3}
    assert not ran.exists()


def test_safetensors_and_sections(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"model.a": torch.ones(2), "b": torch.zeros(1)}, path, metadata={"licence": "MIT"})
    assert set(read_tensors(path)) == {"model.a", "b"}
    assert_equal(read_tensors(path, "model"), {"a": torch.ones(2)})
    assert read_foreign(path).values == {"licence": "MIT"}


def test_float_tensors() -> None:
    tensors = {"half": torch.ones(2).half(), "small": torch.ones(2).to(torch.float8_e5m2)}
    found = float_tensors("here", {**tensors, "count": torch.tensor(3)})
    assert [found[name].dtype for name in ("half", "small", "count")] == [
        torch.float32, torch.float32, torch.int64
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match="here: tensor bad holds infinities"):
        float_tensors("here", {"bad": torch.tensor([torch.inf])})


def rewrite(change: Callable[[str, bytes], bytes | None], kind: int = 0) -> Callable[[Path], None]:
    """Make a function that writes a small file with changed entries; None leaves one out."""

    def write(path: Path) -> None:
        whole = path.with_suffix(".whole")
        torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": "text"}, whole)
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", kind) as new:
            for item in old.infolist():
                if (data := change(item.filename.partition("/")[2], old.read(item))) is not None:
                    new.writestr(item.filename, data)
        whole.unlink()

    return write


def with_pickle(change: Callable[[bytes], bytes], kind: int = 0) -> Callable[[Path], None]:
    return rewrite(lambda name, data: change(data) if name == "data.pkl" else data, kind)


def entry(body: bytes) -> Callable[[Path], None]:
    return with_pickle(lambda data: b"\x80\x02" + body + b".")


def tensor_with(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(data: bytes) -> bytes:
        assert data.count(old) == 1
        return data.replace(old, new)

    return with_pickle(change)


def legacy(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


DOUBLING = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n, n - 1, n - 1) for n in range(1, 200))
DOUBLING_DICTS = b"}q\x00" + b"".join(
    b"}q%c(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cu" % (n, n - 1, n - 1) for n in range(1, 40)
)
SIZE = b"K\x02K\x03\x86"  # of the tensor, and its stride
STRIDE = b"K\x03K\x01\x86"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "cut short"),
    "other kind": (lambda path: path.write_bytes(b"no weights" * 100), "not written by"),
    "zip of another kind": (rewrite(lambda name, data: None), "cut short|not written by"),
    "no pickle": (rewrite(lambda n, d: None if n == "data.pkl" else d), "not written by"),
    "compressed": (rewrite(lambda n, d: d, zipfile.ZIP_DEFLATED), "is compressed"),
    "old format": (legacy, r"torch\.load\(old, weights_only=True\)"),
    "missing storage": (rewrite(lambda n, d: None if n == "data/0" else d), "data/0 is missing"),
    "short storage": (rewrite(lambda n, d: d[:-1] if n == "data/0" else d), "is shorter"),
    "big-endian": (rewrite(lambda n, d: b"big" if n == "byteorder" else d), "big-endian"),
    "large shape": (tensor_with(SIZE, b"K\x03K\x03\x86"), "larger than its storage"),
    "large stride": (tensor_with(STRIDE, b"K\x07K\x01\x86"), "larger than its storage"),
    "repeated numbers": (
        tensor_with(SIZE + b"q\x08" + STRIDE, b"J\0\0\x01\0K\x03\x86q\x08K\0K\0\x86"),
        "larger than its storage",
    ),
    "negative stride": (tensor_with(STRIDE, b"J\xff\xff\xff\xffK\x01\x86"), "does not write"),
    "empty shape of many": (
        tensor_with(SIZE, b"K\x00\x8a\x08" + bytes(7) + b"\x20\x86"), "does not write"
    ),
    "unknown numbers": (tensor_with(b"FloatStorage", b"SpamStorage"), "numbers of type Spam"),
    "long length": (entry(b"X\xff\xff\xff\x7fa"), "damaged pickle"),
    "long integer": (entry(b"\x8b\xff\xff\xff\x7fa"), "damaged pickle"),
    "wide integer": (entry(b"\x8b\x00\x01\x00\x00" + b"a" * 256), "more than 128 bits"),
    "doubling lists": (entry(DOUBLING), "repeated or nested too often"),
    "doubling dictionaries": (entry(DOUBLING_DICTS), "repeated or nested too often"),
    "nested": (entry(b"]" * 100_000 + b"a" * 99_999), "nested too often"),
    "nested tuples": (entry(b")" + b"\x85" * 100_000), "nested too often"),
    "long name": (entry(b"}X\x00\x10\x00\x00" + b"a" * 4096 + b"K\x01s"), "name that is too long"),
    "empty stack": (entry(b"\x86"), "empty stack"),
    "unknown memo": (entry(b"h\x07"), "damaged pickle"),
    "no mark": (entry(b"K\x01e"), "damaged pickle"),
    "other opcode": (entry(b"(I1\nI2\nd"), "which torch does not write"),
    "many opcodes": (entry(b"NNNN" * 300_000), "more than 1,000,000 pickle opcodes"),
    "append to a number": (entry(b"K\x01K\x02a"), "is no list"),
    "item of a list": (entry(b"]K\x01K\x02s"), "is no dictionary"),
    "odd items": (entry(b"}(K\x01u"), "damaged pickle"),
    "tensor of nothing": (entry(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "damaged pickle"),
    "storage of nothing": (entry(b"K\x01Q"), "damaged pickle"),
    "no tensors": (entry(b"}"), "holds no tensors"),
    "class alone": (lambda path: torch.save(RanByReduce(path), path), "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_a_one_line_error(case: str, tmp_path: Path) -> None:
    write, message = BAD[case]
    path = tmp_path / "a.pt"
    write(path)
    before = peak_bytes()
    with pytest.raises(CheckpointError, match=message) as caught:
        read_foreign(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert peak_bytes() - before < 300 << 20
    assert [*tmp_path.iterdir()] == [path]


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def test_overlapping_entries_cannot_take_more_memory_than_the_file(tmp_path: Path) -> None:
    path, count, size = tmp_path / "a.pt", 64, 1 << 16
    torch.save({str(n): torch.zeros(size // 4) for n in range(count)}, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    first = next(info for name, info in infos.items() if name.endswith("/data/0"))
    start = data.index(b"PK\x01\x02")
    directory = bytearray(data[start:])
    for name, info in infos.items():  # every storage begins where the first one does
        if "/data/" in name:
            place = directory.index(struct.pack("<I", info.header_offset) + name.encode())
            directory[place : place + 4] = struct.pack("<I", first.header_offset)
    keep = data.index(b"PK\x03\x04", first.header_offset + 4)
    tail = bytearray(directory)
    end = tail.rindex(b"PK\x05\x06")
    tail[end + 16 : end + 20] = struct.pack("<I", keep)
    locator = tail.rfind(b"PK\x06\x07")
    if locator >= 0:  # without the 64-bit records
        del tail[tail.index(b"PK\x06\x06") : end]
    path.write_bytes(data[:keep] + tail)
    with pytest.raises(CheckpointError):
        read_foreign(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_tensors(path)


def test_plain_pickles_give_their_own_values() -> None:
    data = {"a": [1, 2.5, None, True], "b": ("text", -7, 2**70), "c": {}, "d": {3: 4}}
    for protocol in (2, 4):
        assert interpret(pickle.dumps(data, protocol))[0] == data
    assert dict(flatten(data, 20))["d.3"] == 4
    with pytest.raises(BadPickleError):
        list(flatten(data, 5))
