"""A short run of scripts/fuzz: damaged files are read correctly or give a named error."""

import io
import runpy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok.codefile.reader import CodeFileReader
from vtok.errors import CodeFileError

FUZZ = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "fuzz.py"))


def test_intact_files_pass_every_use() -> None:
    for seed in FUZZ["seeds"]():
        code_file = seed.startswith(b"\x89")
        for use in FUZZ["USES"]:
            expected = "whole" if code_file != (use == "pack") else "CodeFileError"
            assert FUZZ["check"](seed, use) == expected
        if code_file:
            assert FUZZ["reseal"](seed) == seed


def test_mutations_by_number() -> None:
    outcomes = FUZZ["run"](0, 500)
    assert outcomes["CodeFileError"] > 250
    assert outcomes["whole"] > 10  # the CRCs were made to match, so some are read to the end
    assert set(outcomes) <= {"CodeFileError", "UsageError", "OptionError", "whole"}


@pytest.mark.parametrize("coder", [0, 2])
def test_files_of_one_coder(coder: int) -> None:
    for seed in FUZZ["seeds"](coder):
        chunks = CodeFileReader(io.BytesIO(seed))
        assert max(used for chunk in chunks for used in chunk.coders) == coder
    assert FUZZ["run"](0, 60, coder)["CodeFileError"] > 20


def test_sections() -> None:
    outcomes = FUZZ["run"](0, 200, sections=True)
    assert outcomes["CodeFileError"] > 100
    assert outcomes["whole"] > 10
    assert set(outcomes) <= {"CodeFileError", "UsageError", "OptionError", "whole"}


def test_sound() -> None:
    outcomes = FUZZ["run_sound"](0, 10)
    assert set(outcomes) <= {"Damage", "OutputError", "whole"}
    assert outcomes["whole"]


@settings(deadline=None, max_examples=100)
@given(st.integers(10**6, 2**60))
def test_mutations_of_any_number(number: int) -> None:
    FUZZ["run"](number, 1)


@pytest.mark.parametrize(
    ("failure", "message"),
    [(RuntimeError("spam"), "RuntimeError"), (CodeFileError("two\nlines"), "several lines")],
)
def test_violations_are_reported_with_their_number(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str
) -> None:
    def fail(data: bytes) -> None:
        raise failure

    for use in FUZZ["USES"]:
        monkeypatch.setitem(FUZZ["USES"], use, fail)
    with pytest.raises(AssertionError, match=rf"^mutation 7 \(.*{message}"):
        FUZZ["run"](7, 1)


def test_mutations_of_foreign_weights() -> None:
    for seed in FUZZ["weights_seeds"]():
        assert FUZZ["check"](seed, "weights") == "whole"
    outcomes = FUZZ["run_weights"](0, 300)
    assert set(outcomes) == {"CheckpointError", "whole"}
    assert outcomes["CheckpointError"] > 150
    assert outcomes["whole"] > 5
