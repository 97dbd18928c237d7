"""`fast`: codes of the first pass of the encoder alone, what a file says of it, and errors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from codefiles import load_tiny
from commands import encode, rows, vtok
from videos import make_video

from vtok.codefile.reader import CodeFileReader
from vtok.dataset.options import DatasetOptions, make_recipe, with_recipe
from vtok.errors import UsageError
from vtok.evaluation.evaluate import EvalOptions, evaluate_file
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.inspect import is_encoded
from vtok.pipeline.options import EncodeOptions
from vtok.tokens.encode import check_token_options


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    """A tokenizer whose encoder has a second pass from two stages on."""
    return load_tiny(tmp_path_factory.mktemp("model"), "second_pass")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", 12, width=48, height=32)


def codes(path: Path) -> np.ndarray:
    with path.open("rb") as stream:
        return np.concatenate([chunk.codes for chunk in CodeFileReader(stream)], axis=2)


def test_fast_codes_are_those_of_the_first_pass(
    tmp_path: Path, model: LoadedTokenizer, video: Path
) -> None:
    one = codes(encode(video, tmp_path / "one.vtok", model, num_stages=1))
    fast = codes(encode(video, tmp_path / "fast.vtok", model, fast=True))
    both = codes(encode(video, tmp_path / "both.vtok", model))
    assert np.array_equal(fast[:1], one)
    assert (fast != both).mean() > 0.05


def test_commands(tmp_path: Path, model: LoadedTokenizer, video: Path) -> None:
    named = ("--model", model.info.path)
    out = tmp_path / "a.vtok"
    assert vtok("encode", video, "-o", out, "--fast", *named).exit_code == 0
    (facts,) = rows(vtok("info", out, "--json"))
    assert facts["fast"] == "yes"
    assert is_encoded(out, video, model, EncodeOptions(fast=True))
    assert not is_encoded(out, video, model, EncodeOptions())
    psnr = []
    for options in ([], ["--fast"]):
        (found,) = rows(vtok("eval", video, "--json", "--metrics", "psnr", *options, *named))
        psnr.append([rate["psnr"] for rate in found["rates"]])
    assert psnr[0] != psnr[1]
    result = evaluate_file(video, model=model, options=EvalOptions(metrics=("psnr",), fast=True))
    assert psnr[1] == pytest.approx([point.quality["psnr"] for point in result.points], abs=0.01)


def test_recipe_of_a_data_set(model: LoadedTokenizer) -> None:
    plain = DatasetOptions()
    fast = replace(plain, encode=replace(plain.encode, fast=True))
    recipe = json.loads(json.dumps(make_recipe(fast, model.info, "float32")))
    assert with_recipe(plain, recipe).encode.fast
    assert "fast" not in make_recipe(plain, model.info, "float32")


def test_fast_is_refused_without_a_second_pass(tmp_path: Path, video: Path) -> None:
    single = load_tiny(tmp_path)
    for kind in ("encode", "eval", "compare", "report"):
        done = vtok(kind, video, "--fast", "--model", single.info.path)
        assert done.exit_code == 2
        assert "--fast does not apply to tiny: its encoder has a single pass" in done.stderr
    with pytest.raises(UsageError, match="`fast` does not apply to tokens"):
        check_token_options(EncodeOptions(fast=True))
