"""The reader in examples/: it imports nothing of vtok, and reads what vtok writes."""

import ast
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codefile_container import DATA as PLAIN
from test_codefile_container import make_chunks, make_header, with_chunk_between, write
from test_codefile_segments import DATA as SEGMENTS
from test_entropy import file_of, make_codes

from vtok.codefile.packing import StageCoder
from vtok.codefile.reader import CodeFileReader

FOLDER = Path(__file__).parent.parent
SCRIPT = FOLDER / "examples" / "read_vtok.py"
CODER = SCRIPT.with_name("read_coder.py")
GOLDEN = [path.read_bytes() for path in sorted((FOLDER / "tests" / "golden").glob("*.vtok"))]
FILES = [
    *GOLDEN,
    PLAIN,
    SEGMENTS,
    write(make_header(2, 1, 32), []),
    write(make_header(3, 1, 17), make_chunks(make_header(3, 1, 17), [2, 2, 1], missing=3)),
    with_chunk_between(b"note", b"to be passed over"),
    file_of(make_codes("still", (3, 1, 4, 10, 12), 9))[0],
]


@pytest.fixture(scope="module")
def example() -> dict:
    names: dict = {"__name__": "read_vtok"}
    module = type(sys)("read_vtok")
    sys.modules["read_vtok"] = module  # its dataclass looks itself up there
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), names)
    finally:
        del sys.modules["read_vtok"], sys.path[0]
    return names


@pytest.mark.parametrize(("path", "most"), [(SCRIPT, 150), (CODER, 180)])
def test_it_is_short_and_needs_numpy_alone(path: Path, most: int) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= most
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) <= {"numpy", CODER.stem}


@st.composite
def modelled(draw: st.DrawFn) -> tuple[Any, int]:
    """Codes `[stages, K, t, h, w]`, and their bits."""
    most = (4, 2, 4, 19, 19)
    shape = tuple(draw(st.integers(1, side)) for side in most)
    bits, rng = draw(st.integers(1, 12)), np.random.default_rng(draw(st.integers(0, 10**6)))
    codes = rng.integers(0, 2**bits, shape)
    stays = rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.95]))
    for step in range(1, shape[2]):
        codes[:, :, step] = np.where(stays[:, :, step], codes[:, :, step - 1], codes[:, :, step])
    return codes, bits


@settings(deadline=None, max_examples=40)
@given(modelled())
@hypothesis.example((np.arange(8 * 50 * 90).reshape(2, 1, 4, 50, 90) // 7 % 32, 5))
def test_it_decodes_what_is_modelled(example: dict, stack: tuple[Any, int]) -> None:
    codes, bits = stack
    coder = StageCoder(codes.shape[1:], bits)
    below: list[Any] = []
    for stage in codes:
        data = coder.encode(stage)
        decoded = example["decode_modelled"](data, stage.shape, bits, below)
        np.testing.assert_array_equal(decoded, stage)
        with pytest.raises((ValueError, IndexError)):
            example["decode_modelled"](data[:-2], stage.shape, bits, below)
        below.append(stage)


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
