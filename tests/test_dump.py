"""dump and pack: documented formats, and a round trip to the same bytes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import vtok
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codefile_container import TrickleReader, make_chunks, make_header, write
from test_codefile_segments import DATA as SEGMENTS

from vtok.codefile.dump import FORMATS
from vtok.codefile.reader import CodeFileReader
from vtok.errors import CodeFileError
from vtok.pipeline.edit import dump_file, pack_file
from vtok.pipeline.options import DumpOptions

GOLDEN = (Path(__file__).parent / "golden" / "v1.vtok").read_bytes()
BYTES_OF = {9: 2, 17: 4}  # of an integer in a dump of codes of so many bits


def dump(data: bytes, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    dump_file(TrickleReader(data), out, options=DumpOptions(kind, **options))
    return out.getvalue()


def pack(data: bytes) -> bytes:
    out = io.BytesIO()
    pack_file(TrickleReader(data), out)
    return out.getvalue()


def codes(data: bytes) -> list[np.ndarray]:
    return [chunk.codes for chunk in CodeFileReader(io.BytesIO(data))]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("data", [GOLDEN, SEGMENTS], ids=["1.0", "1.1"])
def test_round_trip(kind: str, data: bytes) -> None:
    assert pack(dump(data, kind)) == data


@settings(deadline=None, max_examples=30)
@given(
    stages=st.integers(1, 3),
    codebooks=st.integers(1, 2),
    bits=st.sampled_from([1, 9, 16, 17, 32]),
    steps=st.lists(st.integers(1, 3), max_size=3),
    kind=st.sampled_from(FORMATS),
)
def test_round_trip_of_any_layout(
    stages: int, codebooks: int, bits: int, steps: list[int], kind: str
) -> None:
    header = make_header(stages, codebooks, bits, steps=3)
    data = write(header, make_chunks(header, steps))
    assert pack(dump(data, kind)) == data


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("data", [GOLDEN, SEGMENTS], ids=["1.0", "1.1"])
def test_fewer_stages(kind: str, data: bytes) -> None:
    fewer = pack(dump(data, kind, num_stages=2))
    for ours, theirs in zip(codes(fewer), codes(data), strict=True):
        np.testing.assert_array_equal(ours, theirs[:2])
    assert CodeFileReader(io.BytesIO(fewer)).header.format.num_stages == 2


def test_jsonl_order_is_time_row_column() -> None:
    first, *rows, last = map(json.loads, dump(GOLDEN, "jsonl").splitlines())
    assert (first["dump"], first["version"]) == ("jsonl", [1, 0])
    assert first["header"]["format"]["grid"] == [3, 4]
    assert last == {"chunks": 3, "frames": 16}
    for row, expected in zip(rows, codes(GOLDEN), strict=True):
        read = np.array(row["codes"]).reshape(3, 2, row["steps"], 3, 4)
        np.testing.assert_array_equal(read, expected)
    assert [row["frames"] for row in rows] == [5, 8, 3]
    assert rows[0]["opens"] == 0


@pytest.mark.filterwarnings("ignore")
def test_text_has_one_line_per_step() -> None:
    read = np.loadtxt(io.BytesIO(dump(GOLDEN, "text")), dtype=int)  # passes over lines with '#'
    expected = np.concatenate([chunk.reshape(-1, 3 * 4) for chunk in codes(GOLDEN)])
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("bits", BYTES_OF)
def test_bin_is_little_endian_integers(bits: int) -> None:
    header = make_header(3, 2, bits)
    chunks = make_chunks(header, [2, 1])
    stream = io.BytesIO(dump(write(header, chunks), "bin"))
    assert json.loads(stream.readline())["dump"] == "bin"
    for expected, _ in chunks:
        row = json.loads(stream.readline())
        count = len(row["coders"]) * 2 * row["steps"] * 2 * 3
        data = stream.read(count * BYTES_OF[bits])
        np.testing.assert_array_equal(
            np.frombuffer(data, f"<u{BYTES_OF[bits]}").reshape(expected.shape), expected
        )


def changed(kind: str, old: bytes, new: bytes) -> bytes:
    data = dump(GOLDEN, kind)
    assert old in data
    return data.replace(old, new, 1)


LAST = b'{"chunks":3,"frames":16}\n'
WRONG = [
    (b"", "line 1 is not a dump"),
    (b"hello\n", "line 1 is not JSON of integers and text"),
    (b"[1]\n", "line 1 has other keys than dump, header, version"),
    (changed("jsonl", b'"dump":"jsonl"', b'"dump":"text"'), "line 1 is not a dump of vtok"),
    (changed("text", b"# {", b"{"), "line 1 is not a dump of vtok"),
    (changed("jsonl", b'"version":[1,0]', b'"version":[1,7]'), r"version \[1, 7\] is not known"),
    (changed("jsonl", b'"grid":[3,4]', b'"grid":[3,5]'), r"line 1 header: format.grid is \(3, 5\)"),
    (changed("jsonl", b'"frames":5', b'"frames":6'), "line 2 chunk 0 has num_frames 6, but t = 2"),
    (changed("jsonl", b'"frames":5', b'"frames":"5"'), "line 2 frames is 5, not a number"),
    (changed("jsonl", b'"opens":0', b'"opens":1'), r"line 2 .* needs version 1\.1"),
    (changed("jsonl", b'"steps":2', b'"steps":9'), r"line 2 steps is 9, not 1\.\.2"),
    (changed("jsonl", b'"steps":2', b'"steps":1'), r"line 2 codes are not integers \[3, 2, 12\]"),
    (changed("jsonl", b"[[[", b"[[[600,"), r"line 2 codes are not integers"),
    (changed("jsonl", b"[[[0,", b"[[[600,"), r"line 2 codes run from 6 to 600, but 9 bits hold"),
    (changed("jsonl", b"[[[0,", b'[[["a",'), r"line 2 codes are not integers"),
    (changed("jsonl", b"[0,0,0]", b"[0,0,0,0]"), r"line 2 coders is \[0, 0, 0, 0\], not 1\.\.3"),
    (changed("jsonl", b"[0,0,0]", b"0"), r"line 2 coders is 0, not 1\.\.3 numbers"),
    (changed("jsonl", LAST, b""), "line 5 is missing: the dump was cut"),
    (changed("jsonl", LAST, LAST + b"\n"), "line 5 is the last one, but more bytes follow"),
    (changed("jsonl", LAST, b'{"chunks":2,"frames":16}\n'), "line 5 counts other than the 3 chu"),
    (dump(GOLDEN, "jsonl")[:-1], "line 5 is missing: the dump was cut"),
    (changed("text", b"\n0 ", b"\n-1 "), "line 3 is not a line of 12 codes"),
    (changed("text", b"\n0 ", b"\n0 0 "), "line 3 is not a line of 12 codes"),
    (changed("text", b"\n0 ", b"\n99999999999 "), "line 3 is not a line of 12 codes"),
    (dump(GOLDEN, "bin")[:1200], "line 3 has fewer codes after it than it says"),
]


@pytest.mark.parametrize(("data", "message"), WRONG)
def test_errors_name_the_line(data: bytes, message: str) -> None:
    with pytest.raises(CodeFileError, match=f"^standard input: .*{message}"):
        pack(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncation_is_refused(kind: str) -> None:
    data = dump(GOLDEN, kind)
    for length in range(0, len(data), 7):
        with pytest.raises(CodeFileError, match=r"^standard input: line \d"):
            pack(data[:length])


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.vtok").write_bytes(GOLDEN)
    dumped = vtok("dump", "a.vtok")
    assert dumped.exit_code == 0
    assert dumped.stdout_bytes == dump(GOLDEN, "jsonl")
    assert vtok("pack", "-", data=dumped.stdout_bytes).stdout_bytes == GOLDEN
    assert vtok("dump", "-", "--stages", 1, data=GOLDEN).stdout_bytes == dump(
        GOLDEN, "jsonl", num_stages=1
    )
    assert vtok("dump", "a.vtok", "-o", "b.bin", "--format", "bin").exit_code == 0
    assert vtok("pack", "b.bin").exit_code == 0
    assert Path("b.vtok").read_bytes() == GOLDEN
    for arguments, code, message in (
        (
            ("dump", "a.vtok", "--format", "xml"),
            2,
            "--format xml: expected one of jsonl, text, bin",
        ),
        (("pack", "a.vtok", "-o", "c.vtok"), 4, "a.vtok: line 1 is "),
        (("pack", "nix.txt"), 5, "nix.txt: no such file"),
        (("dump", "b.bin"), 4, "b.bin: not a vtok code file"),
    ):
        result = vtok(*arguments)
        assert result.exit_code == code
        assert result.stderr.startswith(f"error: {message}")
        assert result.stderr.count("\n") == 1


def respelled(data: bytes) -> bytes:
    """Write each line of a dump as `json.dumps` does by default, keys in another order."""
    lines = (json.loads(line) for line in data.splitlines())
    return b"".join(json.dumps(dict(reversed(line.items()))).encode() + b"\r\n" for line in lines)


@pytest.mark.parametrize("data", [GOLDEN, SEGMENTS], ids=["1.0", "1.1"])
def test_any_spelling_of_json(data: bytes) -> None:
    assert pack(respelled(dump(data, "jsonl"))) == data


@pytest.mark.parametrize("change", ["random", "zeros", "random without coders", "nested"])
def test_any_valid_codes_pack(change: str) -> None:
    whole = CodeFileReader(io.BytesIO(SEGMENTS)).header.format
    generator = np.random.default_rng(0)
    lines, expected = [], []
    for line in map(json.loads, dump(SEGMENTS, "jsonl").splitlines()):
        if "codes" in line:
            shape = np.array(line["codes"]).shape
            new = generator.integers(0, 0 if change == "zeros" else whole.codebook_size - 1, shape,
                                     endpoint=True)  # fmt: skip
            expected.append(new)
            line["coders"] = [2] * len(new)
            if "without" in change:
                del line["coders"]
            if change == "nested":
                new = new.reshape(*shape[:2], line["steps"], *whole.grid)
            line["codes"] = new.tolist()
        lines.append(json.dumps(line))
    packed = pack("\n".join([*lines, ""]).encode())
    for ours, wanted in zip(codes(packed), expected, strict=True):
        np.testing.assert_array_equal(ours.reshape(wanted.shape), wanted)
