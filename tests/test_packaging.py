"""The wheel holds all that is needed: installed elsewhere, it runs the demo."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        ROOT,
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_the_package_and_the_weights_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "vtok/weights/vtok-base.safetensors" in names
    assert "vtok/weights/vtok-base.md" in names
    assert "vtok/report/assets/page.html" in names
    assert all(name.startswith(("vtok/", "vtok-")) for name in names)


@pytest.mark.slow
def test_installed_wheel_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
        "--disable-pip-version-check", "--target", site, wheel, cwd=tmp_path,
    )  # fmt: skip
    where = run(
        sys.executable,
        "-c",
        "import vtok; print(vtok.__file__)",
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    assert where.startswith(str(site))
    assert (site / "bin" / "vtok").exists()
    shown = run(
        sys.executable, ROOT / "examples" / "demo.py", "--size", "90",
        cwd=tmp_path, PYTHONPATH=str(site), COLUMNS="120",
    )  # fmt: skip
    assert "121 frames of 160x90" in shown
    assert "PSNR" in shown
    picture = np.asarray(Image.open(tmp_path / "demo" / "bee.png"))
    column = (picture.shape[1] - 6) // 3
    top = picture[26 : 26 + 90]
    original, coarse, fine = (top[:, 6 + n * column : n * column + column] for n in range(3))
    errors = [np.square(original.astype(float) - other).mean() for other in (coarse, fine)]
    assert errors[1] < errors[0] < 3000  # both show the bee, and more bits show it better
