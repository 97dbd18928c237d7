"""examples/token_retrieval.py: ranking, token files, errors."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from token_models import tiny_token_model
from videos import make_video, run_ffmpeg

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))

import token_retrieval  # noqa: E402
from token_retrieval import Window, rank  # noqa: E402

from vtok.video.images import read_picture  # noqa: E402


@pytest.fixture
def search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the script with a tiny model and return its output."""
    model = tiny_token_model(tmp_path)
    monkeypatch.setattr(token_retrieval, "load_token_model", lambda learner: model)

    def call(*arguments: str | Path) -> str:
        places = ["--index", tmp_path / "index", "--out", tmp_path / "sheet.png"]
        argv = ["token_retrieval.py", *arguments, *places, "--num-tokens", "4"]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in argv])
        token_retrieval.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def two_scenes(tmp_path: Path) -> tuple[Path, Path]:
    """Make a clip, and a second one that shows the same from 2 s to 3 s, after moving bars."""
    clip = make_video(tmp_path / "clip.mp4", 50, fps="25")
    other = tmp_path / "other.mp4"
    scenes = "[0:v]trim=0:1,setpts=PTS-STARTPTS[b];[1:v][b]concat=n=2:v=1[out]"
    bars = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=2")
    run_ffmpeg("-i", clip, *bars, "-filter_complex", scenes, "-map", "[out]", "-crf", "10", other)
    return clip, other


def test_same_scene_is_ranked_first(
    search: Callable[..., str], two_scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    clip, other = two_scenes
    found = json.loads(search(other, "--query", clip, "--at", "0.5", "--json"))
    assert found["start"] == 0
    rows = found["found"]
    assert {row["video"] for row in rows} == {str(clip), str(other)}
    assert all(row["video"] != str(clip) or row["start"] >= 0.9 for row in rows)
    of_other = [row for row in rows if row["video"] == str(other)]
    assert len(of_other) >= 3
    assert of_other[0]["start"] == pytest.approx(2, abs=0.2)
    assert [row["similarity"] for row in rows] == sorted(
        (row["similarity"] for row in rows), reverse=True
    )
    assert read_picture(tmp_path / "sheet.png").shape[1] > 4 * 128


def test_second_search_reuses_token_files(
    search: Callable[..., str],
    two_scenes: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    clip, other = two_scenes
    first = search(other, "--query", clip, "--top", "2")
    assert len(first.splitlines()) == 4
    assert len(list((tmp_path / "index").iterdir())) == 2
    monkeypatch.setattr(token_retrieval, "encode_tokens_file", None)
    assert search(other, "--query", clip, "--top", "2") == first


def test_rank_uses_standardized_cosine_similarity() -> None:
    def window(*numbers: float) -> Window:
        return Window(Path("a"), 0, 1, np.array(numbers, np.float32))

    near, far, opposite = window(9, 101), window(2, 100), window(-9, 99)
    found = rank(window(10, 101), [far, opposite, near])
    assert [one for _, one in found] == [near, far, opposite]
    assert found[0][0] > 0.9
    assert found[-1][0] < 0


def test_windows_cover_the_video_once(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    edges = np.array([0, 1, *range(5, 62, 4)]) / 25.0
    times = np.stack([edges[:-1], edges[1:]], axis=1)
    tokens = np.arange(len(times) * 6, dtype=np.float16).reshape(len(times), 2, 3)
    save_file({"tokens": tokens, "times": times}, tmp_path / "a.safetensors")
    made = token_retrieval.windows(Path("a.mp4"), tmp_path / "a.safetensors", 1.0)
    assert made[0].start == 0
    assert made[-1].end == times[-1, 1]
    for one, after in itertools.pairwise(made):
        assert one.end == after.start
    inside = times[:, 0] < 1
    np.testing.assert_allclose(made[0].tokens, tokens[inside].astype(float).mean(0).ravel())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.mp4", "--query", "none.mp4"], 5, "no such file"),
        (["a.mp4", "--query", "a.mp4", "--at", "99"], 2, "is shorter"),
        (["a.mp4", "--query", "a.mp4", "--seconds", "50"], 2, "nothing to compare"),
        (["a.mp4", "--query", "a.mp4", "--seconds", "0"], 2, "more than 0"),
    ],
)
def test_errors(
    search: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4", 20)
    with pytest.raises(SystemExit) as ended:
        search(*arguments)
    assert ended.value.code == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error:")
    assert words in last
