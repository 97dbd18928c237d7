"""The reader in examples/: it imports nothing of vtok, and reads what vtok writes."""

import ast
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_codefile_container import DATA as PLAIN
from test_codefile_container import make_chunks, make_header, with_chunk_between, write
from test_codefile_segments import DATA as SEGMENTS

from vtok.codefile import CodeFileReader

FOLDER = Path(__file__).parent.parent
SCRIPT = FOLDER / "examples" / "read_vtok.py"
GOLDEN = [path.read_bytes() for path in sorted((FOLDER / "tests" / "golden").glob("*.vtok"))]
FILES = [
    *GOLDEN,
    PLAIN,
    SEGMENTS,
    write(make_header(2, 1, 32), []),
    write(make_header(3, 1, 17), make_chunks(make_header(3, 1, 17), [2, 2, 1], missing=3)),
    with_chunk_between(b"note", b"to be passed over"),
]


@pytest.fixture(scope="module")
def example() -> dict:
    names: dict = {"__name__": "read_vtok"}
    module = type(sys)("read_vtok")
    sys.modules["read_vtok"] = module  # its dataclass looks itself up there
    try:
        exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), names)
    finally:
        del sys.modules["read_vtok"]
    return names


def test_it_is_short_and_needs_numpy_alone() -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 150
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


@pytest.mark.parametrize("data", FILES)
def test_it_reads_what_vtok_reads(example: dict, data: bytes) -> None:
    theirs = list(CodeFileReader(io.BytesIO(data)))
    ours = list(example["read_chunks"](data))
    assert len(ours) == len(theirs)
    for chunk, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(chunk.codes, expected.codes)
        assert (chunk.first_frame, chunk.num_frames) == (expected.first_frame, expected.num_frames)
        assert chunk.opens == expected.opens


@pytest.mark.parametrize("data", [PLAIN, SEGMENTS])
def test_it_notices_changed_bytes(example: dict, data: bytes) -> None:
    for place in range(8, len(data), 11):
        changed = bytearray(data)
        changed[place] ^= 0x21
        with pytest.raises((ValueError, example["struct"].error, IndexError)):
            list(example["read_chunks"](bytes(changed)))


def test_it_runs(tmp_path: Path) -> None:
    (tmp_path / "a.vtok").write_bytes(SEGMENTS)
    command = [sys.executable, SCRIPT, tmp_path / "a.vtok"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].endswith("a.vtok: 24x16, 25/1 fps")
    assert len(lines) == 8
    assert lines[1].endswith("a segment that drops 7 frames")
