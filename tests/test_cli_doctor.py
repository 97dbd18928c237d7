"""`vtok models`, `vtok doctor`, and completion of --model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import rows, tiny_checkpoint, vtok

import vtok.evaluation.doctor as doctor
import vtok.evaluation.metrics as metrics
from vtok.models.checkpoint import card_quality, list_models, read_card, token_learners


def test_models_lists_quality_of_shipped_models() -> None:
    found = rows(vtok("models", "--json"))
    assert [row["name"] for row in found] == list_models()
    for row in found:
        assert row["parameters"] > 1e6
        assert row["bytes"] == Path(row["path"]).stat().st_size
        assert row["psnr"], "its card has a table"
    assert "v11" in token_learners("vtok-base")
    assert [row["token_learners"] for row in found] == [token_learners(n) for n in list_models()]
    shown = vtok("models").stdout
    assert all(f"{name}: " in shown for name in list_models())


def test_card_quality_reads_the_first_table() -> None:
    lines = ("clip | 9 bits | 18 bits", "---|---|---", "a | 1.0 | 2.0", "mean | 3.5 | 4.5")
    text = "# x\n\n" + "".join(f"| {line} |\n" for line in lines) + "\n"
    assert card_quality(text + text.replace("3.5", "9.9")) == {9: 3.5, 18: 4.5}
    assert card_quality("| clip | what |\n| mean | 3 |") == {}
    assert read_card("no-such-model") == ""


def test_doctor_passes(tmp_path: Path) -> None:
    result = vtok("doctor", "--model", tiny_checkpoint(tmp_path), "--device", "cpu", "--json")
    found = {row["name"]: row for row in rows(result)}
    assert result.exit_code == 0, result.stdout
    assert {"vtok", "torch", "ffmpeg", "x264", "vmaf", "device", "round trip"} <= set(found)
    assert found["round trip"]["text"].startswith("13 frames of 96x64 by tiny")
    assert found["device"]["text"].startswith("cpu, dtype auto means ")


def test_doctor_reports_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "EXTRAS", {"no-such-extra": "plot"})
    monkeypatch.setattr(metrics, "has_vmaf", lambda: False)
    result = vtok("doctor", "--model", "no-such-model")
    lines = {line.split()[1]: line for line in result.stdout.splitlines()}
    assert lines["no-such-package"].startswith("FAILED")
    assert "pip install no-such-package" in lines["no-such-package"]
    assert lines["no-such-extra"].startswith("--")
    assert lines["vmaf"].startswith("--")
    assert lines["round"].startswith("FAILED")
    assert result.exit_code == 1
    assert result.stderr == "error: checks failed: no-such-package, round trip\n"


def test_shell_completes_models() -> None:
    name = list_models()[0]
    environment = {
        **os.environ,
        "_VTOK_COMPLETE": "complete_bash",
        "COMP_WORDS": f"vtok eval --model {name[:3]}",
        "COMP_CWORD": "3",
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "vtok"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert name in done.stdout.split()
