"""Commands joined by pipes, and streams with short reads."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codefiles import load_tiny, random_file
from commands import tiny_checkpoint
from test_codefile_container import TrickleReader
from test_random_access import CountingFile
from videos import make_video

import vtok as package
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import ChunkHead
from vtok.codefile.sections import SOUND
from vtok.pipeline.edit import cut_file
from vtok.pipeline.inspect import inspect_code_file, inspect_stream, verify_file
from vtok.pipeline.options import CutOptions
from vtok.video.reader import VideoReader, probe


def test_short_reads(tmp_path: Path) -> None:
    model = load_tiny(tmp_path)
    data = random_file(model, 40)
    path = tmp_path / "a.vtok"
    path.write_bytes(data)

    def trickle() -> Any:
        return TrickleReader(data)

    for source in (trickle(), path):
        out = tmp_path / "b.vtok"
        options = CutOptions(start_seconds=1, num_stages=1, overwrite=True)
        assert cut_file(source, out, options=options).frames == 15
    for decode in (False, True):
        found = verify_file(trickle(), model=model, decode=decode)
        assert found == {**verify_file(path, model=model.info.path, decode=decode), "name": "-"}
    with path.open("rb") as stream:
        assert inspect_stream(trickle()) == {**inspect_code_file(stream, ""), "name": "-"}


def test_info_reads_only_header_and_index(tmp_path: Path) -> None:
    data = random_file(load_tiny(tmp_path), 4000)
    file = CountingFile(data)
    facts = inspect_code_file(file, "a.vtok")
    chunks = CodeFileReader(CountingFile(data)).chunks
    header, footer = chunks[0].offset, 68 + 24 * len(chunks)
    # the last bytes are read twice; optional sections are looked for once after the last chunk
    last = ChunkHead.length(facts["stages"]) + len(SOUND)
    assert file.count == header + footer + 16 + last
    assert header + footer < len(data) / 10
    assert (facts["frames"], facts["bytes"]) == (4000, len(data))
    sizes = np.diff([*(chunk.offset for chunk in chunks), len(data) - footer])
    assert facts["chunk_bytes"] == {
        "least": sizes.min(),
        "mean": round(sizes.mean()),
        "most": sizes.max(),
    }


@pytest.mark.slow
def test_commands_joined_by_pipes(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 70, fps="25")
    checkpoint = tiny_checkpoint(tmp_path)
    names = {
        "PYTHONPATH": str(Path(package.__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
        "V": f"{sys.executable} -m vtok",
        "M": f"--model {checkpoint}",
    }

    def shell(line: str) -> bytes:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=tmp_path,
            env={**os.environ, **names},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    assert b"frames" in shell("$V encode a.mp4 $M -q -o - | tee a.vtok | $V info -")
    assert b"whole: 70 frames" in shell("cat a.vtok | $V verify - $M")
    shell("$V cut - -q --duration 1 < a.vtok | $V cat - a.vtok -q -o both.vtok")
    assert b"whole, and decodes: 95 frames" in shell("$V verify both.vtok --deep $M")
    shell("cat both.vtok | $V dump - -q | $V pack - -q | cmp - both.vtok")
    shell("cat both.vtok | $V decode - $M -q --start 0.5 --duration 1 > part.mp4")
    assert probe(tmp_path / "part.mp4").num_frames == 25
    with VideoReader(tmp_path / "part.mp4") as reader:
        assert sum(map(len, reader)) == 25
