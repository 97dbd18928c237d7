"""`vtok encode --to tokens`, `vtok decode` of tokens, and `vtok tokens show`."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from commands import rows, vtok
from PIL import Image
from safetensors.numpy import load_file
from token_models import tiny_tokens
from videos import make_video

from vtok.models.load import load
from vtok.tokens.model import load_token_model
from vtok.tokens.show import draw_maps, frames_with_maps, glow, half_share, sheet_columns
from vtok.video.reader import VideoReader, probe


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", 20)


@pytest.fixture
def tiny(tmp_path: Path) -> list[str | Path]:
    model, tokens = tiny_tokens(tmp_path)
    return ["--model", model, "--token-learner", tokens, "--dtype", "float32"]


def test_tokens_round_trip(clip: Path, tiny: list[str | Path]) -> None:
    done = vtok("encode", clip, "--to", "tokens", "--json", *tiny)
    assert done.exit_code == 0, done.stderr
    made = clip.with_suffix(".tokens.safetensors")
    assert load_file(made)["tokens"].shape == (6, 8, 16)
    (row,) = rows(done)
    assert (row["token_shape"], row["status"]) == ([6, 8, 16], "ok")
    done = vtok("decode", made, "--num-tokens", "4", *tiny)
    assert done.exit_code == 0, done.stderr
    assert "48 tokens of 16 numbers" in done.stderr
    assert probe(clip.with_suffix(".tokens.decoded.mp4")).num_frames == 20


def test_quantized_tokens_in_a_code_file(clip: Path, tiny: list[str | Path]) -> None:
    done = vtok("encode", clip, "--num-tokens", "5", *tiny)
    assert done.exit_code == 0, done.stderr
    (facts,) = rows(vtok("info", clip.with_suffix(".vtok"), "--json"))
    assert facts["codes"] == [15, 6, 1, 1]
    assert facts["token_learner"] == "tiny-v11"
    assert facts["bits_per_position"] == 5 * 24
    done = vtok("decode", clip.with_suffix(".vtok"), *tiny)
    assert done.exit_code == 0, done.stderr
    assert probe(clip.with_suffix(".decoded.mp4")).num_frames == 20


def test_output_suffix_selects_tokens(clip: Path, tiny: list[str | Path]) -> None:
    made = clip.parent / "x.tokens.safetensors"
    assert vtok("encode", clip, "-o", made, *tiny).exit_code == 0
    (facts,) = rows(vtok("info", made, "--json"))
    assert facts["kind"] == "learned tokens"
    assert facts["tokens"] == [6, 8, 16]
    assert facts["token_learner"] == "tiny-v11"
    assert facts["source"] == "clip.mp4 64x48"


def test_skip_existing_with_tokens(clip: Path, tiny: list[str | Path]) -> None:
    for to in (["--to", "tokens"], ["--to", "vtok"]):
        again = ["encode", clip, *to, "--skip-existing", *tiny, "--num-tokens"]
        assert vtok(*again, "4").exit_code == 0
        assert "up to date, skipped" in vtok(*again, "4").stderr
        assert "up to date, skipped" not in vtok(*again, "5").stderr
        assert "up to date, skipped" in vtok(*again, "5").stderr


def test_folder_of_tokens(clip: Path, tiny: list[str | Path], tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    assert vtok("encode", clip.parent, "--to", "tokens", "-o", codes, *tiny).exit_code == 0
    assert vtok("decode", codes, "-o", tmp_path / "back", *tiny).exit_code == 0
    assert [p.name for p in (tmp_path / "back").iterdir()] == ["clip.tokens.decoded.mp4"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--to", "tokens", "--num-tokens", "65"], 2, "--num-tokens 65: expected 1 to 64"),
        (["--to", "tokens", "--num-tokens", "0"], 2, "--num-tokens 0: expected 1 to 64"),
        (
            ["--to", "tokens", "--num-tokens", "49"],
            2,
            "the positions of frames of 64x48",
        ),
        (["--to", "tokens", "--stages", "1"], 2, "does not apply to tokens"),
        (["--to", "npy", "--num-tokens", "8"], 2, "needs --to tokens or --to vtok"),
    ],
)
def test_bad_token_options_are_one_line(
    clip: Path, tiny: list[str | Path], arguments: list[str], code: int, words: str
) -> None:
    done = vtok("encode", clip, *tiny, *arguments)
    assert done.exit_code == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [p.suffix for p in clip.parent.iterdir() if "clip" in p.name] == [".mp4"]


@pytest.mark.parametrize("name", ["show", "train"])
def test_help_has_examples(name: str) -> None:
    shown = vtok("tokens", name, "--help")
    assert shown.exit_code == 0
    assert f"vtok tokens {name} " in shown.stdout.partition("Options")[0]


def test_missing_token_learner_names_the_command(clip: Path, tiny: list[str | Path]) -> None:
    done = vtok("encode", clip, "--to", "tokens", "--model", tiny[1], "--token-learner", "v10")
    assert done.exit_code == 5
    assert "vtok tokens train" in done.stderr
    done = vtok("encode", clip, "--token-learner", "v10")
    assert (done.exit_code, "--to tokens" in done.stderr) == (2, True)


def test_show_writes_pictures_and_videos(clip: Path, tiny: list[str | Path]) -> None:
    picture, video = clip.parent / "maps.png", clip.parent / "maps.mp4"
    done = vtok("tokens", "show", clip, "-o", picture, "--size", "64x48", *tiny)
    assert done.exit_code == 0, done.stderr
    with Image.open(picture) as sheet:
        assert sheet.width > 3 * 64
    done = vtok("tokens", "show", clip, "-o", video, "--size", "64x48", "--json", *tiny)
    assert rows(done)[0]["frames"] == 20
    assert probe(video).num_frames == 20
    done = vtok("tokens", "show", clip, "-o", video, *tiny)
    assert (done.exit_code, "exists already" in done.stderr) == (1, True)


def test_frames_of_a_step_share_maps(clip: Path, tiny: list[str | Path]) -> None:
    model = load_token_model(tiny[3], model=load(tiny[1], dtype="float32"))
    with VideoReader(clip) as reader:
        found = [maps for _, maps in frames_with_maps(reader, model, 4)]
    assert len(found) == 20
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(found)]
    assert [number for number, alike in enumerate(same) if not alike] == [0, 4, 8, 12, 16]


def test_glow_follows_the_weights() -> None:
    frame = np.full((32, 48, 3), 100, np.uint8)
    weights = np.zeros((4, 6))
    weights[1, 4] = 0.2
    shown = glow(frame, weights, 8)
    assert shown[12, 36].min() > 200
    assert shown[28, 4].max() <= 40
    assert half_share(weights) == pytest.approx(1 / 24)
    assert half_share(np.ones((4, 6))) == pytest.approx(0.5)
    assert half_share(np.zeros((4, 6))) == 1
    assert glow(frame, np.zeros((4, 6)), 8).max() <= 40
    assert sheet_columns(9, 1.0) * 32 <= draw_maps(frame, np.ones((8, 4, 6)), 8).shape[1]
